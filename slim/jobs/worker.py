"""The process that does one job: `python -m slim.jobs.worker ID`."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from slim.core.errors import Cancelled, SlimError
from slim.core.paths import CONFINED
from slim.jobs.failures import failure_reason, traced
from slim.jobs.job import over
from slim.jobs.kinds import KINDS
from slim.jobs.process import start_time, stop
from slim.jobs.reporter import JobReporter, beating
from slim.jobs.store import JobStore, StoreFull


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
