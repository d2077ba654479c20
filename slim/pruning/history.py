"""The record of a checkpoint's recovery, `slim_recovery.json`: every step, with figures before and after it."""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from slim.core.errors import InputError
from slim.core.migrations import Raw, read_record
from slim.core.paths import is_file
from slim.core.records import DatasetFacts, Record, why_invalid
from slim.data import tasks

RECOVERY_FILE = "slim_recovery.json"
UNCHANGED = "on the acceptance rows the model was no better after it, so its weights are as they were"
"""Note of a step that was not applied."""
BROKEN = "on the acceptance rows clearly fewer answers ended by themselves after it"
"""Start of the note of a training that was not applied for that."""
Method = Literal["repair", "local", "lora", "kd"]
TRAIN, VALIDATION, ACCEPTANCE, TEST = "train", "validation", "acceptance", "test"
ROLES = {TRAIN: 12, VALIDATION: 1, ACCEPTANCE: 1, TEST: 2}
"""Shares of the rows by split: to train on, to select the best setting or step, to accept or reject the result, and to
measure the figures of the record."""


class TriedAnswers(Record):
    """Greedy answers to some rows, and how many of them the model ended by itself."""

    rows: int = Field(ge=1)
    stopped: int = Field(ge=0)
    max_new_tokens: int = Field(ge=1, description="tokens at which an answer was cut")

    def __str__(self) -> str:
        return f"{self.stopped} of {self.rows}"


class Quality(Record):
    """Quality of a model beside the original, on rows that took no part in its recovery."""

    kl: float = Field(ge=0, description="KL(original ‖ model), nats per predicted token")
    perplexity: float = Field(gt=0, description="of the rows' own tokens")
    original: float = Field(gt=0, description="the original's perplexity on the same rows")
    rows: int = Field(ge=1)
    predicted: int = Field(ge=1, description="tokens that the figures are means over")
    answers: TriedAnswers | None = Field(
        default=None,
        description="where answers were tried: around a training",
        exclude_if=lambda answers: answers is None,
    )

    @property
    def ratio(self) -> float:
        """The perplexity as a multiple of the original's."""
        return self.perplexity / self.original

    def __str__(self) -> str:
        return f"KL {self.kl:.3f} nats/token, perplexity {self.ratio:.3f}× the original's"


class CurvePoint(Record):
    """One point of a training curve."""

    step: int = Field(ge=0)
    training: float | None = Field(default=None, description="mean training loss since the previous point")
    validation: float = Field(description="loss on the validation rows")
    kl: float = Field(ge=0, description="KL(original ‖ model) on the validation rows, nats per predicted token")


class RecoveryStep(Record):
    """One step of recovery: its method, rows and settings, and the model's quality before and after it."""

    method: Method
    dataset: DatasetFacts
    samples: int = Field(ge=1, description="rows drawn, of all splits together")
    seed: int = Field(ge=0)
    rows: dict[str, int] = Field(description="rows of each split, which do not overlap")
    settings: dict[str, Any]
    before: Quality
    after: Quality
    applied: bool = Field(
        description="false where the step made the model no better or broke its stopping: its weights are unchanged"
    )
    versions: dict[str, str]
    device: str
    started: str
    seconds: float = Field(ge=0)
    curve: tuple[CurvePoint, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def stopped(self) -> str:
        """Tried answers that ended by themselves before and after the step; empty where none were tried."""
        one, other = self.before.answers, self.after.answers
        return f"{one.stopped} → {other}" if one and other else ""

    @property
    def unchanged(self) -> str:
        """The reason why a step was not applied."""
        return next((note for note in self.notes if note.startswith(BROKEN)), UNCHANGED)


class Recovery(Record):
    """Every step of recovery since a checkpoint was pruned, in order."""

    schema_version: Literal[2] = 2
    kind: Literal["recovery"] = "recovery"
    steps: tuple[RecoveryStep, ...] = ()

    def then(self, step: RecoveryStep) -> "Recovery":
        """Return the record with one more step."""
        return self.model_copy(update={"steps": (*self.steps, step)})


def load_recovery(folder: Path) -> Recovery:
    """Return the recovery of a checkpoint; it has no steps where the file is missing.

    Raises InputError for a damaged record.
    """
    file = folder / RECOVERY_FILE
    if not is_file(file):
        return Recovery()
    try:
        return read_record(Recovery, file, f"checkpoint={str(folder)!r}: its {RECOVERY_FILE}")
    except (ValueError, OSError) as error:
        raise InputError(
            f"checkpoint={str(folder)!r}: its {RECOVERY_FILE} is damaged ({why_invalid(error)}); copy it again."
        ) from error


def _recovery_1(raw: Raw) -> Raw:
    """Rename the splits, which had other names in version 1."""
    names = {"learn": TRAIN, "choose": VALIDATION, "decide": ACCEPTANCE, "report": TEST}
    steps = [
        step | {"rows": {names.get(role, role): count for role, count in step.get("rows", {}).items()}}
        for step in raw.get("steps", [])
    ]
    return raw | {"steps": steps}


def role_of(example: tasks.Example) -> str:
    """Return the split of a row, by its content alone: it is the same in every step, whichever rows are drawn."""
    content = repr((example.prompt, example.turns, example.answer)).encode()
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % sum(ROLES.values())
    for role, share in ROLES.items():
        place -= share
        if place < 0:
            return role
    raise RuntimeError("the shares of the splits do not add up")
