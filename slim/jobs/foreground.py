"""A command as a foreground job: it waits in the queue for its turn, and can be cancelled from the page."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from slim.core.errors import Cancelled
from slim.core.reporter import Reporter
from slim.core.request import Request
from slim.jobs.devices import hold
from slim.jobs.executor import cancelled, identity
from slim.jobs.failures import failure_reason, traced
from slim.jobs.job import Job, over
from slim.jobs.queue import ensure_runner, log_path, new_job, queue_of, settled, turn_of
from slim.jobs.reporter import JobReporter, beating
from slim.jobs.store import JobStore, StoreFull

R = TypeVar("R", bound=Request)
T = TypeVar("T", bound="str | os.PathLike[str]")
POLL = 0.2
"""Seconds between two checks whether it is the turn of this command."""


def foreground(request: R, stage: Callable[[R, Reporter], T], reporter: Reporter) -> T:
    """Return the stage's result for a request, run as a job of this process once its device is free.

    `reporter` gets the stage's reports, and a sentence while it waits for other jobs. Raises Cancelled where the job
    is cancelled from elsewhere.
    """
    with JobStore() as store:
        attached = {"origin": "command line", "attached": True, **identity(os.getpid())}
        job = store.put(new_job(request, **attached))
        turn: int | None = None
        try:
            with stoppable(), beating(job.id):
                turn = _turn(store, job, reporter)
                made = stage(request, JobReporter(store, job.id, reporter))
            _end(store, job.id, over("done", result=os.fspath(made), done=1.0, total=1.0))
        except (Cancelled, KeyboardInterrupt, SystemExit):
            _end(store, job.id, over("cancelled"))
            raise
        except BaseException as error:
            with suppress(OSError):
                log_path(store, job.id).write_text(traced(error), encoding="utf-8")
            _end(store, job.id, over("failed", error=failure_reason(error)))
            raise
        else:
            return made
        finally:
            if turn is not None:
                os.close(turn)


def _turn(store: JobStore, job: Job, reporter: Reporter) -> int:
    """The lock on the device, once it is this job's turn."""
    said = False
    while True:
        now = store.get(job.id)
        if now is None or now.state != "queued":
            raise Cancelled("cancelled")
        waiting = queue_of(store, job.device)
        if waiting and waiting[0].id == job.id and (turn := hold(store.folder, "device", job.device)) is not None:
            begun = store.update(job.id, only_if=("queued",), state="running", started=time.time(), message="Starting")
            if begun is not None and begun.state == "running":
                return turn
            os.close(turn)
            raise Cancelled("cancelled")
        if not said:
            said = True
            reporter.estimate(_behind(store, waiting, job))
        if waiting and not waiting[0].attached:
            ensure_runner(store, job.device)
        time.sleep(POLL)


def _behind(store: JobStore, waiting: list[Job], job: Job) -> str:
    """The jobs that a command waits for, as a sentence."""
    running = [one for one in store.all() if one.state in ("running", "cancelling") and one.device == job.device]
    ahead = [settled(store, one) for one in running]
    ahead += [one for one in waiting if turn_of(one) < turn_of(job)]
    named = ", ".join(f"{one.kind} {one.id}" for one in ahead if one.unfinished and one.id != job.id)
    return f"Waiting for {named or 'the process'} on {job.device} …"


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops the block as Ctrl-C does; threads other than the main one cannot handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, cancelled)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(store: JobStore, job_id: str, changes: dict[str, Any]) -> None:
    with suppress(StoreFull):  # the next reader sees that the process is gone
        store.update(job_id, **changes)
