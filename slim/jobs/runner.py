"""The process that runs one device's queue: `python -m slim.jobs.runner DEVICE`.

It is the only one for its device, loads no torch, and starts each job in a worker of its own, so that a job's memory is
freed when the job ends. The worker inherits the descriptor of the device's lock: where the runner is killed, the worker
goes on and holds the device alone, and the next runner waits for it. So no work is lost.
"""

import os
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from slim.jobs.devices import hold
from slim.jobs.executor import Ended, executor_of
from slim.jobs.failures import death_reason
from slim.jobs.job import Job
from slim.jobs.queue import clean, end, ensure_runner, log_of, log_path, queue_of
from slim.jobs.store import JobStore, StoreFull

POLL = 0.2
"""Seconds between two checks of a queue whose device is taken."""
EVER = ("queued", "running", "cancelling", "cancelled", "failed", "done")


def run(device: str) -> None:
    """Run the queued jobs of a device in order, until the queue is empty."""
    with JobStore() as store:
        while waiting := queue_of(store, device):
            turn = None if waiting[0].attached else hold(store.folder, "device", device)
            if turn is None:  # a command's own process takes its turn by itself
                time.sleep(POLL)
                continue
            try:
                _do(store, waiting[0], turn)
            except (StoreFull, OSError) as error:
                print(error, file=sys.stderr, flush=True)
                time.sleep(1)
            finally:
                os.close(turn)


def _do(store: JobStore, job: Job, turn: int) -> None:
    path = log_path(store, job.id)
    with ExitStack() as opened:
        try:
            log = opened.enter_context(path.open("wb"))
        except OSError:
            log = opened.enter_context(Path(os.devnull).open("wb"))
        worker = executor_of(job).submit(job, log, turn)
    try:
        begun = {"state": "running", "started": time.time(), "message": "Starting", **worker.identity}
        now = store.update(job.id, only_if=("queued",), **begun)
        if now is None or now.pid != worker.identity["pid"]:  # it was cancelled or deleted just now
            worker.kill()
    except BaseException:
        worker.kill()
        raise
    finally:
        ended = worker.wait()
    _write_end(store, job.id, ended)


def _write_end(store: JobStore, job_id: str, ended: Ended) -> None:
    """Record the end of a worker that could not do so itself, and its peak memory."""
    job = store.get(job_id)
    if job is None:
        return
    if job.unfinished:
        end(store, job, death_reason(ended.code, log_of(job_id)))
    elif ended.code:
        clean(job)  # without memory or disk space a worker may fail to remove its partial output
    with suppress(StoreFull):
        store.update(job_id, only_if=EVER, peak=max(ended.peak, job.peak or 0))


def main(device: str, lock: int | None) -> None:
    with JobStore() as store:
        held = hold(store.folder, "runner", device) if lock is None else lock
        if held is None:
            return
        try:
            run(device)
        finally:
            os.close(held)
        if any(not job.attached for job in queue_of(store, device)):  # it came in while this one was ending
            ensure_runner(store, device)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
