"""Long work as processes of its own: started, watched and cancelled from anywhere, whatever becomes of the page."""

from slim.jobs.control import cancel, forget, jobs, start, state_of
from slim.jobs.store import Job

__all__ = ["Job", "cancel", "forget", "jobs", "start", "state_of"]
