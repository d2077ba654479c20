"""The list of jobs on a page, and the verbs of the command line that do the same."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from streamlit.testing.v1 import AppTest

from slim import jobs
from slim.jobs import Job
from slim.jobs.devices import hold
from slim.jobs.job import SILENT
from slim.jobs.store import JobStore
from tests import APP
from tests.commands import Run
from tests.gguf_files import GPT2, trained
from tests.pico import make_pico, save_pico


@pytest.fixture
def here(own_workspace: Path) -> Iterator[Path]:
    """A workspace with a job in each state, whose queue nobody works off."""
    now, own = time.time(), {"pid": os.getpid(), "pid_started": psutil.Process().create_time()}
    with JobStore() as store:
        held = hold(store.folder, "runner", "cpu")
        assert held is not None
        put(
            store,
            "aa-running",
            "calibrate",
            {"model": "bundled:smollm2-135m"},
            state="running",
            started=now - 60,
            paced=now - 60,
            done=1,
            total=4,
            message="Sketching the loss",
            memory=2e9,
            peak=3e9,
            beat=now,
            **own,
        )
        put(store, "xb-first", "evaluate", {"checkpoints": ["/x/small"]}, place=1)
        put(store, "xc-second", "judge", {"pruned": "/x/small"}, place=2, origin="command line")
        put(
            store,
            "cc-failed",
            "repair",
            {"source": "/x/small"},
            state="failed",
            started=1.0,
            ended=2.0,
            error="why: do",
        )
        put(store, "dd-stopped", "finetune", {"source": "/x/small"}, state="cancelled", started=1.0, ended=2.0)
        exported = {"source": "/x/small", "output": "/x/small.gguf"}
        put(store, "ee-done", "export", exported, state="done", started=1.0, ended=2.0, result="/x")
        (store.folder / "cc-failed.log").write_text("the last line")
    yield own_workspace
    with JobStore() as store:
        store.delete("aa-running")
    for job in jobs.jobs():
        jobs.cancel(job.id)
    os.close(held)


def put(store: JobStore, name: str, kind: str, arguments: dict[str, Any], **more: Any) -> None:
    store.put(Job.model_validate({"id": name, "kind": kind, "arguments": arguments, "created": 1.0} | more))


def written(name: str) -> str:
    """The state of a job in the list itself."""
    with JobStore(read_only=True) as store:
        job = store.get(name)
    assert job is not None
    return job.state


def page() -> None:
    from pages.views.jobs_view import show_jobs

    show_jobs()


def opened() -> AppTest:
    found = AppTest.from_function(page, default_timeout=60).run()
    assert not found.exception
    return found


def press(found: AppTest, key: str) -> AppTest:
    found.button(key=f"jobs-{key}").click().run()
    assert not found.exception
    return found


def keys(found: AppTest) -> list[str]:
    return [str(button.key).removeprefix("jobs-") for button in found.button]


def test_every_job_is_shown_with_what_can_be_done(here: Path) -> None:
    """Running, queued (in their order) and ended jobs; each with its figures and its own buttons."""
    found = opened()
    titles = [text.value for text in found.markdown if str(text.value).startswith("**")]
    assert titles == [
        "**Calibrate smollm2-135m**",
        "**Evaluate small**",
        "**Judge small**",
        "**Repair small**",
        "**Finetune small**",
        "**Export small**",
    ]
    said = [str(text.value) for text in found.caption]
    assert "2,000 MB now" in said[0]
    assert "3,000 MB at most" in said[0]
    assert "next in the queue" in said[1]
    assert "1 before it in the queue" in said[2]
    assert "from the command line" in said[2]
    assert "goes on from there" in said[4]
    assert [error.value for error in found.error] == ["Why: do"]
    assert keys(found) == [
        "cancel-aa-running",
        "cancel-xb-first",
        "move-up-xc-second",
        "cancel-xc-second",
        "again-cc-failed",
        "delete-cc-failed",
        "go-on-dd-stopped",
        "delete-dd-stopped",
        "again-ee-done",
        "delete-ee-done",
        "clear",
    ]


def test_the_buttons_do_what_they_say(here: Path) -> None:
    """Each is followed by the list as it then stands."""
    found = press(opened(), "move-up-xc-second")
    assert keys(found)[1:3] == ["cancel-xc-second", "move-up-xb-first"]
    press(found, "cancel-xb-first")
    found = press(found, "go-on-dd-stopped")
    (new,) = [job for job in jobs.jobs() if job.repeats]
    assert (new.repeats, new.kind, new.state, new.origin) == ("dd-stopped", "finetune", "queued", "page")
    found = press(found, "delete-ee-done")
    assert jobs.state_of("ee-done") is None
    press(found, "clear")
    assert {job.state for job in jobs.jobs()} == {"running", "queued"}


def test_a_job_that_does_not_answer_is_told_apart(here: Path) -> None:
    """By its badge, and in the table of the command line."""
    with JobStore() as store:
        store.update("aa-running", beat=time.time() - SILENT - 1)
    assert any("Not answering" in str(text.value) for text in opened().markdown)


def test_a_job_that_this_slim_cannot_read_is_listed(here: Path) -> None:
    """One of a newer Slim on the same workspace: by its kind, with its buttons, and nothing is claimed of it."""
    with JobStore() as store:
        for name, kind in (("newer-kind", "transfer"), ("newer-option", "calibrate")):
            put(store, name, kind, {"horizon": 3}, state="cancelled", started=1.0, ended=2.0)
    found = opened()
    titles = [text.value for text in found.markdown if str(text.value).startswith("**")]
    assert {"**Transfer**", "**Calibrate**"} <= set(titles)
    assert {"again-newer-kind", "again-newer-option"} <= set(keys(found))
    press(found, "again-newer-option")
    assert not [job for job in jobs.jobs() if job.repeats]


def test_a_training_is_paused_and_an_end_that_nobody_wrote_is_written(here: Path) -> None:
    """Asking for jobs writes nothing; a run of any page does, and so does the list."""
    with JobStore() as store:
        put(store, "ff-training", "finetune", {"folder": "/x/small"}, place=3)
        gone = {"pid": os.getpid(), "pid_started": 1.0}
        for name in ("gg-gone", "hh-gone"):
            put(store, name, "evaluate", {"checkpoints": ["/x/small"]}, state="running", started=1.0, **gone)
            assert [job.state for job in jobs.jobs() if job.id == name] == ["failed"]
            assert written(name) == "running"
            found = opened() if name == "gg-gone" else AppTest.from_file(APP, default_timeout=60).run()
            assert not found.exception
            assert written(name) == "failed"
    assert "pause-ff-training" in keys(opened())


def test_without_jobs_it_says_so(own_workspace: Path) -> None:
    """And looks for them again."""
    assert "no jobs yet" in str(opened().info[0].value)


def test_the_verbs(here: Path, run: Run) -> None:
    """They name a job by the start of its id, and refuse what cannot be in one sentence."""
    code, out, _ = run("jobs")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines() if "cpu" in line] == [
        "aa-runni",
        "xb-first",
        "xc-secon",
        "cc-faile",
        "dd-stopp",
        "ee-done",
    ]
    assert "25% Sketching the loss, about 1" in out
    listed = json.loads(run("jobs", "list", "--json").out)["jobs"]
    assert [job["state"] for job in listed] == ["running", "queued", "queued", "failed", "cancelled", "done"]
    assert "why: do" in run("jobs", "show", "cc").out
    assert json.loads(run("jobs", "show", "aa", "--json").out)["fraction"] == 0.25
    assert run("jobs", "log", "cc").out == "the last line"
    assert json.loads(run("jobs", "move", "xc", "--json").out)["id"] == "xc-second"
    assert json.loads(run("jobs", "list", "--json").out)["jobs"][1]["id"] == "xc-second"
    assert run("jobs", "move", "xc", "--before", "aa").code == 2
    assert "xb-first is cancelled" in run("jobs", "cancel", "xb").out
    assert json.loads(run("jobs", "again", "dd", "--json").out)["origin"] == "command line"
    assert run("jobs", "delete", "ee-").code == 0  # the id of the new job may begin with two of these letters
    for words, said in (
        (("cancel", "cc-"), "job='cc-failed': it is failed"),
        (("delete", "aa-"), "job='aa-running': it is running"),
        (("again", "aa-"), "is not over"),
        (("show", "x"), "job='x': 2 jobs match (xb-first, xc-second …)"),
        (("log", "ee-"), "job='ee-': it is not in the workspace"),
    ):
        code, _, err = run("jobs", *words)
        assert code == 2
        assert said in " ".join(err.split())


def test_a_verb_leaves_a_record_that_can_be_done_again(
    own_workspace: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder too; a failed one with its reason; and no key is kept, wherever it stood."""
    monkeypatch.setenv("SLIM_JUDGE_KEY", "sk-secret")
    loaded = replace(make_pico("llama", vocab_size=324), tokenizer=trained(GPT2))  # an export needs merges
    save_pico(loaded, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert run("export", "model", "--output", "model.gguf").code == 0
    assert run("export", "nowhere", "--output", "other.gguf").code == 2
    judged = ("judge", "--pruned", "model", "--original", "model", "--endpoint")
    assert run(*judged, "http://me:sk-secret@127.0.0.1:9/v1").code == 2
    assert run(*judged, "http://127.0.0.1:9/v1", "--dataset", "bundled:triage", "--samples", "2").code == 1
    judge, failed, done = jobs.jobs()
    assert (done.state, done.origin, done.attached, done.device) == ("done", "command line", True, "cpu")
    assert done.result == str(Path("model.gguf"))
    assert done.arguments == {
        "folder": str(tmp_path / "model"),
        "output": str(tmp_path / "model.gguf"),
    }
    assert (failed.state, failed.kind) == ("failed", "export")
    assert "'nowhere' was not found" in (failed.error or "")
    assert (judge.kind, judge.state) == ("judge", "failed")
    kept = b"".join(path.read_bytes() for path in (own_workspace / "jobs").rglob("*") if path.is_file())
    assert b"sk-secret" not in kept
