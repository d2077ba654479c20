"""Long work as processes of its own: queued by device, seen and cancelled from anywhere."""

from slim.jobs.job import Job, resumes, what_is_kept
from slim.jobs.queue import again, cancel, forget, in_order, jobs, log_of, move, start, state_of

__all__ = [
    "Job",
    "again",
    "cancel",
    "forget",
    "in_order",
    "jobs",
    "log_of",
    "move",
    "resumes",
    "start",
    "state_of",
    "what_is_kept",
]
