"""The process that does one job: `python -m slim.jobs.worker ID`."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from slim.errors import Cancelled, SlimError
from slim.jobs.faults import failure_reason, traced
from slim.jobs.job import over
from slim.jobs.process import start_time, stop
from slim.jobs.store import JobStore, StoreFull
from slim.jobs.teller import JobReporter, beating
from slim.paths import CONFINED
from slim.progress import Progress


def _calibrate(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import calibrate

    settings = calibrate.checked_settings(**arguments.pop("settings"))
    return str(calibrate.calibrate(**arguments, settings=settings, progress=progress).path)


def _check(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import calibration, check

    done = check.check(calibration.load_calibration(Path(arguments.pop("calibration"))), **arguments, progress=progress)
    return str(done.path)


def _prune(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import plan, repair, rounds

    if "settings" in arguments:
        arguments["settings"] = repair.RepairSettings.checked(**arguments["settings"])
    return str(rounds.execute_plan(plan.load_plan(Path(arguments.pop("plan"))), **arguments, progress=progress))


def _absorb(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import absorbed, calibration

    absorbed.after_repair_sketch(calibration.load_calibration(Path(arguments["calibration"])), progress)
    return arguments["calibration"]


def _repair(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import repair

    settings = repair.RepairSettings.checked(**arguments.pop("settings"))
    return str(repair.repair(**arguments, settings=settings, progress=progress))


def _evaluate(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import evaluate

    settings = evaluate.checked_settings(**arguments.pop("settings"))
    return str(evaluate.evaluate(**arguments, settings=settings, progress=progress).path)


def _finetune(arguments: dict[str, Any], progress: JobReporter) -> str:
    from slim import finetune

    settings = finetune.TrainSettings.checked(**arguments.pop("settings"))
    return str(finetune.finetune(**arguments, settings=settings, progress=progress, watch=progress.curve))


def _judge(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import judge

    settings = judge.AnswerSettings.checked(**arguments.pop("settings"))
    return str(judge.judge(**arguments, settings=settings, progress=progress, tell=print)[1])


def _export(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import export

    return str(export.export_gguf(**arguments, progress=progress).path)


def _push(arguments: dict[str, Any], progress: Progress) -> str:
    from slim import push

    return push.push(push.plan_upload(Path(arguments.pop("folder")), **arguments), progress)


KINDS: dict[str, Callable[[dict[str, Any], JobReporter], str]] = {
    "absorb": _absorb,
    "calibrate": _calibrate,
    "check": _check,
    "evaluate": _evaluate,
    "export": _export,
    "finetune": _finetune,
    "judge": _judge,
    "prune": _prune,
    "push": _push,
    "repair": _repair,
}


def run(job_id: str) -> int:
    """Does the job and writes how it went; the exit code of the process."""
    signal.signal(signal.SIGTERM, stop)
    with JobStore() as store:
        try:
            with beating(job_id):
                result = _work(store, job_id)
            store.update(job_id, **over("done", result=result, done=1.0, total=1.0))
        except Cancelled:
            store.update(job_id, **over("cancelled"))
            return Cancelled.exit_code
        except Exception as error:
            reason, code = failure_reason(error), error.exit_code if isinstance(error, SlimError) else 1
            if not isinstance(error, SlimError):
                with suppress(OSError):
                    print(traced(error), file=sys.stderr)
        else:
            return 0
        return _failed(store, job_id, reason, code)  # here what the error held in memory is let go


def _failed(store: JobStore, job_id: str, reason: str, code: int) -> int:
    with suppress(OSError):
        print(f"slim: {reason}", file=sys.stderr, flush=True)  # the runner reads it where it cannot be written below
    with suppress(StoreFull):
        # an error may be a library's word for the cancellation that reached it
        job = store.update(job_id, only_if=("cancelling",), **over("cancelled"))
        if job is not None and job.state == "cancelled":
            return Cancelled.exit_code
        store.update(job_id, **over("failed", error=reason))
    return code


def _work(store: JobStore, job_id: str) -> str:
    job = store.get(job_id)
    if job is None:
        raise SlimError(f"job {job_id!r} is not in the workspace.")
    if job.state == "queued":  # the runner says so too; whoever is first
        pid = os.getpid()
        mine = {"pid": pid, "pid_started": start_time(pid), "started": time.time(), "message": "Starting"}
        job = store.update(job_id, only_if=("queued",), state="running", **mine) or job
    if job.state != "running":
        raise Cancelled("cancelled")
    os.environ[CONFINED] = job.confined  # of whoever asked for it, not of whoever started this process
    arguments = dict(job.arguments)
    if "output" in arguments:
        arguments["output"] = Path(arguments["output"])
    return KINDS[job.kind](arguments, JobReporter(store, job_id))


def main(job_id: str) -> None:
    code = run(job_id)
    if code == Cancelled.exit_code:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # Python's own end takes long with torch, and who cancels waits for it
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
