"""Paths that people type, records that name paths, and folders that hold links: nothing outside is looked at."""

import os
import time
from pathlib import Path

import pytest

from slim import jobs
from slim.calibration.request import CalibrateRequest
from slim.core import paths
from slim.core.errors import InputError
from slim.core.run_index import remember
from slim.data import sources, uploads
from slim.models import tokenizer
from slim.models.load import load_model, locate
from slim.planning.files import load_plan
from slim.pruning.checkpoint import prune
from slim.serving import push
from tests.pico import keeping, make_pico, plan_of, save_pico

KEEP = keeping((0, 1, 2), *((tuple(range(6)),) * 3))
OUTSIDE = "outside the folders"
PATIENCE = 120.0
"""Seconds after which a test gives up; nothing is asserted about time."""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Paths as a shared dashboard has them: the workspace, and the folder that comes back."""
    (tmp_path / "given").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    monkeypatch.setenv("SLIM_FOLDERS", str(tmp_path / "given"))
    monkeypatch.chdir(tmp_path / "secret")
    paths.confine(shared=True)
    return tmp_path / "given"


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "/etc/nothing-there.jsonl",
        "rows.jsonl",
        "./rows.jsonl",
        "../secret/rows.jsonl",
        "{given}/../secret/rows.jsonl",
        "{given}/away/rows.jsonl",
        "{given}/link.jsonl",
        "{given}/dangling.jsonl",
        "~/.ssh/id_ed25519",
        "~",
        "~root/rows.jsonl",
        "/proc/self/environ",
        "/proc/self/cwd/rows.jsonl",
        "{given}/../given-too/rows.jsonl",
        "//etc/passwd",
        "..",
        "/",
    ],
)
def test_what_lies_elsewhere_is_not_looked_at(shared: Path, text: str) -> None:
    """Absolute, relative, above, at home, behind links, or not even there; and the same with a model and a dataset."""
    (shared / "away").symlink_to(shared.parent / "secret")
    (shared / "link.jsonl").symlink_to(shared.parent / "secret" / "rows.jsonl")
    (shared / "dangling.jsonl").symlink_to("/nowhere/rows.jsonl")
    (shared.parent / "given-too").mkdir()
    named = text.format(given=shared)
    for look in (paths.local, locate, sources.open_source, sources.is_hub_id, tokenizer.at_hand):
        with pytest.raises(InputError, match=f"{OUTSIDE}|can be no path"):
            look(named)


@pytest.mark.parametrize("text", ["{given}/rows.jsonl", "{given}/deep/../rows.jsonl", "{given}/inside.jsonl"])
def test_what_lies_inside_is_read(shared: Path, text: str) -> None:
    """Through a link as well, where that stays inside; and the workspace always."""
    (shared / "deep").mkdir()
    (shared / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (shared / "inside.jsonl").symlink_to(shared / "rows.jsonl")
    assert len(list(sources.open_source(text.format(given=shared)).rows())) == 1
    upload = uploads.keep_upload("rows.jsonl", b'{"a": "b"}\n')
    assert paths.local(str(upload)) == upload


@pytest.mark.parametrize("name", ["bundled:briefs", "owner/name", "squad", "a.b/c-d_e"])
def test_names_are_no_paths(shared: Path, name: str) -> None:
    """Of bundled things and of the Hub, where nothing here has such a name."""
    assert paths.local(name) == Path(name)


def test_the_own_dashboard_reads_its_users_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their home and the current folder, and no others."""
    for name in ("home", "here", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.txt").write_text("a\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SLIM_FOLDERS", "")
    monkeypatch.chdir(tmp_path / "here")
    paths.confine(shared=False)
    assert paths.local("~/rows.txt").read_text() == "a\n"
    assert paths.local("rows.txt").read_text() == "a\n"
    with pytest.raises(InputError, match=OUTSIDE):
        paths.local("../other/rows.txt")
    paths.confine(shared=True)
    for text in ("~/rows.txt", "rows.txt"):
        with pytest.raises(InputError, match=OUTSIDE):
            paths.local(text)


def test_the_command_line_names_any_path(tmp_path: Path) -> None:
    """It is the machine of who types."""
    (tmp_path / "rows.txt").write_text("a\n")
    assert paths.local("/etc/passwd") == Path("/etc/passwd")
    assert paths.local(str(tmp_path / "rows.txt")).read_text() == "a\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rows\0.txt", "null character"),
        ("~nobody-of-that-name/rows", "can be no path"),
        ("\ud800.txt", "can be no path"),
        ("x" * 5000, "cannot be looked at"),
        ("https://me:password@host/rows.csv", "a URL is not fetched"),
        ("file:///etc/passwd", "a URL is not fetched"),
        ("/dev/zero", "neither a file nor a folder"),
        ("{tmp}/pipe.jsonl", "neither a file nor a folder"),
    ],
)
def test_what_can_be_no_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    """On the command line too; a pipe would be waited for, and a URL may hold a password."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    for look in (paths.local, locate, sources.open_source):
        with pytest.raises(InputError, match=words) as refused:
            look(text.format(tmp=tmp_path))
        assert "password" not in str(refused.value)


def test_a_folder_of_the_system_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where all of the disk was given."""
    monkeypatch.setenv("SLIM_FOLDERS", "/")
    paths.confine(shared=True)
    assert paths.local(str(tmp_path)) == tmp_path
    for text in ("/proc/self/environ", "/sys/kernel", "/dev/shm"):
        with pytest.raises(InputError, match=OUTSIDE):
            paths.local(text)


def test_a_model_folder_leads_nowhere(shared: Path) -> None:
    """Neither by a link in it to a file elsewhere, nor with a pipe in it."""
    save_pico(make_pico("llama"), shared / "model")
    load_model(str(shared / "model"), device="cpu")
    secret = shared.parent / "secret" / "config.json"
    (shared / "model" / "config.json").rename(secret)
    (shared / "model" / "config.json").symlink_to(secret)
    with pytest.raises(InputError, match=OUTSIDE):
        load_model(str(shared / "model"), device="cpu")
    (shared / "model" / "config.json").unlink()
    secret.rename(shared / "model" / "config.json")
    os.mkfifo(shared / "model" / "extra.safetensors")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        load_model(str(shared / "model"), device="cpu")


def test_a_record_leads_nowhere(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that was brought along and names a model elsewhere is not carried out."""
    with monkeypatch.context() as patch:
        patch.setenv(paths.CONFINED, "")
        facts = save_pico(make_pico("llama"), shared.parent / "secret" / "model").facts
    plan = plan_of(facts, KEEP)
    file = shared / "plan.json"
    file.write_text(plan.model_dump_json())
    with pytest.raises(InputError, match=OUTSIDE):
        prune(load_plan(file), shared / "pruned")
    assert not (shared / "pruned").exists()


def test_a_run_that_the_workspace_knows_may_lie_elsewhere(shared: Path) -> None:
    """Somebody at the command line put it there; what lies beside it is not meant."""
    folder = shared.parent / "secret" / "run"
    folder.mkdir()
    remember(folder, "checkpoint")
    assert paths.local(str(folder)) == folder
    with pytest.raises(InputError, match=OUTSIDE):
        paths.local(str(folder.parent / "rows.jsonl"))


def test_a_worker_is_confined_as_the_dashboard_is(shared: Path) -> None:
    """Starting a job hands the folders on, so that a job's own reading goes by them."""
    made = jobs.start(CalibrateRequest.asked(dataset="/etc/hosts.txt"))
    deadline = time.monotonic() + PATIENCE
    while (job := jobs.state_of(made.id)) and job.unfinished and time.monotonic() < deadline:
        time.sleep(0.1)
    assert job is not None
    assert job.state == "failed"
    assert OUTSIDE in str(job.error)


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/cron.d/rows.csv",
        "..\\..\\rows.csv",
        "/etc/rows.csv",
        "rows\0.csv",
        "<img src=x onerror=alert(1)>.csv",
        "a" * 5000 + ".csv",
        ".csv",
        "..csv",
        "con.csv",
        "-rf.csv",
        "\u202egnp.csv",
        "new\nline.csv",
        "rows.csv/../../x.csv",
        "~root.csv",
        "\ud800.csv",
    ],
)
def test_an_upload_of_any_name_is_kept_in_its_folder(own_workspace: Path, name: str) -> None:
    """Under a name of letters, digits, dots and dashes that is not hidden and fits the disk."""
    path = uploads.keep_upload(name, b"question,answer\nq,a\n")
    assert path.resolve().parent == (own_workspace / "uploads").resolve()
    assert path.suffix == ".csv"
    assert all(sign.isalnum() or sign in "._-" for sign in path.name)
    assert path in uploads.kept_uploads()
    assert path.read_bytes() == b"question,answer\nq,a\n"


@pytest.mark.parametrize("name", ["rows.py", "rows.yaml", "rows.pt", "rows", "rows.csv.exe", "rows.gguf", "x.so"])
def test_an_upload_is_rows(own_workspace: Path, name: str) -> None:
    """Whatever the browser lets through."""
    with pytest.raises(InputError, match=r"name a \.jsonl"):
        uploads.keep_upload(name, b"x")
    assert uploads.kept_uploads() == []


def test_links_are_not_sent_to_the_hub(tmp_path: Path) -> None:
    """A checkpoint with a link in it would send what it leads to."""
    facts = save_pico(make_pico("llama"), tmp_path / "model").facts
    folder = prune(plan_of(facts, KEEP), tmp_path / "small")
    (folder / "notes.txt").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match=r"'notes\.txt' in it is a link"):
        push.plan_upload(folder, "me/small")
