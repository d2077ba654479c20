"""Progress reporters of jobs: progress, training curve and heartbeat go to the list of jobs, all else to the log."""

import resource
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from slim.core.errors import SlimError
from slim.core.launch import peak_of
from slim.core.reporter import SILENT, Reporter
from slim.jobs.executor import executor_of
from slim.jobs.store import JobStore, StoreFull

if TYPE_CHECKING:
    from slim.pruning.history import CurvePoint

WRITE_EVERY = 0.3
"""Seconds between two writes of the progress."""
BEAT_EVERY = 1.0
"""Seconds between two heartbeats."""


class LogReporter(Reporter):
    """Prints estimates, how rows were read, and notes, as lines of a log."""

    def rows(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            print(f"{sentence}.", flush=True)

    def estimate(self, sentence: str) -> None:
        print(sentence, flush=True)

    def note(self, text: str) -> None:
        print(f"Note: {text}.", flush=True)


class JobReporter(Reporter):
    """Writes progress and curve into a job, and reports everything to another reporter as well."""

    def __init__(self, store: JobStore, job_id: str, also: Reporter = SILENT) -> None:
        self.store, self.job_id, self.also = store, job_id, also
        self._written, self._stage, self._paced = 0.0, 0.0, time.time()
        self.estimate, self.rows, self.note = also.estimate, also.rows, also.note

    def progress(self, done: float, total: float, message: str) -> None:
        self.also.progress(done, total, message)
        now = time.monotonic()
        if total != self._stage:
            self._stage, self._paced = total, time.time()
        if now - self._written >= WRITE_EVERY:
            self._written = now
            self._write(done=done, total=total, message=message, paced=self._paced)

    def curve(self, points: Sequence["CurvePoint"]) -> None:
        self.also.curve(points)
        self._write(curve=tuple(point.model_dump() for point in points))

    def _write(self, **changes: Any) -> None:
        with suppress(StoreFull):  # only a moment's progress is lost
            self.store.update(self.job_id, only_if=("running",), dear=False, **changes)


@contextmanager
def beating(job_id: str) -> Iterator[None]:
    """Inside the block, the job gets a heartbeat every second, with the memory that its processes hold."""
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
            with suppress(StoreFull):
                if (job := store.get(job_id)) is not None:
                    memory = executor_of(job).memory(job)
                    most = max(memory, peak_of(resource.getrusage(resource.RUSAGE_SELF)), job.peak or 0)
                    store.update(job_id, dear=False, beat=time.time(), memory=memory, peak=most)
            over.wait(BEAT_EVERY)
