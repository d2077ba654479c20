"""What was done to win back what pruning lost, and what it gave: the record `slim_recovery.json` of a checkpoint."""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from slim.core.errors import InputError
from slim.core.migrations import read_record
from slim.core.paths import is_file
from slim.core.records import DatasetFacts, Record, why_invalid
from slim.data import tasks

RECOVERY_FILE = "slim_recovery.json"
Method = Literal["repair", "local", "lora", "kd"]
ROLES = {"learn": 12, "choose": 1, "decide": 1, "report": 2}
"""What rows are for: to learn from, to choose the best setting or step by, to decide whether it is kept, to tell of."""


class Quality(Record):
    """How a model does on rows that took no part in its recovery."""

    kl: float = Field(ge=0, description="KL(original ‖ model), nats per predicted token")
    perplexity: float = Field(gt=0, description="of the rows' own tokens")
    original: float = Field(gt=0, description="the original's perplexity on the same rows")
    rows: int = Field(ge=1)
    predicted: int = Field(ge=1, description="tokens that the figures are means over")

    @property
    def ratio(self) -> float:
        """Times the original's perplexity."""
        return self.perplexity / self.original

    def __str__(self) -> str:
        return f"KL {self.kl:.3f} nats/token, perplexity {self.ratio:.3f}× the original's"


class CurvePoint(Record):
    """One point of a training curve."""

    step: int = Field(ge=0)
    training: float | None = Field(default=None, description="mean loss since the point before")
    validation: float = Field(description="loss on the validation rows")
    kl: float = Field(ge=0, description="KL(original ‖ model) on the validation rows, nats per predicted token")


class RecoveryStep(Record):
    """One step of recovery: what was done, on which rows, and how the model did before and after."""

    method: Method
    dataset: DatasetFacts
    samples: int = Field(ge=1, description="rows drawn from the split, for everything but the final figures too")
    seed: int = Field(ge=0)
    rows: dict[str, int] = Field(description="what the drawn rows were for: no row is for two things")
    settings: dict[str, Any]
    before: Quality
    after: Quality
    applied: bool = Field(description="false: the step made it worse, and the weights are as they were")
    versions: dict[str, str]
    device: str
    started: str
    seconds: float = Field(ge=0)
    curve: tuple[CurvePoint, ...] = ()
    notes: tuple[str, ...] = ()


class Recovery(Record):
    """Every step of recovery since a checkpoint was pruned, the first one first."""

    schema_version: Literal[1] = 1
    kind: Literal["recovery"] = "recovery"
    steps: tuple[RecoveryStep, ...] = ()

    def then(self, step: RecoveryStep) -> "Recovery":
        return self.model_copy(update={"steps": (*self.steps, step)})


def load_recovery(folder: Path) -> Recovery:
    """The recovery of a checkpoint, without steps where there was none. Raises InputError for a damaged record."""
    file = folder / RECOVERY_FILE
    if not is_file(file):
        return Recovery()
    try:
        return read_record(Recovery, file, f"checkpoint {str(folder)!r}: its {RECOVERY_FILE}")
    except (ValueError, OSError) as error:
        raise InputError(
            f"checkpoint {str(folder)!r}: its {RECOVERY_FILE} is damaged ({why_invalid(error)}): copy it again."
        ) from error


def role_of(example: tasks.Example) -> str:
    """The role of a row, by its content alone: it is the same in every step, whatever else is drawn."""
    content = repr((example.prompt, example.turns, example.answer)).encode()
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % sum(ROLES.values())
    for role, share in ROLES.items():
        place -= share
        if place < 0:
            return role
    raise RuntimeError("the shares of the roles do not add up")
