"""Executors of jobs: one small protocol, and processes of this machine as its first implementation."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import IO, Any, Protocol

import psutil

from slim.core import launch, workspace
from slim.core.errors import Cancelled
from slim.jobs import forking
from slim.jobs.job import SILENT, Job


@dataclass(frozen=True)
class Ended:
    """The exit code of a worker, or −N where signal N ended it, and the most bytes that it held."""

    code: int
    peak: int


POLL = 0.2
"""Seconds between two checks whether a process that another one started is there."""
UNKNOWN = Ended(-signal.SIGKILL, 0)
"""The end of a worker whose exit code nobody knows, as the process that it was forked from was killed."""


class Worker(Protocol):
    """A worker that was submitted."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return the fields of a job by which its worker is found again."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def wait(self) -> Ended:
        """Return how it ended, once it and all that it started are gone."""
        ...


class Executor(Protocol):
    """Runs the workers of jobs."""

    def submit(self, job: Job, log: IO[bytes], lock: int) -> Worker:
        """Start the worker of a job. It prints to `log`, outlives the caller, and holds the descriptor `lock`."""
        ...

    def alive(self, job: Job) -> bool:
        """Return whether the process that a job names is there, and still the same one."""
        ...

    def stop(self, job: Job, at_once: bool) -> None:
        """Ask the processes of a job to end, or end them."""
        ...

    def memory(self, job: Job) -> int:
        """Return the bytes that the processes of a job hold now."""
        ...


class LocalProcess:
    """Workers that are processes of this machine, each in a session of its own."""

    def submit(self, job: Job, log: IO[bytes], lock: int) -> Worker:
        """Fork it from a process that has imported all it needs, where there is one."""
        forked = forking.fork(job.id, log, lock)
        if forked is not None:
            return _ForkedWorker(*forked)
        return _LocalWorker(spawn("slim.jobs.worker", job.id, log=log, lock=lock))

    def alive(self, job: Job) -> bool:
        """A clock that was set seems to move a process's start; then a heartbeat a moment ago counts."""
        if job.pid is None:
            return False
        return _runs(job.pid, job.pid_started, time.time() - (job.beat or 0) < SILENT)

    def stop(self, job: Job, at_once: bool) -> None:
        """Signal a worker's whole group; for a user's command, its process alone and those that it started."""
        if job.pid is None or not self.alive(job):
            return
        number = signal.SIGKILL if at_once else signal.SIGTERM
        with suppress(ProcessLookupError, psutil.Error):
            if not job.attached:
                os.killpg(job.pid, number)
                return
            for process in _family(job.pid):
                process.send_signal(number)

    def memory(self, job: Job) -> int:
        total = 0
        for process in _family(job.pid) if job.pid is not None else ():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total


class _LocalWorker:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @property
    def identity(self) -> Mapping[str, Any]:
        return identity(self.process.pid)

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> Ended:
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        _kill_group(self.process.pid)
        return Ended(self.process.returncode, launch.peak_of(usage))


class _ForkedWorker:
    """A worker that is another process's child, which tells its end on a line."""

    def __init__(self, line: socket.socket, pid: int) -> None:
        self.line, self.pid, self.identity = line, pid, identity(pid)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        told = b""
        with self.line, suppress(OSError):
            with suppress(ConnectionResetError):  # what is first read of a worker that ended before it read all
                told = self.line.recv(256)
            told = told or self.line.recv(256)
        while not told and _runs(self.pid, self.identity["pid_started"]):
            time.sleep(POLL)
        _kill_group(self.pid)
        return Ended(**json.loads(told)) if told else UNKNOWN


EXECUTORS: Mapping[str, Executor] = {"local": LocalProcess()}


def executor_of(job: Job) -> Executor:
    """Return the executor of a job."""
    return EXECUTORS[job.executor]


def identity(pid: int) -> Mapping[str, Any]:
    """Return the fields of a job whose process this is; its start tells it from a later process with its number."""
    try:
        return {"pid": pid, "pid_started": psutil.Process(pid).create_time()}
    except psutil.Error:
        return {"pid": pid, "pid_started": None}


def spawn(module: str, *arguments: str, log: IO[bytes], lock: int) -> subprocess.Popen[bytes]:
    """Start a module of Slim in a session of its own, so that it outlives the caller; it inherits the `lock`."""
    return subprocess.Popen(
        launch.module_command(module, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=launch.environment(SLIM_HOME=str(workspace.home())),
        start_new_session=True,
        pass_fds=(lock,),
    )


def _runs(pid: int, started: float | None, beats: bool = False) -> bool:
    """Return whether a process is there, and is the one that `started` then; or any, where it `beats`."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or beats or abs(process.create_time() - started) < 1
    except psutil.Error:
        return False


def _kill_group(pid: int) -> None:
    """Kill what a worker that is gone left running."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def cancelled(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM in the process of a job: it is cancelled where it stands."""
    raise Cancelled("cancelled")


def _family(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)
