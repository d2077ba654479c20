"""Jobs in real worker processes: done, failed, cancelled, killed, and one after another."""

import os
import pickle
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from slim import jobs
from slim.calibration.calibrate import calibrate
from slim.calibration.record import load_calibration
from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.core.reporter import remaining_seconds
from slim.jobs import Job, reporter, worker
from slim.jobs.queue import log_of
from slim.jobs.store import JobStore
from slim.models.load import load_model
from slim.planning.files import load_plan, save_plan
from slim.planning.threshold import plan_by_threshold
from slim.recovery.request import PruneRequest
from tests.pico import make_pico, save_pico
from tests.waiting import ended, gone, wait_for

SMALL = {"samples": 4, "max_length": 48, "device": "cpu"}
STAND_INS = ("other", "lost", "fresh", "alive")
"""Records without a worker of their own: one carries this process's number."""
ENDLESS = {"samples": 234, "draws": 200, "batch_size": 1, "max_length": 320, "device": "cpu"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A llama's folder."""
    folder = tmp_path_factory.mktemp("jobs") / "model"
    save_pico(make_pico("llama"), folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_worker_outlives_its_test(own_workspace: Path) -> Iterator[None]:
    """A job goes on without whoever started it, so a test that fails in the middle must stop its own."""
    yield
    for job in jobs.jobs():
        if job.id not in STAND_INS:
            jobs.cancel(job.id)


def started(model: str, settings: dict[str, Any], dataset: str = "bundled:triage") -> Job:
    """A calibration in a worker of its own."""
    return jobs.start(asked(model, settings, dataset))


def asked(model: str, settings: dict[str, Any], dataset: str = "bundled:triage") -> CalibrateRequest:
    return CalibrateRequest.asked(model=model, dataset=dataset, **settings)


def leftovers(workspace: Path) -> list[Path]:
    """Partial folders and files anywhere below the workspace, and calibrations."""
    return [*workspace.rglob("*.partial-*"), *workspace.glob("calibrations/*")]


def test_jobs_run_one_after_another_and_give_what_loads(model: str, own_workspace: Path) -> None:
    """A calibration, one that starts only when the first has written its record, then the pruning of what it found."""
    first = started(model, {**SMALL, "samples": 60, "draws": 8})
    assert first.state == "queued"
    wait_for(first, lambda job: job.state == "running")
    second = started(model, SMALL, "bundled:poems")
    seen: list[Job] = []

    def watch(job: Job) -> bool:
        seen.append(job)
        return ended(job)

    done = wait_for(first, watch)
    assert done.state == "done", log_of(first.id)
    assert done.result is not None
    assert done.fraction == 1
    fractions = [job.fraction for job in seen if job.state == "running"]
    assert fractions == sorted(fractions)
    assert any(0 < fraction < 1 for fraction in fractions)
    assert {job.message for job in seen} >= {"Watching every head and sketching the loss", "Done"}
    calibration = load_calibration(Path(done.result))
    assert calibration.facts.settings.samples == 60
    assert Path(done.result).is_relative_to(own_workspace)

    failed = wait_for(second, ended)
    assert failed.state == "failed"
    assert failed.error == (
        "dataset 'bundled:poems' is not bundled: choose bundled:briefs, bundled:triage, bundled:everyday or "
        "bundled:general."
    )
    assert failed.result is None
    assert failed.started is not None
    assert (Path(done.result) / "record.json").stat().st_mtime <= failed.started

    plan_file = save_plan(plan_by_threshold(calibration, 0.7), own_workspace / "plan.json")
    pruned = wait_for(jobs.start(PruneRequest.asked(plan=plan_file)), ended)
    assert pruned.state == "done", log_of(pruned.id)
    assert pruned.result is not None
    loaded = load_model(pruned.result, device="cpu")
    kept = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert kept == load_plan(plan_file).after.parameters

    assert [job.id for job in jobs.jobs()] == [pruned.id, second.id, first.id]
    assert [job.id for job in jobs.jobs("prune")] == [pruned.id]
    assert jobs.cancel(first.id) == jobs.state_of(first.id)
    jobs.forget(first.id)
    assert jobs.state_of(first.id) is None
    assert jobs.cancel(first.id) is None


def test_a_check_is_a_job(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result is the calibration, which then holds what was measured; its progress is written."""
    made = calibrate(asked(model, SMALL))
    steps: list[str] = []
    update = JobStore.update

    def watch(self: JobStore, job_id: str, **changes: Any) -> Job | None:
        steps.append(changes.get("message", ""))
        return update(self, job_id, **changes)

    monkeypatch.setattr(worker.signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(reporter, "WRITE_EVERY", 0)
    request = CheckRequest.asked(calibration=made, samples=2, heads=5, weights={"variance": 1.0})
    with JobStore() as store:
        store.put(Job(id="a", kind="check", arguments=request.arguments(), created=time.time()))
        monkeypatch.setattr(JobStore, "update", watch)
        assert worker.run("a") == 0
        job = store.get("a")
    assert job is not None
    assert (job.state, job.result) == ("done", str(made.path))
    assert {"Ablating single heads", "Following each criterion", "Done"} <= set(steps)
    check = load_calibration(Path(job.result or "")).check
    assert check is not None
    assert (check.rows, len(check.heads), check.weights) == (2, 5, {"variance": 1.0})


def test_cancelling_ends_the_worker_and_leaves_nothing(model: str, own_workspace: Path) -> None:
    """Whether it runs or waits for its turn; the process is gone when cancel returns, or just after its kill."""
    running = wait_for(started(model, ENDLESS), lambda job: job.state == "running" and job.done > 0)
    waiting = wait_for(started(model, SMALL), lambda job: job.message == "Waiting for its turn")
    assert (waiting.state, waiting.pid) == ("queued", None)
    for job in (waiting, running):
        jobs.forget(job.id)
        cancelled = jobs.cancel(job.id)
        assert cancelled is not None
        assert cancelled.state == "cancelled"
        assert cancelled.error is None
        wait_for(job, lambda found: found.pid is None or gone(found.pid))
        after = jobs.state_of(job.id)
        assert after is not None
        assert after.state == "cancelled"
        assert after.result is None
    assert leftovers(own_workspace) == []


def test_a_killed_worker_is_a_failed_job_whose_work_is_not_lost(
    model: str, own_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is reported, nothing half is left, the device is free, and the same job goes on where it was killed.

    Its record is that of a run that was never interrupted, in a workspace of its own.
    """
    settings = {"samples": 20, "max_length": 64, "draws": 60, "batch_size": 1, "device": "cpu"}
    killed = wait_for(started(model, settings), lambda job: job.state == "running" and job.fraction > 0.3)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    after = wait_for(killed, ended)
    assert after.state == "failed"
    assert after.error is not None
    assert "start it again" in after.error
    assert after.ended is not None
    assert leftovers(own_workspace) == []
    following = wait_for(started(model, settings), ended)
    assert following.state == "done", log_of(following.id)
    assert following.result is not None
    resumed = load_calibration(Path(following.result))
    assert 0.25 < resumed.facts.reused < 1

    monkeypatch.setenv("SLIM_HOME", str(tmp_path / "another"))
    whole = calibrate(asked(model, settings))
    assert whole.facts.reused == 0
    left, right = (c.facts.model_dump(exclude={"started", "seconds", "reused"}) for c in (resumed, whole))
    assert left == right
    for name, levels in whole.estimates.items():
        for level, estimate in levels.items():
            for part in ("value", "low", "high"):
                found, expected = (getattr(e, part) for e in (resumed.estimates[name][level], estimate))
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert resumed.sketch is not None
    assert whole.sketch is not None
    np.testing.assert_allclose(resumed.sketch.scores, whole.sketch.scores, rtol=1e-3, atol=1e-4)


def test_a_job_whose_number_another_process_has_now_is_not_running(own_workspace: Path) -> None:
    """The worker is identified by its start too; and a job that never got a process fails in time."""
    common = {"kind": "calibrate", "arguments": {}, "state": "running"}
    with JobStore() as store:
        store.put(Job(id="other", created=time.time(), pid=os.getpid(), pid_started=1.0, **common))
        store.put(Job(id="lost", created=time.time() - 60, **common))
        store.put(Job(id="fresh", created=time.time(), **common))
        own = psutil.Process().create_time()
        store.put(Job(id="alive", created=time.time(), pid=os.getpid(), pid_started=own, **common))
    states = {job.id: job.state for job in jobs.jobs()}
    assert states == {"other": "failed", "lost": "failed", "fresh": "running", "alive": "running"}


def test_a_finished_job_is_not_written_again(own_workspace: Path) -> None:
    """A late word of the worker changes nothing."""
    with JobStore() as store:
        store.put(Job(id="a", kind="calibrate", arguments={}, created=0, state="cancelled"))
        after = store.update("a", state="done", result="somewhere")
    assert after is not None
    assert (after.state, after.result) == ("cancelled", None)


@pytest.mark.parametrize(("done", "total", "fraction", "rest"), [(0, 4, 0, None), (1, 4, 0.25, 30), (5, 4, 1, 0)])
def test_progress_tells_the_share_and_the_rest(done: float, total: float, fraction: float, rest: float | None) -> None:
    """At the pace so far, ten seconds after the start; unknown before anything is done."""
    job = Job(id="a", kind="calibrate", arguments={}, created=0, done=done, total=total)
    assert job.fraction == fraction
    assert remaining_seconds(10, done, total) == rest
    assert job.remaining(110) is None


def test_a_pickle_among_the_jobs_is_not_loaded(tmp_path: Path) -> None:
    """Neither as a key nor as a value; the other jobs are still there."""
    trap, planted = tmp_path / "loaded", pickle.dumps(_Trap(str(tmp_path / "loaded")))
    with JobStore() as store:
        store.put(Job(id="mine", kind="calibrate", arguments={}, created=1.0))
        file = store.folder / "store" / "cache.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute(
            "INSERT INTO Cache (key, raw, store_time, access_time, access_count, size, mode, value) "
            "VALUES (?, 0, 0, 0, 0, 0, 4, ?)",
            (planted, planted),
        )
        database.commit()
    with JobStore() as store:
        assert [job.id for job in store.all()] == ["mine"]
    assert not trap.exists()


class _Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)
