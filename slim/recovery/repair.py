"""The stage of closed-form repair: a pruned checkpoint in, a better one out, or the same where it is not better."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from slim.core import workspace
from slim.core.cache import open_cache
from slim.core.errors import InputError
from slim.core.progress import Progress, silent
from slim.core.records import Keep, Record
from slim.core.resources import Workload
from slim.data import tasks
from slim.data.batch_runner import Work
from slim.models.load import resolve_dtype
from slim.planning.record import Plan
from slim.pruning import checkpoint, held_out
from slim.pruning.surgery import prune
from slim.recovery.least_squares import FittedMatrix, repair_weights
from slim.recovery.workbench import RecoveryContext, recovery_context, round_to_stored

PASSES = 4.5
"""Forwards that a repair takes over its rows: the original once, the checkpoint more than twice, and the moments."""
STREAMS = 5
"""Numbers of the model's width that are kept of each token: both residuals, before, between and after a layer."""
MATRICES = 6
"""Second moments of the widest projection, and what solving takes, in float64."""


class RepairSettings(Record):
    """What a person chooses for a repair."""

    samples: int = Field(default=128, ge=4, description="rows drawn: to fit, to choose and decide by and to tell of")
    batch_size: int = Field(default=8, ge=1)
    max_length: int = Field(default=320, ge=2, description="tokens of a row beyond which it is cut")
    positions: tasks.Positions = Field(default="all", description="predictions that the figures count")
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    dtype: Literal["auto", "float32", "float64"] = "auto"


def repair(
    source: str,
    dataset: str | None = None,
    settings: RepairSettings | None = None,
    *,
    original: str | None = None,
    output: Path | None = None,
    progress: Progress = silent,
    tell: Callable[[Workload], None] = lambda planned: None,
    **data: Any,
) -> Path:
    """The folder of a repaired checkpoint (default: a new run in the workspace).

    `dataset` and `data`, what `tasks.load_task` takes, are by default those of the calibration. Rows that took no part
    decide whether the repair is applied. Raises InputError for what cannot be used or was not pruned.
    """
    settings = settings or RepairSettings()
    plan = held_out.plan_of(source)
    if plan is None:
        raise InputError(f"checkpoint {source!r} has no {checkpoint.PLAN_FILE}: repair is for what Slim pruned.")
    output = output or workspace.fresh_path("checkpoint", f"{Path(source).name}-repaired")
    workspace.check_output(output, plan.after.bytes)
    task = tasks.load_task(dataset, **data) if dataset else held_out.calibration_task(plan)
    at = recovery_context(source, task, settings, original, progress)
    planned = workload(at, settings)
    tell(planned)
    work = Work(progress, planned.forwards)
    with open_cache() as cache:
        before = at.figures(at.student, settings.batch_size, cache, work)
        fitted = fit(at, plan.keep, settings, work)
        round_to_stored(at.student.model, at.student.facts)
        after = at.figures_after(at.student.model, settings.batch_size, cache, work)
    applied = after["decide"].kl < before["decide"].kl
    chosen = settings.model_dump() | {"matrices": [asdict(one) for one in fitted]}
    step = at.step("repair", before, after, applied, chosen, [*work.notes, _said(fitted)])
    names = {f"{one.name}.{kind}" for one in fitted if one.strength for kind in ("weight", "bias")}
    changed = {
        name: weight.detach().cpu()
        for name, weight in at.student.model.named_parameters()
        if applied and name.endswith(tuple(names))
    }
    checkpoint.rewrite(source, output, changed, at.earlier.then(step))
    return output


def prune_and_repair(
    plan: Plan,
    settings: RepairSettings | None = None,
    *,
    output: Path | None = None,
    progress: Progress = silent,
    **data: Any,
) -> Path:
    """Executes a plan and repairs what it leaves, as `prune` and `repair` do one after the other."""
    output = output or workspace.fresh_path("checkpoint", f"{Path(plan.model.source.removeprefix('bundled:')).stem}")
    workspace.check_output(output, plan.after.bytes)
    with workspace.scratch_folder("cut") as folder:
        cut = prune(plan, folder / output.name, progress)
        return repair(str(cut), settings=settings, output=output, progress=progress, **data)


def fit(at: RecoveryContext, keep: Keep, settings: RepairSettings, work: Work) -> list[FittedMatrix]:
    """Corrects the student of `at` in place."""
    rows = {role: list(tasks.batches(at.drawn[role], settings.batch_size)) for role in ("learn", "choose")}
    tokens = at.drawn["learn"].tokens + at.drawn["choose"].tokens
    layers = sum(heads is not None for heads in keep)

    def advance(layer: int) -> None:
        work.advance(PASSES * tokens / layers, f"Repairing layer {layer + 1} of {layers}")

    return repair_weights(at.teacher, at.student, keep, rows["learn"], rows["choose"], advance)


def workload(at: RecoveryContext, settings: RepairSettings) -> Workload:
    """What a repair takes on its device."""
    facts, dtype = at.student.facts, resolve_dtype(settings.dtype)
    tokens = at.drawn["learn"].tokens + at.drawn["choose"].tokens
    sizes = [one.facts.parameters for one in (at.student, at.teacher)]
    inside = [shape for name, shape in facts.shapes.items() if name.startswith(at.student.architecture.layers)]
    widest, width = max(map(max, inside)), at.student.model.config.hidden_size
    held = sum(sizes) + tokens * STREAMS * width
    memory = held * dtype.itemsize + MATRICES * 8 * widest**2
    return at.workload(PASSES * tokens, memory, sizes[0] * facts.itemsize)


def _said(fitted: list[FittedMatrix]) -> str:
    corrected = [one for one in fitted if one.strength is not None]
    return f"{len(corrected)} of {len(fitted)} output projections were corrected"
