"""The recovery context: a pruned model and its original, rows by split, and figures before and after a step."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from diskcache import Cache
from torch import Tensor

from slim.core.environment import versions
from slim.core.errors import InputError
from slim.core.fields import Positions
from slim.core.records import ModelFacts
from slim.core.reporter import SILENT, Reporter, Work
from slim.core.resources import Workload, memory_there, seconds_of
from slim.data import tasks
from slim.data.batch_runner import subset
from slim.data.omissions import merged, omitted
from slim.data.tasks import dataset_facts
from slim.evaluation import likelihood
from slim.evaluation.answers import DECODED, context_of
from slim.evaluation.likelihood import Passes
from slim.models.load import Loaded, device_name, load_model, locate, resolve_dtype
from slim.planning.record import Plan
from slim.pruning import held_out
from slim.pruning.history import (
    ACCEPTANCE,
    ROLES,
    TEST,
    TRAIN,
    UNCHANGED,
    CurvePoint,
    Method,
    Quality,
    Recovery,
    RecoveryStep,
    load_recovery,
    role_of,
)
from slim.recovery.least_squares import Residuals
from slim.recovery.teacher import check_vocabulary
from slim.recovery.tried import Questions, questions, tried

JUDGED = (ACCEPTANCE, TEST)
"""Splits whose figures are measured before and after a step."""
Asked = dict[str, Questions]
"""Questions by split."""


class RowSettings(Protocol):
    """Settings that every step of recovery has."""

    @property
    def samples(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def positions(self) -> Positions: ...
    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True)
class DrawnRows:
    """The drawn rows as tokens, by split."""

    task: tasks.Task
    parts: dict[str, tasks.Encoded]
    whole: tasks.Encoded
    notes: tuple[str, ...]
    examples: dict[str, tuple[tasks.Example, ...]]

    def __getitem__(self, role: str) -> tasks.Encoded:
        """Return the rows of a split."""
        return self.parts[role]


@dataclass
class RecoveryContext:
    """A pruned model and its original, both in memory, with the rows for one step and the time it began."""

    student: Loaded
    teacher: Loaded
    drawn: DrawnRows
    settings: RowSettings
    plan: Plan | None = None
    earlier: Recovery = field(default_factory=Recovery)
    states: dict[bytes, Tensor] = field(default_factory=dict)
    residuals: Residuals | None = None
    began: float = field(default_factory=time.monotonic)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def figures(
        self, model: Loaded, batch_size: int, cache: Cache | None, work: Work, asked: Asked | None = None
    ) -> dict[str, Quality]:
        """Return the quality of a model beside the original on the acceptance and test rows.

        Questions that are `asked` are answered, to see how many of the answers end.
        """
        passes = Passes(batch_size, cache, work.step("Comparing with the original", 2), states=self.states)
        found = {role: quality(self.teacher, model, self.drawn[role], passes) for role in JUDGED}
        step = work.step("Trying answers", DECODED)
        answers = {role: tried(model, one, cache, step) for role, one in (asked or {}).items()}
        return {role: one.model_copy(update={"answers": answers.get(role)}) for role, one in found.items()}

    def figures_after(self, model: Any, batch_size: int, work: Work, asked: Asked | None = None) -> dict[str, Quality]:
        """Return the same figures for the student's `model` with other weights."""
        changed = self.student.facts.model_copy(update={"fingerprint": ""})  # cached figures are of the old weights
        return self.figures(replace(self.student, model=model, facts=changed), batch_size, None, work, asked)

    @cached_property
    def asked(self) -> Asked:
        """Questions of the rows that accept or test a training."""
        rows = self.drawn.examples
        return {role: questions(rows[role], self.student, self.settings.max_length) for role in JUDGED}

    def workload(self, forwards: float, memory: int, disk: int) -> Workload:
        """Return the work of a step on the student's device, with the comparisons with the original around it."""
        device, dtype = self.student.model.device, resolve_dtype(self.settings.dtype)
        forwards += 2 * 2 * (self.drawn[ACCEPTANCE].tokens + self.drawn[TEST].tokens)
        return Workload(
            rows=len(self.drawn.whole.rows),
            tokens=self.drawn.whole.tokens,
            forwards=forwards,
            seconds=seconds_of(self.student.facts, forwards, device, dtype),
            memory=memory,
            disk=disk,
            there=memory_there(device),
        )

    def with_answers(self, planned: Workload) -> Workload:
        """Return the work of a training with the questions answered before and after it."""
        more = 2 * sum(one.cost for one in self.asked.values())
        device, dtype = self.student.model.device, resolve_dtype(self.settings.dtype)
        seconds = planned.seconds + seconds_of(self.student.facts, more, device, dtype)
        return replace(planned, forwards=planned.forwards + more, seconds=seconds)

    def step(
        self,
        method: Method,
        before: dict[str, Quality],
        after: dict[str, Quality],
        applied: bool,
        settings: dict[str, Any],
        notes: Sequence[str] = (),
        curve: Sequence[CurvePoint] = (),
        unchanged: str = UNCHANGED,
    ) -> RecoveryStep:
        """Return the record of the step; one that is not `applied`, `unchanged` says why, keeps the earlier figures."""
        if not applied:
            notes = (*notes, unchanged)
        return RecoveryStep(
            method=method,
            dataset=dataset_facts(self.drawn.task, self.drawn.whole),
            samples=self.settings.samples,
            seed=self.settings.seed,
            rows={role: len(part.rows) for role, part in self.drawn.parts.items()},
            settings=settings | {"original": self.teacher.facts.source},
            before=before[TEST],
            after=(after if applied else before)[TEST],
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
    reporter: Reporter = SILENT,
) -> RecoveryContext:
    """Return the context of a recovery step of the checkpoint `source`.

    `original` is by default the model that `source` was cut from, or itself where it was not cut. Raises InputError for
    models that are missing or have different tokens, and for rows that cannot be used.
    """
    plan = held_out.plan_of(source)
    where: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype, "reporter": reporter}
    student = load_model(source, **where)
    teacher = load_model(original or original_of(source), **where)
    drawn = draw(task, settings, plan, student, teacher, reporter)
    return RecoveryContext(student, teacher, drawn, settings, plan, load_recovery(Path(locate(source))))


def original_of(source: str) -> str:
    """Return the model that `source` was cut from; itself where it was not cut."""
    plan = held_out.plan_of(source)
    return source if plan is None else plan.model.source


def draw(
    task: tasks.Task,
    settings: RowSettings,
    plan: Plan | None,
    student: Loaded,
    teacher: Loaded,
    reporter: Reporter = SILENT,
) -> DrawnRows:
    """Return the rows of one step by split, with notes on rows that were cut or left out.

    Rows that the calibration drew are for training only. Raises InputError where a split has no rows, and where the
    models have different tokens.
    """
    check_vocabulary(teacher, student)
    length = min(settings.max_length, context_of(student), context_of(teacher))
    calibrated = held_out.calibrated_on(plan, task)
    examples = tasks.choose(task, settings.samples, settings.seed, reporter)
    whole = tasks.encode(examples, student.tokenizer, length, settings.positions)
    by_role: dict[str, list[int]] = {role: [] for role in ROLES}
    for row, place in enumerate(whole.places):
        role = role_of(examples[place])
        if role == TRAIN or examples[place] not in calibrated:
            by_role[role].append(row)
    if empty := [role for role, found in by_role.items() if not found]:
        raise InputError(
            f"samples={settings.samples}: none of {len(whole.rows)} rows is left for the {empty[0]} split (each row is "
            f"in one of {', '.join(ROLES)}, and the calibration's own rows are for training only); draw more rows, or "
            "name another dataset split or file."
        )
    parts = {role: subset(whole, found) for role, found in by_role.items()}
    own = {role: tuple(examples[whole.places[row]] for row in found) for role, found in by_role.items()}
    notes = []
    if length < settings.max_length:
        notes.append(f"the model's context is {length:,} tokens, so rows were cut there")
    reporter.rows(tasks.reading_of(task, whole.omissions))
    notes += omitted(merged(task.tally.omissions, whole.omissions))
    return DrawnRows(task, parts, whole, tuple(notes), own)


@torch.no_grad()
def round_to_stored(parameters: Iterable[tuple[str, Tensor]], facts: ModelFacts) -> None:
    """Round weights, by name, in place to their stored number formats, so that figures are those of the checkpoint."""
    for name, parameter in parameters:
        parameter.copy_(parameter.to(resolve_dtype(facts.format_of(name))))


def quality(original: Loaded, other: Loaded, encoded: tasks.Encoded, passes: likelihood.Passes) -> Quality:
    """Return the quality of `other` beside the original on rows. Raises SlimError for NaN or infinite figures."""
    base, mine = likelihood.against(original, other, encoded, passes)
    predicted = int(base["predicted"].sum())
    return Quality(
        kl=float(mine["kl"].sum()) / predicted,
        perplexity=math.exp(float(mine["surprise"].sum()) / predicted),
        original=math.exp(float(base["surprise"].sum()) / predicted),
        rows=len(encoded.rows),
        predicted=predicted,
    )
