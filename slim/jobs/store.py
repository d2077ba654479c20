"""The durable list of jobs: one JSON value each in a diskcache (SQLite in WAL mode) inside the workspace."""

from typing import Any, Literal

from diskcache import Cache
from pydantic import Field, ValidationError

from slim import workspace
from slim.plain_disk import PlainDisk
from slim.progress import remaining_seconds
from slim.records import Record

State = Literal["queued", "running", "cancelling", "cancelled", "failed", "done"]
UNFINISHED = ("queued", "running", "cancelling")
STEADY = 0.04
"""Share of the work after which its pace is a fair guess for the rest."""


class Job(Record):
    """A job as it stood when it was last written. Times are seconds since the epoch."""

    id: str
    kind: str
    arguments: dict[str, Any]
    state: State = "queued"
    created: float
    started: float | None = None
    paced: float | None = Field(default=None, description="when the stage at hand began, for the time to go")
    ended: float | None = None
    pid: int | None = None
    pid_started: float | None = Field(default=None, description="tells a worker from a later process with its number")
    done: float = 0
    total: float = 1
    message: str = "Starting"
    curve: tuple[dict[str, Any], ...] = Field(default=(), description="of a training so far, as `slim.recovery.Point`")
    result: str | None = None
    error: str | None = None

    @property
    def unfinished(self) -> bool:
        return self.state in UNFINISHED

    @property
    def fraction(self) -> float:
        """Share of the work done, 0..1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0

    def remaining(self, now: float) -> float | None:
        """Seconds to go; None while too little is done to know the pace."""
        if self.paced is None or self.fraction < STEADY:
            return None
        return remaining_seconds(now - self.paced, self.done, self.total)


class JobStore:
    """Reads and writes jobs; safe to use from many processes."""

    def __init__(self) -> None:
        self.folder = workspace.subfolder("jobs")
        self._cache = Cache(str(self.folder / "store"), disk=PlainDisk, eviction_policy="none")

    def __enter__(self) -> "JobStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self._cache.close()

    def get(self, job_id: str) -> Job | None:
        value = self._cache.get(job_id)
        try:
            return None if value is None else Job.model_validate(value)
        except ValidationError:  # written by another version
            return None

    def put(self, job: Job) -> Job:
        self._cache.set(job.id, job.model_dump(mode="json"))
        return job

    def update(self, job_id: str, only_if: tuple[State, ...] = UNFINISHED, **changes: Any) -> Job | None:
        """Changes fields of a job that is in one of the states `only_if`; the job as it then stands."""
        with self._cache.transact():
            job = self.get(job_id)
            if job is not None and job.state in only_if:
                job = self.put(job.model_copy(update=changes))
            return job

    def delete(self, job_id: str) -> None:
        self._cache.delete(job_id)

    def all(self) -> list[Job]:
        """Every job, newest first."""
        found = [self.get(str(key)) for key in self._cache]
        return sorted((job for job in found if job), key=lambda job: job.created, reverse=True)
