"""Starting, watching, ordering and stopping jobs from the page or the command line."""

import os
import signal
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from slim.core import workspace
from slim.core.errors import InputError
from slim.core.paths import CONFINED
from slim.jobs.devices import device_of, hold
from slim.jobs.failures import GONE
from slim.jobs.job import UNFINISHED, Job, Origin, over
from slim.jobs.process import is_alive, spawn, tell
from slim.jobs.store import JobStore, StoreFull

PATIENCE = 2.0
"""Seconds a cancelled worker has to end by itself before it is killed."""
KILLED = 2.0
"""Seconds that the system has to remove what was killed."""
STARTING = 10.0
"""Seconds in which a new job may lack a process."""


def start(kind: str, *, origin: Origin = "page", **arguments: Any) -> Job:
    """A new job at the end of its device's queue. Its process, once it has one, outlives the caller."""
    with JobStore() as store:
        job = store.put(new_job(kind, arguments, origin=origin))
        ensure_runner(store, job.device)
        return job


def again(job_id: str, *, origin: Origin = "page") -> Job:
    """A new job with the arguments of one that is over. Raises InputError for one that is not."""
    with JobStore() as store:
        job = _over(store, job_id, "done again")
        new = store.put(new_job(job.kind, job.arguments, origin=origin, repeats=job.id))
        ensure_runner(store, new.device)
        return new


def new_job(kind: str, arguments: dict[str, Any], **more: Any) -> Job:
    """A job that stands last in its queue."""
    now = time.time()
    device = device_of(kind, arguments)
    more["confined"] = os.environ.get(CONFINED, "")
    return Job(id=uuid.uuid4().hex[:12], kind=kind, arguments=arguments, device=device, created=now, place=now, **more)


def state_of(job_id: str) -> Job | None:
    """The job as it truly stands: one whose worker is gone is not left running."""
    with JobStore() as store:
        job = store.get(job_id)
        if job is None:
            return None
        job = settled(store, job)
        if job.state == "queued" and not job.attached:
            ensure_runner(store, job.device)
        return job


def jobs(kind: str | None = None) -> list[Job]:
    """The jobs of the workspace, newest first, as they truly stand."""
    with JobStore() as store:
        found = [settled(store, job) for job in store.all()]
        for device in {job.device for job in found if job.state == "queued" and not job.attached}:
            ensure_runner(store, device)
    return [job for job in found if kind in (None, job.kind)]


def in_order(found: list[Job]) -> list[Job]:
    """What runs first, then what waits in its order, then what is over, the newest first."""
    running = [job for job in found if job.state in ("running", "cancelling")]
    waiting = sorted((job for job in found if job.state == "queued"), key=turn_of)
    return [*running, *waiting, *(job for job in found if not job.unfinished)]


def turn_of(job: Job) -> tuple[float, float, str]:
    """By which jobs of a queue are ordered, the least first."""
    return job.place, job.created, job.id


def queue_of(store: JobStore, device: str) -> list[Job]:
    """The jobs that wait for a device, the next one first. A command that was halted is passed over."""
    found = [settled(store, job) for job in store.all() if job.state == "queued" and job.device == device]
    waiting = [job for job in found if job.state == "queued" and not (job.attached and job.silent())]
    return sorted(waiting, key=turn_of)


def move(job_id: str, before: str | None = None) -> Job:
    """Puts a queued job before another of its queue, or first. Raises InputError where one of them is not queued."""
    with JobStore() as store:
        job = store.get(job_id)
        if job is None or job.state != "queued":
            raise InputError(f"job {job_id!r} is not queued: only what waits can be moved.")
        others = [one for one in queue_of(store, job.device) if one.id != job_id]
        if before is None:
            place = others[0].place - 1 if others else job.place
        else:
            index = next((number for number, one in enumerate(others) if one.id == before), None)
            if index is None:
                raise InputError(f"before={before!r}: it does not wait for {job.device}: name a job that does.")
            ahead = others[index - 1].place if index else others[index].place - 2
            place = (ahead + others[index].place) / 2
        return store.update(job_id, only_if=("queued",), place=place) or job


def cancel(job_id: str) -> Job | None:
    """Stops a job: asked first, killed after two seconds. Finished jobs stay as they are."""
    with JobStore() as store:
        job = store.update(job_id, only_if=("queued",), **over("cancelled"))
        if job is None or not job.unfinished:
            return job  # a command that waits sees this for itself
        job = store.update(job_id, only_if=("running",), state="cancelling", message="Cancelling")
        if job is None or not job.unfinished:
            return job
        tell(job, signal.SIGTERM)
        if not _is_gone(job, PATIENCE):
            tell(job, signal.SIGKILL)
            _is_gone(job, KILLED)
        clean(job)
        return store.update(job_id, only_if=("cancelling",), **over("cancelled"))


def forget(job_id: str) -> None:
    """Takes a finished job off the list, with its log."""
    with JobStore() as store:
        job = store.get(job_id)
        if job is not None and not settled(store, job).unfinished:
            store.delete(job_id)
            log_path(store, job_id).unlink(missing_ok=True)


def log_of(job_id: str, most: int = 4000) -> str:
    """What the worker printed, its last `most` characters."""
    path = workspace.subfolder("jobs") / f"{job_id}.log"
    return path.read_text(encoding="utf-8", errors="replace")[-most:] if path.exists() else ""


def log_path(store: JobStore, job_id: str) -> Path:
    return store.folder / f"{job_id}.log"


def settled(store: JobStore, job: Job) -> Job:
    """The job as it truly stands, written where that is possible."""
    if not job.unfinished or (job.state == "queued" and job.pid is None) or is_alive(job):
        return job
    if job.pid is None and time.time() - (job.started or job.created) < STARTING:
        return job
    job = store.get(job.id) or job  # it may have ended since it was read
    return end(store, job, GONE) if job.unfinished else job


def end(store: JobStore, job: Job, reason: str) -> Job:
    """Writes the end of a job whose process is gone without having done so, and removes what it left half written."""
    clean(job)
    changes = over("cancelled") if job.state == "cancelling" else over("failed", error=reason)
    try:
        return store.update(job.id, only_if=UNFINISHED, **changes) or job
    except StoreFull:
        return job.model_copy(update=changes)


def clean(job: Job) -> None:
    """Removes what processes that are gone left half written where the job could write."""
    output = job.arguments.get("output")
    folders = [path for path in workspace.home().iterdir() if path.is_dir()]
    for folder in [*folders, *([Path(output).parent] if isinstance(output, str) else [])]:
        workspace.sweep(folder)


def ensure_runner(store: JobStore, device: str) -> None:
    """Starts the process that works off the queue of a device, unless one is at it."""
    lock = hold(store.folder, "runner", device)
    if lock is None:
        return
    try:
        with suppress(OSError), (store.folder / "runner.log").open("ab") as log:
            process = spawn("slim.jobs.runner", device, str(lock), log=log, keep=lock)
            threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie
    finally:
        os.close(lock)


def _over(store: JobStore, job_id: str, what: str) -> Job:
    job = store.get(job_id)
    if job is None:
        raise InputError(f"job {job_id!r} is not in the workspace: `slim jobs` lists what is.")
    if settled(store, job).unfinished:
        raise InputError(f"job {job_id!r} is not over and cannot be {what}: cancel it, or wait for it.")
    return job


def _is_gone(job: Job, seconds: float) -> bool:
    """Whether the process of a job ended within so many seconds."""
    deadline = time.monotonic() + seconds
    while alive := is_alive(job):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    return not alive
