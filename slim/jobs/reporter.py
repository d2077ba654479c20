"""How a process that does a job tells of it: progress, the curve of a training, and a heartbeat."""

import os
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from slim.core.errors import SlimError
from slim.core.progress import Progress, silent
from slim.jobs.process import memory_of
from slim.jobs.store import JobStore, StoreFull

if TYPE_CHECKING:
    from slim.pruning.history import CurvePoint

SAY_EVERY = 0.3
"""Seconds between two writes of the progress."""
BEAT_EVERY = 1.0
"""Seconds between two heartbeats."""


class JobReporter:
    """What a stage tells of itself, written into its job: called as a `Progress`, and with the curve of a training.

    `also` hears the progress too.
    """

    def __init__(self, store: JobStore, job_id: str, also: Progress = silent) -> None:
        self.store, self.job_id, self.also = store, job_id, also
        self.result: str | None = None
        self._said, self._stage, self._paced = 0.0, 0.0, time.time()

    def __call__(self, done: float, total: float, message: str) -> None:
        self.also(done, total, message)
        now = time.monotonic()
        if total != self._stage:
            self._stage, self._paced = total, time.time()
        if now - self._said >= SAY_EVERY:
            self._said = now
            self._write(done=done, total=total, message=message, paced=self._paced)

    def curve(self, points: Sequence["CurvePoint"]) -> None:
        self._write(curve=tuple(point.model_dump() for point in points))

    def made(self, result: object) -> None:
        """Names what the job made."""
        self.result = str(result)

    def _write(self, **changes: Any) -> None:
        with suppress(StoreFull):  # what is lost is a moment's progress
            self.store.update(self.job_id, only_if=("running",), dear=False, **changes)


@contextmanager
def beating(job_id: str) -> Iterator[None]:
    """Says every second that this process is there, and what it holds in memory."""
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(job_id, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _beat(job_id: str, over: threading.Event) -> None:
    with suppress(SlimError), JobStore() as store:
        while not over.is_set():
            memory = memory_of(os.getpid())
            with suppress(StoreFull):
                job = store.get(job_id)
                most = max(memory, peak_of(resource.getrusage(resource.RUSAGE_SELF)), (job and job.peak) or 0)
                store.update(job_id, dear=False, beat=time.time(), memory=memory, peak=most)
            over.wait(BEAT_EVERY)


def peak_of(usage: resource.struct_rusage) -> int:
    """Bytes that a process held at most."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
