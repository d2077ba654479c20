"""The queue: starts, lists, orders and stops jobs for the page and the command line."""

import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from slim import __version__
from slim.core import workspace
from slim.core.errors import InputError
from slim.core.paths import CONFINED
from slim.core.request import Request
from slim.jobs.devices import device_of, hold
from slim.jobs.executor import executor_of, spawn
from slim.jobs.failures import GONE
from slim.jobs.job import UNFINISHED, Job, Origin, over
from slim.jobs.kinds import KINDS, NOTHING_KEPT, kind_of
from slim.jobs.store import JobStore, StoreFull

PATIENCE = 2.0
"""Seconds that a cancelled worker has to end by itself before it is killed."""
KILLED = 2.0
"""Seconds that the system has to remove a killed process."""
STARTING = 10.0
"""Seconds in which a new job may lack a process."""


def start(request: Request, *, origin: Origin = "page") -> Job:
    """Return a new job at the end of its device's queue. Its process, once it has one, outlives the caller."""
    with JobStore() as store:
        job = store.put(new_job(request, origin=origin))
        _tend(store)
        return job


def again(job_id: str, *, origin: Origin = "page") -> Job:
    """Return a new job with the request of one that is over. Raises InputError for one that is not."""
    with JobStore() as store:
        job = _over(store, job_id, "done again")
        new = store.put(new_job(request_of(job), origin=origin, repeats=job.id))
        _tend(store)
        return new


def request_of(job: Job) -> Request:
    """Return the request of a job. Raises InputError for a kind that this Slim does not have."""
    kind = kind_of(job.kind)
    if kind is None:
        raise InputError(f"job={job.id!r}: Slim {__version__} has no jobs of kind {job.kind!r}; update Slim.")
    return kind.request.of_job(job.arguments)


def new_job(request: Request, **more: Any) -> Job:
    """Return a job that is last in its queue, and is not in the list yet."""
    now, device = time.time(), device_of(KINDS[request.verb].device(request))
    return Job(
        id=uuid.uuid4().hex[:12],
        kind=request.verb,
        arguments=request.arguments(),
        device=device,
        confined=os.environ.get(CONFINED, ""),
        created=now,
        place=now,
        **more,
    )


def state_of(job_id: str) -> Job | None:
    """Return a job in its true state; one whose process is gone has failed. Nothing is written."""
    with JobStore(read_only=True) as store:
        job = store.get(job_id)
    return None if job is None else as_it_stands(job)


def jobs(kind: str | None = None) -> list[Job]:
    """Return the jobs of the workspace in their true states, newest first. Nothing is written."""
    with JobStore(read_only=True) as store:
        return [as_it_stands(job) for job in store.all() if kind in (None, job.kind)]


def as_it_stands(job: Job) -> Job:
    """Return the job with its end, where its process is gone and nobody wrote that down."""
    return job.model_copy(update=_end_of(job, GONE)) if is_gone(job) else job


def tend() -> None:
    """Record the ends of dead processes, remove their partial output, and start the queues that wait.

    Where every job is over, nothing is opened for writing.
    """
    with JobStore(read_only=True) as store:
        if not any(job.unfinished for job in store.all()):
            return
    with suppress(StoreFull), JobStore() as store:
        _tend(store)


def _tend(store: JobStore) -> None:
    found = [settled(store, job) for job in store.all()]
    for device in {job.device for job in found if job.state == "queued" and not job.attached}:
        ensure_runner(store, device)


def resumes(job: Job) -> bool:
    """Return whether the same request goes on where this job was stopped; not where this Slim cannot read it."""
    kind = kind_of(job.kind)
    try:
        return kind is not None and kind.resumes(kind.request.of_job(job.arguments))
    except InputError:
        return False


def what_is_kept(job: Job) -> str:
    """Return, as a sentence, which results of a stopped or failed job are kept."""
    kind = kind_of(job.kind)
    return kind.kept if kind is not None and resumes(job) else NOTHING_KEPT


def in_order(found: list[Job]) -> list[Job]:
    """The jobs in order: those that run, those that wait in their order, then those that are over, newest first."""
    running = [job for job in found if job.state in ("running", "cancelling")]
    waiting = sorted((job for job in found if job.state == "queued"), key=turn_of)
    return [*running, *waiting, *(job for job in found if not job.unfinished)]


def turn_of(job: Job) -> tuple[float, float, str]:
    """The sort key of a queue, the lowest first."""
    return job.place, job.created, job.id


def queue_of(store: JobStore, device: str) -> list[Job]:
    """The jobs that wait for a device, the next one first. A suspended command is skipped."""
    found = [settled(store, job) for job in store.all() if job.state == "queued" and job.device == device]
    waiting = [job for job in found if job.state == "queued" and not (job.attached and job.silent())]
    return sorted(waiting, key=turn_of)


def move(job_id: str, before: str | None = None) -> Job:
    """Put a queued job before another of its queue, or first. Raises InputError where one of them is not queued."""
    with JobStore() as store:
        job = store.get(job_id)
        if job is None or job.state != "queued":
            raise InputError(f"job={job_id!r}: it is not queued; move a job that waits.")
        others = [one for one in queue_of(store, job.device) if one.id != job_id]
        if before is None:
            place = others[0].place - 1 if others else job.place
        else:
            index = next((number for number, one in enumerate(others) if one.id == before), None)
            if index is None:
                raise InputError(f"before={before!r}: it does not wait for {job.device}; name a job that does.")
            ahead = others[index - 1].place if index else others[index].place - 2
            place = (ahead + others[index].place) / 2
        return store.update(job_id, only_if=("queued",), place=place) or job


def cancel(job_id: str) -> Job | None:
    """Stop a job: asked first, killed after two seconds. Finished jobs stay as they are."""
    with JobStore() as store:
        job = store.update(job_id, only_if=("queued",), **over("cancelled"))
        if job is None or not job.unfinished:
            return job  # a command that waits reads this itself
        job = store.update(job_id, only_if=("running",), state="cancelling", message="Cancelling")
        if job is None or not job.unfinished:
            return job
        executor = executor_of(job)
        executor.stop(job, at_once=False)
        if not _ended(job, PATIENCE):
            executor.stop(job, at_once=True)
            _ended(job, KILLED)
        clean(job)
        return store.update(job_id, only_if=("cancelling",), **over("cancelled"))


def forget(job_id: str) -> None:
    """Remove a finished job from the list, with its log."""
    with JobStore() as store:
        job = store.get(job_id)
        if job is not None and not settled(store, job).unfinished:
            store.delete(job_id)
            log_path(store, job_id).unlink(missing_ok=True)


def log_of(job_id: str, most: int = 4000) -> str:
    """The last `most` characters of the worker's log."""
    path = workspace.place() / "jobs" / f"{job_id}.log"
    return path.read_text(encoding="utf-8", errors="replace")[-most:] if path.exists() else ""


def log_path(store: JobStore, job_id: str) -> Path:
    return store.folder / f"{job_id}.log"


def settled(store: JobStore, job: Job) -> Job:
    """Return the job in its true state, and record that where possible."""
    if not is_gone(job):
        return job
    job = store.get(job.id) or job  # it may have ended since it was read
    return end(store, job, GONE) if job.unfinished else job


def is_gone(job: Job) -> bool:
    """Return whether a job lacks the process that it should have."""
    if not job.unfinished or (job.state == "queued" and job.pid is None) or executor_of(job).alive(job):
        return False
    return job.pid is not None or time.time() - (job.started or job.created) >= STARTING


def end(store: JobStore, job: Job, reason: str) -> Job:
    """Record the end of a job whose process is gone without doing so, and remove its partial output."""
    clean(job)
    changes = _end_of(job, reason)
    try:
        return store.update(job.id, only_if=UNFINISHED, **changes) or job
    except StoreFull:
        return job.model_copy(update=changes)


def _end_of(job: Job, reason: str) -> dict[str, Any]:
    return over("cancelled") if job.state == "cancelling" else over("failed", error=reason)


def clean(job: Job) -> None:
    """Remove the partial output of dead processes wherever the job could write."""
    output = job.arguments.get("output")
    folders = [path for path in workspace.home().iterdir() if path.is_dir()]
    for folder in [*folders, *([Path(output).parent] if isinstance(output, str) else [])]:
        workspace.sweep(folder)


def ensure_runner(store: JobStore, device: str) -> None:
    """Start the process that runs the queue of a device, unless there is one."""
    lock = hold(store.folder, "runner", device)
    if lock is None:
        return
    try:
        with suppress(OSError), (store.folder / "runner.log").open("ab") as log:
            process = spawn("slim.jobs.runner", device, str(lock), log=log, lock=lock)
            threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie
    finally:
        os.close(lock)


def _over(store: JobStore, job_id: str, what: str) -> Job:
    job = store.get(job_id)
    if job is None:
        raise InputError(f"job={job_id!r}: it is not in the workspace; `slim jobs` lists all jobs.")
    if settled(store, job).unfinished:
        raise InputError(f"job={job_id!r}: it is not over and cannot be {what}; cancel it, or wait for it.")
    return job


def _ended(job: Job, seconds: float) -> bool:
    """Return whether the process of a job ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while alive := executor_of(job).alive(job):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    return not alive
