"""Long work as processes of its own: queued by device, seen and cancelled from anywhere."""

from slim.jobs.control import again, cancel, forget, in_order, jobs, log_of, move, start, state_of
from slim.jobs.job import Job, goes_on, kept

__all__ = [
    "Job",
    "again",
    "cancel",
    "forget",
    "goes_on",
    "in_order",
    "jobs",
    "kept",
    "log_of",
    "move",
    "start",
    "state_of",
]
