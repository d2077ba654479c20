"""What all steps of recovery share: a checkpoint beside its original, rows in their roles, figures before and after."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from diskcache import Cache

from slim.core.environment import versions
from slim.core.errors import InputError
from slim.core.progress import Progress, silent
from slim.core.records import ModelFacts
from slim.core.resources import Workload, memory_there, seconds_of
from slim.data import tasks
from slim.data.batch_runner import Work, subset
from slim.data.tasks import dataset_facts
from slim.evaluation import likelihood
from slim.evaluation.answers import context_of
from slim.evaluation.likelihood import Passes
from slim.models.load import Loaded, device_name, load_model, locate, resolve_dtype
from slim.pruning import held_out
from slim.pruning.history import ROLES, CurvePoint, Method, Quality, Recovery, RecoveryStep, load_recovery, role_of
from slim.recovery.teacher import check_vocabulary

UNCHANGED = "on the rows that decide the model was no better after it, so its weights are as they were"


class RowSettings(Protocol):
    """The settings that every step of recovery has."""

    @property
    def samples(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def positions(self) -> tasks.Positions: ...
    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True)
class DrawnRows:
    """The drawn rows by their roles, each as tokens."""

    task: tasks.Task
    parts: dict[str, tasks.Encoded]
    whole: tasks.Encoded
    notes: tuple[str, ...]

    def __getitem__(self, role: str) -> tasks.Encoded:
        return self.parts[role]


@dataclass
class RecoveryContext:
    """A checkpoint and its original with the rows for one step, and when it began."""

    source: str
    student: Loaded
    teacher: Loaded
    drawn: DrawnRows
    settings: RowSettings
    began: float = field(default_factory=time.monotonic)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def earlier(self) -> Recovery:
        """What was done before."""
        return load_recovery(Path(locate(self.source)))

    def figures(self, model: Loaded, batch_size: int, cache: Cache | None, work: Work) -> dict[str, Quality]:
        """How a model does beside the original on the rows that decide and on those that are reported."""

        def advance(tokens: int, known: bool) -> None:
            work.advance(2 * tokens, "Comparing with the original", known)

        passes = Passes(batch_size, cache, advance, work.note)
        return {role: quality(self.teacher, model, self.drawn[role], passes) for role in ("decide", "report")}

    def figures_after(self, model: Any, batch_size: int, cache: Cache | None, work: Work) -> dict[str, Quality]:
        """The same of what a step made of the student."""
        unknown = self.student.facts.model_copy(update={"fingerprint": ""})  # kept results are of the old weights
        return self.figures(replace(self.student, model=model, facts=unknown), batch_size, cache, work)

    def workload(self, forwards: float, memory: int, disk: int) -> Workload:
        """What a step takes on the student's device, the comparisons with the original before and after it included."""
        device, dtype = self.student.model.device, resolve_dtype(self.settings.dtype)
        forwards += 2 * 2 * (self.drawn["decide"].tokens + self.drawn["report"].tokens)
        return Workload(
            rows=len(self.drawn.whole.rows),
            tokens=self.drawn.whole.tokens,
            forwards=forwards,
            seconds=seconds_of(self.student.facts, forwards, device, dtype),
            memory=memory,
            disk=disk,
            there=memory_there(device),
        )

    def step(
        self,
        method: Method,
        before: dict[str, Quality],
        after: dict[str, Quality],
        applied: bool,
        settings: dict[str, Any],
        notes: Sequence[str] = (),
        curve: Sequence[CurvePoint] = (),
    ) -> RecoveryStep:
        """The record of the step."""
        if not applied:
            notes = (*notes, UNCHANGED)
        return RecoveryStep(
            method=method,
            dataset=dataset_facts(self.drawn.task, self.drawn.whole),
            samples=self.settings.samples,
            seed=self.settings.seed,
            rows={role: len(part.rows) for role, part in self.drawn.parts.items()},
            settings=settings | {"original": self.teacher.facts.source},
            before=before["report"],
            after=after["report"] if applied else before["report"],
            applied=applied,
            versions=versions(),
            device=device_name(self.student),
            started=self.started,
            seconds=time.monotonic() - self.began,
            curve=tuple(curve),
            notes=tuple(dict.fromkeys((*self.drawn.notes, *notes))),
        )


def recovery_context(
    source: str,
    task: tasks.Task,
    settings: RowSettings,
    original: str | None = None,
    progress: Progress = silent,
) -> RecoveryContext:
    """Everything that a step of recovery of `source` starts from.

    `original` is by default what `source` was cut from, or itself where it was not cut. Raises InputError for models
    that are not there or have other tokens, and for rows that cannot be used.
    """
    where: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype, "progress": progress}
    student = load_model(source, **where)
    teacher = load_model(original or original_of(source), **where)
    check_vocabulary(teacher, student)
    return RecoveryContext(source, student, teacher, draw(task, settings, source, student, teacher, progress), settings)


def original_of(source: str) -> str:
    """The model that `source` was cut from; itself where it was not cut."""
    return held_out.original_of([source]) if held_out.plan_of(source) is not None else source


def draw(
    task: tasks.Task, settings: RowSettings, source: str, student: Loaded, teacher: Loaded, progress: Progress = silent
) -> DrawnRows:
    """The rows of one step, and in words what was cut or left out.

    Rows that the calibration drew may be learnt from, and decide and tell nothing. Raises InputError where a role is
    left without rows.
    """
    length = min(settings.max_length, context_of(student), context_of(teacher))
    calibrated = held_out.calibrated_on(source, task)
    examples = tasks.choose(task, settings.samples, settings.seed, progress)
    whole = tasks.encode(examples, student.tokenizer, length, settings.positions)
    by_role: dict[str, list[int]] = {role: [] for role in ROLES}
    for row, place in enumerate(whole.places):
        role = role_of(examples[place])
        if role == "learn" or examples[place] not in calibrated:
            by_role[role].append(row)
    empty = [role for role, found in by_role.items() if not found]
    if empty:
        raise InputError(
            f"samples={settings.samples}: among {len(whole.rows)} rows none is left to {empty[0]}: each row has one "
            f"role ({', '.join(ROLES)}), and the calibration's own rows only teach: draw more rows, or from another "
            "split or file."
        )
    parts = {role: subset(whole, found) for role, found in by_role.items()}
    notes = []
    if length < settings.max_length:
        notes.append(f"the model reads at most {length:,} tokens, so rows were cut there")
    if whole.truncated_rows:
        notes.append(f"{whole.truncated_rows} rows were cut at {length:,} tokens")
    if whole.left_out:
        notes.append(f"{whole.left_out} rows were left out: nothing of their answer is within {length:,} tokens")
    return DrawnRows(task, parts, whole, tuple(notes))


@torch.no_grad()
def round_to_stored(model: Any, facts: ModelFacts) -> None:
    """To the number format that is stored, so that figures are those of the checkpoint."""
    dtype = resolve_dtype(facts.dtype)
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))


def quality(original: Loaded, other: Loaded, encoded: tasks.Encoded, passes: likelihood.Passes) -> Quality:
    """How `other` does on rows beside the original. Raises SlimError where a model gives no numbers."""
    base, mine = likelihood.against(original, other, encoded, passes)
    predicted = int(base["predicted"].sum())
    return Quality(
        kl=float(mine["kl"].sum()) / predicted,
        perplexity=math.exp(float(mine["surprise"].sum()) / predicted),
        original=math.exp(float(base["surprise"].sum()) / predicted),
        rows=len(encoded.rows),
        predicted=predicted,
    )
