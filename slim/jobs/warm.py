"""The process that forks workers: `python -m slim.jobs.warm`, kept by the dashboard's server.

It has imported what jobs need and computed nothing: neither the threads of a computation nor the state of a GPU survive
a fork. There is one for a workspace. It ends with the server, which holds the other end of its standard input, or when
Slim or the installed packages have changed; but only after the workers that it forked, whose ends it tells to their
runners.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from slim.core import launch
from slim.jobs import worker
from slim.jobs.devices import hold
from slim.jobs.forking import GO, PATIENCE, address, folder, new_socket, stamp
from slim.jobs.kinds import KINDS

POLL = 1.0
"""Seconds between two checks whether the process of another server has ended."""
LATER = ("transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto")
"""Modules that stages import when they are at work."""
TRIAL = 30.0
"""Seconds in which a small computation must be done in a fork."""
STDIN = 0


class Warm:
    """Listens for runners, and waits for the workers that it forked. It holds the descriptor `lock`."""

    def __init__(self, lock: int, environment: dict[str, str]) -> None:
        self.lock, self.environment, self.stamp = lock, environment, stamp(environment)
        self.listener: socket.socket | None = None
        self.workers: dict[int, tuple[int, socket.socket]] = {}
        """The descriptor of each worker's process, with its number and the line to its runner."""

    def listen(self) -> None:
        """Let runners connect."""
        self.listener = new_socket()
        before = os.umask(0o177)  # no other user may connect
        with address() as path:
            Path(path).unlink(missing_ok=True)
            self.listener.bind(path)
        os.umask(before)
        self.listener.listen()

    def serve(self) -> str | None:
        """Return the job to do in a process that was forked for it; None in this one, at its end."""
        while self.listener is not None or self.workers:
            listener = self.listener
            own = [] if listener is None else [STDIN, listener]
            ready, _, _ = select.select([*own, *self.workers], [], [])
            for process in self.workers.keys() & set(ready):
                self._tell_end(process)
            if STDIN in ready:
                self._close()
            elif listener is not None and listener in ready and (job := self._answer(listener.accept()[0])) is not None:
                return job
        return None

    def _answer(self, line: socket.socket) -> str | None:
        """Fork for the runner that asks, and return its job in the new process. One that does not fit is refused."""
        line.settimeout(PATIENCE)
        pid, job, place, descriptors = None, "", "", []
        with suppress(OSError, ValueError, KeyError, TypeError):
            said, descriptors, _, _ = socket.recv_fds(line, 2**16, 2)
            asked = json.loads(said)
            job, place, (_, _) = asked["job"], asked["folder"], descriptors
            if asked["stamp"] == self.stamp:
                sys.stdout.flush()
                pid = os.fork()
        if pid == 0:
            self._become_worker(place, line, *descriptors)
            return job
        for descriptor in descriptors:  # the device is the worker's, and the runner's
            os.close(descriptor)
        if pid is not None:
            self.workers[os.pidfd_open(pid)] = pid, line
            return None
        line.close()
        if stamp(self.environment) != self.stamp:
            self._close()
        return None

    def _become_worker(self, place: str, line: socket.socket, log: int, lock: int) -> None:
        """Make this process, a fork, what it would be if the runner had started it, once the runner says so."""
        try:
            os.setsid()
            self._close()
            for process, (_, other) in self.workers.items():
                os.close(process)
                other.close()
            with suppress(OSError):
                os.chdir(place)
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), STDIN)
            os.dup2(log, sys.stdout.fileno())
            os.dup2(log, sys.stderr.fileno())
            os.close(log)
            with line:
                line.sendall(str(os.getpid()).encode())
                if line.recv(len(GO)) != GO:
                    os._exit(1)
        except BaseException:
            os._exit(1)  # never on as a second process that listens

    def _tell_end(self, process: int) -> None:
        pid, line = self.workers.pop(process)
        os.close(process)
        _, status, usage = os.wait4(pid, 0)
        ended = {"code": os.waitstatus_to_exitcode(status), "peak": launch.peak_of(usage)}
        with line, suppress(OSError):  # the runner may be gone
            line.sendall(json.dumps(ended).encode())

    def _close(self) -> None:
        """Let another process listen. The next one makes its own socket at the same path."""
        if self.listener is not None:
            self.listener.close()
            os.close(self.lock)
        self.listener = None


def _alone() -> int | None:
    """Return the descriptor of the lock of the only such process of the workspace; None where the server ends first."""
    while (lock := hold(folder(), "warm", "workers")) is None:
        if select.select([STDIN], [], [], POLL)[0]:
            return None
    return lock


def _can_compute() -> bool:
    """Return whether a fork of this process computes, with all threads."""
    import torch

    pid = os.fork()
    if pid == 0:
        code = 1
        with suppress(BaseException):
            summed = torch.ones(2**20).sum() + torch.ones(2**8, 2**8).mm(torch.ones(2**8, 2**8)).sum()
            code = 0 if summed == 2**20 + 2**24 and not torch.cuda._is_in_bad_fork() else 1
        os._exit(code)
    process = os.pidfd_open(pid)
    ready, _, _ = select.select([process], [], [], TRIAL)
    os.close(process)
    if not ready:
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == 0


def main() -> int:
    environment = dict(os.environ)  # as it was given: what is imported may change it
    lock = _alone()
    if lock is None:
        return 0
    warm = Warm(lock, environment)
    for name in [*(kind.stage.partition(":")[0] for kind in KINDS.values()), *LATER]:
        importlib.import_module(name)
    if not _can_compute():
        print("A fork of this process does not compute; each worker is started anew.", file=sys.stderr)
        return 1
    gc.collect()
    gc.freeze()  # so that a worker's collections do not copy what it shares with this process
    warm.listen()
    job = warm.serve()
    if job is not None:
        worker.main(job)
    return 0


if __name__ == "__main__":
    sys.exit(main())
