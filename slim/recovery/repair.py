"""The repair stage: correct a pruned checkpoint in closed form, and keep the correction where it is better."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from slim.core import workspace
from slim.core.cache import open_cache
from slim.core.errors import InputError
from slim.core.reporter import SILENT, Reporter, Work
from slim.core.resources import Workload
from slim.data import tasks
from slim.models.load import resolve_dtype
from slim.models.original import PLAN_FILE
from slim.models.precision import precision_of
from slim.pruning import checkpoint, held_out
from slim.pruning.history import ACCEPTANCE, TRAIN, VALIDATION, RecoveryStep
from slim.pruning.surgery import put
from slim.recovery.context import RecoveryContext, recovery_context, round_to_stored
from slim.recovery.least_squares import FittedMatrix, repair_weights
from slim.recovery.request import RepairRequest
from slim.recovery.settings import RepairSettings

PASSES = 3.0
"""Cost of a repair in forward passes over its rows: the original, the checkpoint, and the moments."""
STREAMS = 6
"""Vectors of the model's width that are held of each token: both residuals, before, between and after a layer."""
TOGETHER = 4096
"""Positions that a layer reads in one go, about: enough for its matrix products, few beside all that are held."""
MATRICES = 6
"""Matrices in float64 as wide as the widest projection: second moments, and the solver's own."""


def repair(request: RepairRequest, reporter: Reporter = SILENT) -> Path:
    """Return the folder of a repaired checkpoint.

    The rows are by default those of the calibration. The acceptance rows decide whether the repair is applied. Raises
    InputError for a request that cannot be used, and for a checkpoint that was not pruned.
    """
    settings, source = request.part(RepairSettings), os.fspath(request.folder)
    plan = held_out.plan_of(source)
    if plan is None:
        raise InputError(f"folder={source!r}: it has no {PLAN_FILE}; name a checkpoint that Slim pruned.")
    output = request.output or workspace.fresh_path("checkpoint", f"{Path(source).name}-repaired")
    workspace.check_output(output, plan.after.bytes)
    task = held_out.rows_for_repair(plan, request.data)
    original = None if request.original is None else os.fspath(request.original)
    at = recovery_context(source, task, settings, original, reporter)
    step, changed = repaired(at, settings, reporter)
    checkpoint.rewrite(source, output, changed, at.earlier.then(step), at.student.model if step.applied else None)
    return output


def repaired(
    at: RecoveryContext, settings: RepairSettings, reporter: Reporter
) -> tuple[RecoveryStep, Mapping[str, Tensor]]:
    """Repair the student of `at`, in memory, where that makes it better on the acceptance rows.

    Return the record of the step, and the changed weights by name. Tensors that the student shares with another model
    stay as they are.
    """
    if at.plan is None:
        raise ValueError("a repair needs the plan that the student was cut by")
    planned = workload(at, settings)
    reporter.estimate(planned.sentence())
    work, model = Work(reporter, planned.forwards), at.student.model
    unrepaired = dict(model.named_parameters())
    with open_cache() as cache:
        before = at.figures(at.student, settings.batch_size, cache, work)
    precision = precision_of(settings.precision, at.teacher.model)
    fitted = _fit(at, settings, precision, work)
    changed = {name: weight for name, weight in model.named_parameters() if weight is not unrepaired[name]}
    round_to_stored(changed.items(), at.student.facts)
    after = at.figures_after(model, settings.batch_size, work)
    applied = after[ACCEPTANCE].kl < before[ACCEPTANCE].kl
    if not applied:
        for name in changed:
            put(model, name, unrepaired[name])
    chosen = settings.model_dump() | {"precision": precision, "matrices": [asdict(one) for one in fitted]}
    step = at.step("repair", before, after, applied, chosen, [*work.notes, _summary(fitted)])
    return step, {name: weight.detach().cpu() for name, weight in changed.items() if applied}


def workload(at: RecoveryContext, settings: RepairSettings) -> Workload:
    """Return the work of a repair on its device."""
    facts, dtype = at.student.facts, resolve_dtype(settings.dtype)
    tokens = at.drawn[TRAIN].tokens + at.drawn[VALIDATION].tokens
    sizes = [one.facts.parameters for one in (at.student, at.teacher)]
    inside = [shape for name, shape in facts.shapes.items() if name.startswith(at.student.architecture.layers)]
    widest, width = max(map(max, inside)), at.student.model.config.hidden_size
    held = sum(sizes) + tokens * (STREAMS * width + widest)
    memory = held * dtype.itemsize + MATRICES * 8 * widest**2
    return at.workload(PASSES * tokens, memory, sizes[0] * facts.itemsize)


def _rows_at_once(encoded: tasks.Encoded, settings: RepairSettings) -> int:
    """Return how many rows a layer reads in one go: more than the settings say where rows are short."""
    return max(settings.batch_size, TOGETHER // max(encoded.lengths))


def _fit(at: RecoveryContext, settings: RepairSettings, precision: str, work: Work) -> list[FittedMatrix]:
    parts = {role: at.drawn[role] for role in (TRAIN, VALIDATION)}
    rows = {role: list(tasks.batches(part, _rows_at_once(part, settings))) for role, part in parts.items()}
    tokens = at.drawn[TRAIN].tokens + at.drawn[VALIDATION].tokens
    keep = at.plan.keep if at.plan else ()
    layers = sum(kept.layer for kept in keep)

    def advance(layer: int) -> None:
        work.advance(PASSES * tokens / layers, f"Repairing layer {layer + 1} of {layers}")

    return repair_weights(at.teacher, at.student, keep, rows[TRAIN], rows[VALIDATION], advance, precision, at.residuals)


def _summary(fitted: list[FittedMatrix]) -> str:
    corrected = [one for one in fitted if one.strength is not None]
    return f"{len(corrected)} of {len(fitted)} output projections were corrected"
