"""The record of a job."""

import time
from typing import Any, Literal

from pydantic import ConfigDict, Field

from slim.core.records import Record
from slim.core.reporter import remaining_seconds

State = Literal["queued", "running", "cancelling", "cancelled", "failed", "done"]
Origin = Literal["page", "command line"]
UNFINISHED = ("queued", "running", "cancelling")
STEADY = 0.04
"""Share of the work after which its speed gives a fair estimate of the rest."""
SILENT = 30.0
"""Seconds without a heartbeat after which a running process counts as not answering."""


class Job(Record):
    """A job as it was last written. Times are seconds since the epoch, memory is in bytes."""

    model_config = ConfigDict(extra="ignore")  # a newer Slim on the same workspace may add fields

    id: str
    kind: str
    arguments: dict[str, Any]
    device: str = Field(default="cpu", description="device whose queue it is in")
    executor: str = Field(default="local", description="executor by its name in `slim.jobs.executor`")
    origin: Origin = "page"
    attached: bool = Field(default=False, description="whether its process is a command in a terminal")
    confined: str = Field(default="", description="folders that its paths must lie in, as `slim.core.paths` has them")
    repeats: str | None = Field(default=None, description="the job that it repeats")
    state: State = "queued"
    place: float = Field(default=0, description="position in the queue, the lowest first")
    created: float
    started: float | None = None
    paced: float | None = Field(default=None, description="start of the current stage, for the remaining time")
    ended: float | None = None
    pid: int | None = None
    pid_started: float | None = Field(default=None, description="tells a worker from a later process with its number")
    beat: float | None = Field(default=None, description="time of the last heartbeat of its process")
    memory: int | None = Field(default=None, description="memory at that time, with its child processes")
    peak: int | None = Field(default=None, description="peak memory")
    done: float = 0
    total: float = 1
    message: str = "Waiting for its turn"
    curve: tuple[dict[str, Any], ...] = Field(
        default=(), description="training curve so far, as `slim.pruning.history.CurvePoint`"
    )
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
        """The seconds that remain; None while too little is done for an estimate."""
        if self.paced is None or self.fraction < STEADY:
            return None
        return remaining_seconds(now - self.paced, self.done, self.total)

    def silent(self, now: float | None = None) -> bool:
        """Return whether its process has sent no heartbeat for long."""
        return self.unfinished and self.beat is not None and (now or time.time()) - self.beat > SILENT


def over(state: Literal["done", "failed", "cancelled"], **more: Any) -> dict[str, Any]:
    """The changed fields of a job that ends now."""
    return {"state": state, "message": state.capitalize(), "ended": time.time(), **more}
