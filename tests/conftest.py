"""Fixtures that tests share: a workspace of its own, pico models, and one that persists for the real model."""

import gc
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, chdir, contextmanager
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, expect, sync_playwright
from streamlit import config as streamlit_config

from slim.models.load import Loaded
from tests import ROOT, TEST_CACHE
from tests.browser_setup import FLAGS, playwright_browser, served, system_browser
from tests.commands import Run, in_process
from tests.pico import make_pico
from tests.pipeline import Pipeline, make_pipeline
from tests.visitor import PATIENCE, Visitor
from tests.warm import Forker

REAL = ("integration", "browser")
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
"""Of the real model: where two processes share two cores, more would wait for each other."""


def pytest_sessionstart() -> None:
    """Streamlit keeps the settings of the folder in which they are first read, and some tests run in another."""
    with chdir(ROOT):
        streamlit_config.get_config_options()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need a GPU run where there is one. The longest tests begin first."""
    if not torch.cuda.is_available():
        unable = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if item not in unable]
        config.hook.pytest_deselected(items=unable)
    items.sort(key=lambda item: not _is_real(item))


def pytest_collection_finish() -> None:
    """Leave what was imported out of the garbage collection that ends each run of a page."""
    gc.collect()
    gc.freeze()


def _is_real(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in REAL)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture, so that what a module shares is computed with as many threads as its tests are.

    Pico models are too small for two threads to help, and on busy cores two threads wait for each other.
    """
    torch.set_num_threads(THREADS if _is_real(item) else 1)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """Forget the name of the test, which would make the environment of each test's workers another one."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    """The process that forks workers in the workspace of a module, for a fixture that calls `ready`."""
    made = Forker()
    yield made
    made.end()


@pytest.fixture(autouse=True)
def own_workspace(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path | None:
    """SLIM_HOME of a unit test; tests of the real model use `shared_workspace`.

    A page that is run within a test confines paths to its folders for the process, which ends with the test.
    """
    monkeypatch.setenv("SLIM_FOLDERS", str(tmp_path_factory.getbasetemp()))
    monkeypatch.setenv("SLIM_CONFINED", "")
    if _is_real(request.node):
        return None
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SLIM_HOME", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


@pytest.fixture(scope="module", autouse=True)
def modules_workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """SLIM_HOME of what a module's tests share, so that it is known to no other test."""
    tests = (item for item in request.session.items if item.getparent(pytest.Module) is request.node)
    with pytest.MonkeyPatch.context() as patch:
        if not any("shared_workspace" in getattr(item, "fixturenames", ()) for item in tests):
            patch.setenv("SLIM_HOME", str(tmp_path_factory.mktemp("module") / "workspace"))
        yield


@pytest.fixture(scope="session")
def shared_workspace() -> Iterator[Path]:
    """A workspace that persists between runs, so that the bundled model is unpacked once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(TEST_CACHE / "workspace"))
        yield TEST_CACHE / "workspace"


@pytest.fixture(scope="session")
def pico() -> Callable[..., Loaded]:
    """Builds a pico model: `pico("llama", kv_heads=6, attention_bias=True)`."""
    return make_pico


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`slim …` as the user runs it, within this process: exit code, output, errors."""
    return in_process(monkeypatch, capfd)


@pytest.fixture
def small_disk() -> Callable[[Path], AbstractContextManager[bool]]:
    """Makes a folder a disk of a few MB for the length of a block, and says whether that was allowed here."""
    return _mounted


@contextmanager
def _mounted(folder: Path) -> Iterator[bool]:
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    real = subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield real
    finally:
        if real:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fault matrix as a table: the state that each kind of job was in after each fault."""
    reports = [one for outcome in ("passed", "failed") for one in terminalreporter.getreports(outcome)]
    cells = {
        (kind, fault): f"{state}{'' if report.passed else ' (!)'}"
        for report in reports
        for name, value in report.user_properties
        if name == "fault"
        for kind, fault, state in [value]
    }
    if not cells:
        return
    kinds, faults = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    terminalreporter.section("jobs after faults")
    widths = [max(map(len, [fault, *(cells.get((kind, fault), "") for kind in kinds)])) for fault in faults]
    first = max(map(len, kinds))
    lines = [("", faults), *((kind, [cells.get((kind, fault), "") for fault in faults]) for kind in sorted(kinds))]
    for kind, row in lines:
        told = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        terminalreporter.write_line(f"{kind.ljust(first)}  {told}".rstrip())


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Every stage of a pico model in a workspace of its own, made once."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        return make_pipeline(folder / "workspace", folder / "model")


@pytest.fixture
def made(whole: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pipeline]:
    """The same in its place, which a test may change: it is put back afterwards."""
    home = whole.calibration.parent.parent
    monkeypatch.setenv("SLIM_HOME", str(home))
    shutil.copytree(home, tmp_path / "kept", symlinks=True)
    yield whole
    shutil.rmtree(home)
    shutil.move(tmp_path / "kept", home)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser; without one the tests that ask for it are left out, and say so."""
    path = system_browser() or playwright_browser()
    if path is None:
        pytest.skip("no browser can be had here")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        expect.set_options(timeout=PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def app(workspace: Path) -> Iterator[str]:
    """The address of the dashboard, served from the repository."""
    with served(workspace) as address:
        yield address


@pytest.fixture
def visitor(browser: Browser, app: str) -> Iterator[Visitor]:
    """A visitor of the app whose browser went nowhere else and saw no error."""
    person = Visitor(browser, app)
    yield person
    assert person.hosts <= {"127.0.0.1", ""}
    assert person.page.get_by_test_id("stException").count() == 0
    person.context.close()
