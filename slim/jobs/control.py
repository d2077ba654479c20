"""Starting, watching and stopping jobs from the page or the command line."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from slim import workspace
from slim.jobs.store import UNFINISHED, Job, JobStore

PATIENCE = 2.0
"""Seconds a cancelled worker has to end by itself before it is killed."""
STARTING = 10.0
"""Seconds in which a new job may lack a process."""


def start(kind: str, **arguments: Any) -> Job:
    """A new job in a worker process that outlives the caller. Jobs of one workspace run one after another."""
    job = Job(id=uuid.uuid4().hex[:12], kind=kind, arguments=arguments, created=time.time())
    with JobStore() as store:
        store.put(job)
        with (store.folder / f"{job.id}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "slim.jobs.worker", job.id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SLIM_HOME": str(workspace.home())},
                start_new_session=True,
            )
        return store.update(job.id, pid=worker.pid, pid_started=_start_time(worker.pid)) or job


def state_of(job_id: str) -> Job | None:
    """The job as it truly stands: one whose worker is gone is not left running."""
    with JobStore() as store:
        job = store.get(job_id)
        return None if job is None else _settled(store, job)


def jobs(kind: str | None = None) -> list[Job]:
    """The jobs of the workspace, newest first, as they truly stand."""
    with JobStore() as store:
        return [_settled(store, job) for job in store.all() if kind in (None, job.kind)]


def cancel(job_id: str) -> Job | None:
    """Stops a job: asked first, killed after two seconds. Finished jobs stay as they are."""
    with JobStore() as store:
        job = store.update(job_id, state="cancelling", message="Cancelling")
        if job is None or job.state != "cancelling":
            return job
        deadline = time.monotonic() + PATIENCE
        _signal(job, signal.SIGTERM)
        while _alive(job) and time.monotonic() < deadline:
            time.sleep(0.05)
        if _alive(job):
            _signal(job, signal.SIGKILL)
        return store.update(job_id, only_if=("cancelling",), state="cancelled", ended=time.time(), message="Cancelled")


def forget(job_id: str) -> None:
    """Takes a finished job off the list."""
    with JobStore() as store:
        job = store.get(job_id)
        if job is not None and not _settled(store, job).unfinished:
            store.delete(job_id)
            (store.folder / f"{job_id}.log").unlink(missing_ok=True)


def log_of(job_id: str) -> str:
    """What the worker printed, its last lines."""
    path: Path = workspace.subfolder("jobs") / f"{job_id}.log"
    return path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.exists() else ""


def _settled(store: JobStore, job: Job) -> Job:
    if not job.unfinished or _alive(job) or (job.pid is None and time.time() - job.created < STARTING):
        return job
    if job.state == "cancelling":
        changes: dict[str, Any] = {"state": "cancelled", "message": "Cancelled"}
    else:
        reason = "its worker process ended without a word (killed, or out of memory): start it again."
        changes = {"state": "failed", "error": reason, "message": "Failed"}
    return store.update(job.id, only_if=UNFINISHED, ended=time.time(), **changes) or job


def _start_time(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _alive(job: Job) -> bool:
    if job.pid is None:
        return False
    try:
        process = psutil.Process(job.pid)
        same = job.pid_started is None or abs(process.create_time() - job.pid_started) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(job: Job, number: signal.Signals) -> None:
    if job.pid is not None and _alive(job):
        try:
            os.killpg(job.pid, number)
        except ProcessLookupError:
            return
