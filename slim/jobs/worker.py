"""The process that does one job: `python -m slim.jobs.worker ID`."""

import os
import signal
import sys
import time
from contextlib import suppress
from os import fspath

from slim.core.errors import Cancelled, SlimError
from slim.core.paths import CONFINED
from slim.jobs.executor import cancelled, identity
from slim.jobs.failures import failure_reason, traced
from slim.jobs.job import over
from slim.jobs.kinds import KINDS
from slim.jobs.queue import request_of
from slim.jobs.reporter import JobReporter, LogReporter, beating
from slim.jobs.store import JobStore, StoreFull

NICE = 10
"""How far a job stands back where a page of the dashboard needs the processor as well."""


def run(job_id: str) -> int:
    """Run the job, record its end, and return the exit code of the process."""
    signal.signal(signal.SIGTERM, cancelled)
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
        return _failed(store, job_id, reason, code)  # outside the block, so that the error's memory is freed


def _failed(store: JobStore, job_id: str, reason: str, code: int) -> int:
    with suppress(OSError):
        print(f"slim: {reason}", file=sys.stderr, flush=True)  # the runner reads it where the write below fails
    with suppress(StoreFull):
        # an error may be a library's reaction to the cancellation
        job = store.update(job_id, only_if=("cancelling",), **over("cancelled"))
        if job is not None and job.state == "cancelled":
            return Cancelled.exit_code
        store.update(job_id, **over("failed", error=reason))
    return code


def _work(store: JobStore, job_id: str) -> str:
    job = store.get(job_id)
    if job is None:
        raise SlimError(f"job={job_id!r}: it is not in the workspace; `slim jobs` lists all jobs.")
    if job.state == "queued":  # the runner writes it too; the first one counts
        begun = {"state": "running", "started": time.time(), "message": "Starting", **identity(os.getpid())}
        job = store.update(job_id, only_if=("queued",), **begun) or job
    if job.state != "running":
        raise Cancelled("cancelled")
    os.environ[CONFINED] = job.confined  # as for the request's user, not for the process that started this one
    request = request_of(job)
    return fspath(KINDS[request.verb].run(request, JobReporter(store, job_id, LogReporter())))


def main(job_id: str) -> None:
    os.nice(NICE)
    code = run(job_id)
    if code == Cancelled.exit_code:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # Python's own exit takes long with torch, and the user waits for the cancellation
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
