"""The line to the process that forks workers (`slim.jobs.warm`): where it listens, what both sides must have in common.

A worker that is forked from a process in which torch and the stages are imported begins at once. Only Linux is sure to
compute after a fork; elsewhere, and wherever no fitting process answers, a worker is started anew.
"""

import json
import os
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO

import slim
from slim.core import launch, workspace
from slim.core.errors import SlimError
from slim.core.paths import CONFINED

POSSIBLE = sys.platform == "linux"
PATIENCE = 2.0
"""Seconds in which the other side must answer."""
AGAIN = 60.0
"""Seconds until a process that failed is started again."""
LATER = 3.0
"""Seconds in which a server shows its first page before a process beside it imports what jobs need."""
GO = b"go"
MAY_DIFFER = {CONFINED, "MPLBACKEND"}
"""Variables of the environment that may differ: each job has its own, and Streamlit sets its own in the server."""


def new_socket() -> socket.socket:
    """Return a socket that keeps messages apart."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def folder() -> Path:
    """Return the workspace's folder of jobs, where the line is."""
    return workspace.subfolder("jobs")


@contextmanager
def address() -> Iterator[str]:
    """The address of the line; by its folder's descriptor, as the path of a socket must be short."""
    opened = os.open(folder(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{opened}/warm.sock"
    finally:
        os.close(opened)


def stamp(environment: Mapping[str, str]) -> str:
    """Return a digest of what a worker's imports depend on: Python, Slim's files, other packages, the environment."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    files = [*Path(slim.__file__).parent.rglob("*.py"), *map(Path, installed)]
    times = sorted((str(path), path.stat().st_mtime_ns) for path in files)
    settings = sorted((name, value) for name, value in environment.items() if name not in MAY_DIFFER)
    return sha256(repr((sys.executable, sys.version, times, settings)).encode()).hexdigest()


def fork(job_id: str, log: IO[bytes], lock: int) -> tuple[socket.socket, int] | None:
    """Return the line that will carry the end of a forked worker, and its process.

    None where no process answers that has what this one would start a worker with. The worker prints to `log` and holds
    the descriptor `lock`.
    """
    if not POSSIBLE:
        return None
    line = new_socket()
    try:
        line.settimeout(PATIENCE)
        with address() as path:
            line.connect(path)
        mine = stamp(launch.environment(SLIM_HOME=str(workspace.home())))
        asked = json.dumps({"job": job_id, "stamp": mine, "folder": os.getcwd()})
        socket.send_fds(line, [asked.encode()], [log.fileno(), lock])
        pid = int(line.recv(64))
        line.sendall(GO)  # a worker that does not get this in time ends, so that no job has two
        line.settimeout(None)
    except (OSError, ValueError):
        line.close()
        return None
    return line, pid


def keep_warm() -> None:
    """Keep a process that forks workers for as long as this process lives."""
    if POSSIBLE:
        threading.Thread(target=_keep, daemon=True).start()


def _keep() -> None:
    time.sleep(LATER)
    while True:
        code = 1
        with suppress(OSError, SlimError), (folder() / "warm.log").open("ab") as log:
            process = subprocess.Popen(
                launch.module_command("slim.jobs.warm"),
                stdin=subprocess.PIPE,  # which ends when this process does
                stdout=log,
                stderr=subprocess.STDOUT,
                env=launch.environment(SLIM_HOME=str(workspace.home())),
                start_new_session=True,
            )
            code = process.wait()
        time.sleep(AGAIN if code else 0)
