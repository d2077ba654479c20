"""Long stages as processes of their own: queued by device, listed and cancelled from anywhere."""

from slim.jobs.job import Job
from slim.jobs.queue import (
    again,
    cancel,
    forget,
    in_order,
    jobs,
    log_of,
    move,
    request_of,
    resumes,
    start,
    state_of,
    tend,
    what_is_kept,
)

__all__ = [
    "Job",
    "again",
    "cancel",
    "forget",
    "in_order",
    "jobs",
    "log_of",
    "move",
    "request_of",
    "resumes",
    "start",
    "state_of",
    "tend",
    "what_is_kept",
]
