"""What is known of a job."""

import time
from typing import Any, Literal

from pydantic import ConfigDict, Field

from slim.core.progress import remaining_seconds
from slim.core.records import Record

State = Literal["queued", "running", "cancelling", "cancelled", "failed", "done"]
Origin = Literal["page", "command line"]
UNFINISHED = ("queued", "running", "cancelling")
STEADY = 0.04
"""Share of the work after which its pace is a fair guess for the rest."""
SILENT = 30.0
"""Seconds without a heartbeat after which a process that is there does not answer."""
ROWS_KEPT = "The rows that are done are kept, and the same request goes on from there."
KEPT = {
    "calibrate": ROWS_KEPT,
    "evaluate": ROWS_KEPT,
    "judge": ROWS_KEPT,
    "finetune": "What was learnt up to the last saved state is kept, and the same training goes on from there.",
}
ROUNDS_KEPT = "The rounds that are done are kept, and the same request goes on after them."


class Job(Record):
    """A job as it stood when it was last written. Times are seconds since the epoch, memory is in bytes."""

    model_config = ConfigDict(extra="ignore")  # of a newer Slim on the same workspace: a job is not lost for it

    id: str
    kind: str
    arguments: dict[str, Any]
    device: str = Field(default="cpu", description="whose queue it stands in")
    origin: Origin = "page"
    attached: bool = Field(default=False, description="whether its process is the command that a person gave")
    confined: str = Field(default="", description="the folders that its paths must lie in, as `slim.core.paths` has it")
    repeats: str | None = Field(default=None, description="the job of which it is the same again")
    state: State = "queued"
    place: float = Field(default=0, description="in the queue, the least first")
    created: float
    started: float | None = None
    paced: float | None = Field(default=None, description="when the stage at hand began, for the time to go")
    ended: float | None = None
    pid: int | None = None
    pid_started: float | None = Field(default=None, description="tells a worker from a later process with its number")
    beat: float | None = Field(default=None, description="when its process last said that it is there")
    memory: int | None = Field(default=None, description="what it held then, with the processes that it started")
    peak: int | None = Field(default=None, description="the most that it held")
    done: float = 0
    total: float = 1
    message: str = "Waiting for its turn"
    curve: tuple[dict[str, Any], ...] = Field(
        default=(), description="of a training so far, as `slim.pruning.history.CurvePoint`"
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
        """Seconds to go; None while too little is done to know the pace."""
        if self.paced is None or self.fraction < STEADY:
            return None
        return remaining_seconds(now - self.paced, self.done, self.total)

    def silent(self, now: float | None = None) -> bool:
        """Whether its process has not been heard of for long."""
        return self.unfinished and self.beat is not None and (now or time.time()) - self.beat > SILENT


def over(state: Literal["done", "failed", "cancelled"], **more: Any) -> dict[str, Any]:
    """What changes of a job that comes to its end now."""
    return {"state": state, "message": state.capitalize(), "ended": time.time(), **more}


def resumes(job: Job) -> bool:
    """Whether the same request goes on where this one was stopped."""
    return job.kind in KEPT or job.arguments.get("rounds", 1) > 1


def what_is_kept(job: Job) -> str:
    """What is left of a job that did not come to its end, in a sentence."""
    if job.arguments.get("rounds", 1) > 1:
        return ROUNDS_KEPT
    return KEPT.get(job.kind, "Nothing was kept of it: the same request starts anew.")
