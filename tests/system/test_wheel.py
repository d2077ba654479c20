"""The wheel: what it holds, and the dashboard that it alone serves, from any folder, as a clone does."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from slim import __version__
from tests import ROOT
from tests.browser_setup import served_by
from tests.visitor import Visitor

ACCENT = "rgb(15, 118, 110)"
"""The primary color of .streamlit/config.toml, which is not Streamlit's own."""
SECRETS = """
[auth]
redirect_uri = "http://localhost:8501/oauth2callback"
cookie_secret = "of-this-test"
client_id = "slim"
client_secret = "of-this-test"
server_metadata_url = "http://localhost:9/.well-known/openid-configuration"
"""


def build(source: Path, output: Path, *targets: str) -> Path:
    """Build `targets` of a source tree with the backend that pip calls, and return the folder they are in."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(output)]
    subprocess.run([*command, *(part for target in targets for part in ("--target", target))], cwd=source, check=True)
    return output


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel of this repository."""
    return build(ROOT, tmp_path_factory.mktemp("built"), "sdist", "wheel")


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"slim-{__version__}-py3-none-any.whl"


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_holds_the_package_and_the_dashboard_inside_it(wheel: Path) -> None:
    """Every file of both, byte for byte, and nothing at the top level but `slim`: no `pages`, `app` or `tests`."""
    kept = [file for folder in ("slim", "pages") for file in (ROOT / folder).rglob("*") if file.is_file()]
    sources = [ROOT / "app.py", ROOT / ".streamlit" / "config.toml", *kept]
    expected = {
        name if name.startswith("slim/") else f"slim/dashboard/{name}": file.read_bytes()
        for file in sources
        if "__pycache__" not in file.parts
        for name in [file.relative_to(ROOT).as_posix()]
    }
    info = f"slim-{__version__}.dist-info/"
    found = {name: content for name, content in contents(wheel).items() if not name.startswith(info)}
    assert {"slim/py.typed", "slim/dashboard/pages/home.py", "slim/runs/report/assets/report.css"} <= found.keys()
    assert found == expected


def test_an_sdist_holds_what_its_wheel_is_built_from(built: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(built / f"slim-{__version__}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    again = build(tmp_path / f"slim-{__version__}", tmp_path / "again", "wheel")
    assert contents(again / wheel.name) == contents(wheel)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it, and what it needs from where the tests have it.

    A path file gives it the other packages without their own path files, so that an editable install is not among them.
    """
    folder = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(folder)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True)
    (site,) = folder.glob("lib/*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def bare() -> dict[str, str]:
    """The environment without what says where Slim is and where its runs are kept."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLIM_", "PYTHON"))}


def said_by(*command: str | Path, folder: Path) -> str:
    return subprocess.check_output(list(map(str, command)), cwd=folder, env=bare(), text=True).strip()


def test_the_installed_command_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    """By its name and as `python -m slim`; the repository is not on its way."""
    python = installed / "bin" / "python"
    look = "import importlib.metadata, sys, slim; print(slim.__file__, importlib.metadata.version('slim'), *sys.path)"
    file, version, *path = said_by(python, "-c", look, folder=tmp_path).split()
    assert Path(file).is_relative_to(installed)
    assert version == __version__
    assert str(ROOT) not in path
    for command in ([installed / "bin" / "slim"], [python, "-m", "slim"]):
        assert said_by(*command, "--version", folder=tmp_path) == f"slim {__version__}"


def files(folder: Path) -> dict[Path, int]:
    """When each file in a folder was last changed, in ns."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(params=["wheel", "clone"])
def dashboard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a dashboard that is started in an empty folder `here`."""
    (tmp_path / "here").mkdir()
    environment = {**bare(), "HOME": str(tmp_path / "home")}
    command, watched = [sys.executable, "-m", "slim"], None
    if request.param == "clone":
        environment["PYTHONPATH"] = str(ROOT)
    else:
        watched = request.getfixturevalue("installed")
        command = [str(watched / "bin" / "slim")]
    before = files(watched) if watched else {}
    with served_by(command, tmp_path / "here", environment) as address:
        yield address
    assert watched is None or files(watched) == before


@pytest.mark.browser
def test_a_dashboard_answers_from_any_folder(browser: Browser, dashboard: str, tmp_path: Path) -> None:
    """With its own theme and no word to others; runs and secrets are those of the folder. It writes nowhere else."""
    here = tmp_path / "here"
    visitor = Visitor(browser, dashboard)
    page = visitor.page
    visitor.open()
    visitor.settle()
    expect(page.get_by_role("button", name="Calibrate the bundled model")).to_have_css("background-color", ACCENT)
    expect(page.get_by_text(f"Runs are kept in {here / 'cache'}.")).to_be_visible()
    visitor.open("prune")
    expect(page.get_by_text("There is no calibration yet.")).to_be_visible()
    visitor.settle()
    assert page.get_by_test_id("stException").count() == 0
    assert visitor.hosts <= {"127.0.0.1", ""}
    assert [path.name for path in here.iterdir()] == ["cache"]

    (here / ".streamlit").mkdir()
    (here / ".streamlit" / "secrets.toml").write_text(SECRETS)
    page.goto(dashboard)
    expect(page.get_by_role("button", name="Log in", exact=True)).to_be_visible()
    assert "Calibrate" not in page.locator("body").inner_text()
    visitor.context.close()
