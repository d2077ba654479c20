"""The processes of jobs: started, recognised, and ended with all that they started."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

import slim
from slim.core import workspace
from slim.core.errors import Cancelled
from slim.jobs.job import SILENT, Job

ROOT = Path(slim.__file__).resolve().parent.parent


def spawn(module: str, *arguments: str, log: IO[bytes], keep: int) -> subprocess.Popen[bytes]:
    """A module of Slim in a session of its own, so that it outlives the caller; it inherits the descriptor `keep`."""
    paths = [] if str(ROOT) == sysconfig.get_path("purelib") else [str(ROOT)]
    paths += [path for path in (os.environ.get("PYTHONPATH"),) if path]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],  # -P: a file in the current folder is no module
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "SLIM_HOME": str(workspace.home()), "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
        pass_fds=(keep,),
    )


def start_time(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def stop(number: int, frame: FrameType | None) -> None:
    """What SIGTERM does to the process of a job: it is cancelled where it stands."""
    raise Cancelled("cancelled")


def is_alive(job: Job) -> bool:
    """Whether the process that a job names is there and still the same one.

    Where the clock was set, its start seems to have moved; then it counts that it was heard of a moment ago.
    """
    if job.pid is None:
        return False
    try:
        process = psutil.Process(job.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        same = job.pid_started is None or abs(process.create_time() - job.pid_started) < 1
        return same or time.time() - (job.beat or 0) < SILENT
    except psutil.Error:
        return False


def tell(job: Job, number: signal.Signals) -> None:
    """Sends a signal to a job's processes: its group, or of a person's command that alone and what it started."""
    if job.pid is None or not is_alive(job):
        return
    with suppress(ProcessLookupError, psutil.Error):
        if not job.attached:
            os.killpg(job.pid, number)
            return
        for process in _family(job.pid):
            process.send_signal(number)


def end_group(pid: int) -> None:
    """Kills what a worker that is gone has left running."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def memory_of(pid: int) -> int:
    """Bytes in memory of a process and of those that it started."""
    total = 0
    for process in _family(pid):
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def _family(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)
