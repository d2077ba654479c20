"""Waiting for jobs and their processes. Nothing is asserted about time."""

import time
from collections.abc import Callable
from typing import Any

import psutil

from slim import jobs
from slim.jobs import Job

PATIENCE = 300.0
"""Seconds after which a test gives up."""


def wait_until(ready: Callable[[], Any], said: Callable[[], object] = lambda: "") -> Any:
    """The result of `ready` once that is true."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.05)
    raise AssertionError(said())


def wait_for(job: Job, ready: Callable[[Job], Any]) -> Job:
    """The job once it is `ready`."""

    def look() -> Job | None:
        found = jobs.state_of(job.id)
        assert found is not None
        return found if ready(found) else None

    return wait_until(look, lambda: f"{jobs.state_of(job.id)}\n{jobs.log_of(job.id)}")


def ended(job: Job) -> bool:
    """Whether it came to an end of any kind."""
    return not job.unfinished


def gone(pid: int | None) -> bool:
    """Whether no such process runs any more."""
    assert pid is not None
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
