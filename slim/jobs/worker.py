"""The process that does one job: `python -m slim.jobs.worker ID`."""

import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from slim.errors import Cancelled, SlimError
from slim.jobs.store import JobStore
from slim.progress import Progress

if TYPE_CHECKING:
    from slim.recovery import Point

SAY_EVERY = 0.3
"""Seconds between two writes of the progress."""


def _calibrate(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import calibrate

    settings = calibrate.checked_settings(**arguments.pop("settings"))
    return str(calibrate.calibrate(**arguments, settings=settings, progress=progress).path)


def _check(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import calibration, check

    done = check.check(calibration.load(Path(arguments.pop("calibration"))), **arguments, progress=progress)
    return str(done.path)


def _prune(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import plan, rounds

    return str(rounds.execute(plan.load(Path(arguments.pop("plan"))), **arguments, progress=progress))


def _absorb(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import absorbed, calibration

    absorbed.absorbed(calibration.load(Path(arguments["calibration"])), progress)
    return arguments["calibration"]


def _repair(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import repair

    settings = repair.RepairSettings.checked(**arguments.pop("settings"))
    return str(repair.repair(**arguments, settings=settings, progress=progress))


def _evaluate(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import evaluate

    settings = evaluate.checked_settings(**arguments.pop("settings"))
    return str(evaluate.evaluate(**arguments, settings=settings, progress=progress).path)


def _finetune(arguments: dict[str, Any], progress: "Teller") -> str:
    from slim import finetune

    settings = finetune.TrainSettings.checked(**arguments.pop("settings"))
    return str(finetune.finetune(**arguments, settings=settings, progress=progress, watch=progress.curve))


def _judge(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import judge

    settings = judge.AnswerSettings.checked(**arguments.pop("settings"))
    return str(judge.judge(**arguments, settings=settings, progress=progress, tell=print)[1])


def _push(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import push

    return push.push(push.planned(Path(arguments.pop("folder")), **arguments), progress)


class Teller:
    """What a stage tells of itself, written into its job: called as a `Progress`, and with the curve of a training."""

    def __init__(self, store: JobStore, job_id: str) -> None:
        self.store, self.job_id = store, job_id
        self._said, self._stage, self._paced = 0.0, 0.0, time.time()

    def __call__(self, done: float, total: float, message: str) -> None:
        now = time.monotonic()
        if total != self._stage:
            self._stage, self._paced = total, time.time()
        if now - self._said >= SAY_EVERY:
            self._said = now
            self._write(done=done, total=total, message=message, paced=self._paced)

    def curve(self, points: Sequence["Point"]) -> None:
        self._write(curve=tuple(point.model_dump() for point in points))

    def _write(self, **changes: Any) -> None:
        self.store.update(self.job_id, only_if=("running",), **changes)


KINDS: dict[str, Callable[[dict[str, Any], Teller], str]] = {
    "absorb": _absorb,
    "calibrate": _calibrate,
    "check": _check,
    "evaluate": _evaluate,
    "finetune": _finetune,
    "judge": _judge,
    "prune": _prune,
    "push": _push,
    "repair": _repair,
}


def _stop(number: int, frame: FrameType | None) -> None:
    raise Cancelled("cancelled")


def run(job_id: str) -> int:
    """Does the job and writes how it went; the exit code of the process."""
    signal.signal(signal.SIGTERM, _stop)
    with JobStore() as store:
        try:
            _work(store, job_id)
        except Cancelled:
            store.update(job_id, state="cancelled", ended=time.time(), message="Cancelled")
            return Cancelled.exit_code
        except Exception as error:
            if _was_cancelled(store, job_id):
                return Cancelled.exit_code
            known = isinstance(error, SlimError)
            if not known:
                traceback.print_exc()
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            store.update(job_id, state="failed", ended=time.time(), error=reason, message="Failed")
            return error.exit_code if isinstance(error, SlimError) else 1
        return 0


def _was_cancelled(store: JobStore, job_id: str) -> bool:
    """Whether an error is a library's word for the cancellation that reached it."""
    job = store.update(job_id, only_if=("cancelling",), state="cancelled", ended=time.time(), message="Cancelled")
    return job is not None and job.state == "cancelled"


def _work(store: JobStore, job_id: str) -> None:
    job = store.get(job_id)
    if job is None:
        raise SlimError(f"job {job_id!r} is not in the workspace.")
    lock = FileLock(store.folder / "device.lock")
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            store.update(job_id, only_if=("queued",), message="Waiting for the job before it")
    with lock:
        store.update(job_id, only_if=("queued",), state="running", started=time.time(), message="Starting")
        result = KINDS[job.kind](dict(job.arguments), Teller(store, job_id))
        store.update(job_id, state="done", ended=time.time(), result=result, done=1.0, total=1.0, message="Done")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
