"""A command as its own job: it stands in the queue, waits for its turn, and can be cancelled from the page."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from slim.core.errors import Cancelled
from slim.core.progress import Progress, silent
from slim.jobs.devices import hold
from slim.jobs.failures import failure_reason, traced
from slim.jobs.job import Job, over
from slim.jobs.process import start_time, stop
from slim.jobs.queue import ensure_runner, log_path, new_job, queue_of, settled, turn_of
from slim.jobs.reporter import JobReporter, beating
from slim.jobs.store import JobStore, StoreFull

POLL = 0.2
"""Seconds between two looks whether it is the turn of this command."""
PLACES = (
    *("model", "dataset", "calibration", "plan", "source", "checkpoints", "baseline", "standard", "original"),
    *("pruned", "local_judge", "folder", "output"),
)
"""Arguments that may name a file or folder."""


@contextmanager
def foreground(
    kind: str, arguments: dict[str, Any], say: Callable[[str], None], also: Progress = silent
) -> Iterator[JobReporter]:
    """The block is done as a job of this process, once what stands before it on its device is over.

    `arguments` are what a worker would be given, so that the job can be done again. `say` hears what is waited for, and
    `also` the progress. Raises Cancelled where the job is cancelled from elsewhere.
    """
    with JobStore() as store:
        pid = os.getpid()
        job = new_job(kind, placed(arguments), origin="command line", attached=True)
        job = store.put(job.model_copy(update={"pid": pid, "pid_started": start_time(pid)}))
        turn: int | None = None
        try:
            with stoppable(), beating(job.id):
                turn = _turn(store, job, say)
                teller = JobReporter(store, job.id, also)
                yield teller
            _end(store, job.id, over("done", result=teller.result, done=1.0, total=1.0))
        except (Cancelled, KeyboardInterrupt, GeneratorExit, SystemExit):
            _end(store, job.id, over("cancelled"))
            raise
        except BaseException as error:
            with suppress(OSError):
                log_path(store, job.id).write_text(traced(error), encoding="utf-8")
            _end(store, job.id, over("failed", error=failure_reason(error)))
            raise
        finally:
            if turn is not None:
                os.close(turn)


def _turn(store: JobStore, job: Job, say: Callable[[str], None]) -> int:
    """The device, once it is this job's turn."""
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
            say(_behind(store, waiting, job))
        if waiting and not waiting[0].attached:
            ensure_runner(store, job.device)
        time.sleep(POLL)


def _behind(store: JobStore, waiting: list[Job], job: Job) -> str:
    """What a command waits for, in words."""
    running = [one for one in store.all() if one.state in ("running", "cancelling") and one.device == job.device]
    ahead = [settled(store, one) for one in running]
    ahead += [one for one in waiting if turn_of(one) < turn_of(job)]
    named = ", ".join(f"{one.kind} {one.id}" for one in ahead if one.unfinished and one.id != job.id)
    return f"Waiting for {named or 'the process'} on {job.device} …"


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops the block as Ctrl-C does; a thread other than the first cannot be asked so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def placed(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with files and folders named so that they are found from anywhere."""

    def of(value: Any, always: bool) -> Any:
        if isinstance(value, list | tuple):
            return [of(one, always) for one in value]
        if isinstance(value, str | Path) and (always or Path(value).expanduser().exists()):
            return str(Path(value).expanduser().absolute())
        return value

    found = {name: of(value, name == "output") if name in PLACES else value for name, value in arguments.items()}
    return {name: value for name, value in found.items() if value is not None}


def _end(store: JobStore, job_id: str, changes: dict[str, Any]) -> None:
    with suppress(StoreFull):  # whoever looks next sees that the process is gone
        store.update(job_id, **changes)
