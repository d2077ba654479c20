"""Iterative pruning: remove a little, repair, measure again, until a plan's budget is met.

The loss increase of removing a head changes once others are removed and the rest is repaired, so each round is planned
on a loss sketch of the previous round's model, and repaired towards the original. All rounds work on one original in
memory. The result of each is small, and kept until the last is done, so that the same request resumes after it.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slim.calibration.passes import Passes, rounding
from slim.calibration.record import Calibration, load_calibration
from slim.calibration.reload import calibrated_rows
from slim.calibration.resources import sketch_cost
from slim.core import paths, workspace
from slim.core.environment import versions
from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.core.reporter import Reporter, Work
from slim.core.resources import memory_there
from slim.data import tasks
from slim.models.architectures import Architecture
from slim.models.load import Loaded, load_model
from slim.models.precision import precision_of
from slim.models.units import UNITS, Keep, UnitName
from slim.planning.after_repair import after_repair_sketch, measure_after_repair
from slim.planning.budget import Planner
from slim.planning.build import build_plan
from slim.planning.quantities import LOSS
from slim.planning.record import ByBudget, Pins, Plan
from slim.planning.slicing import Slice, renumbered, slice_of
from slim.pruning import checkpoint, held_out
from slim.pruning.history import TRAIN, VALIDATION, Recovery
from slim.pruning.surgery import assembled, check_channels, check_same, cut, put
from slim.recovery.context import DrawnRows, RecoveryContext, draw
from slim.recovery.least_squares import Residuals
from slim.recovery.repair import repaired
from slim.recovery.request import PruneRequest
from slim.recovery.settings import RepairSettings
from slim.targets.target import target

ROOM = 2**31
"""Bytes that the original's residuals may take from one round to the next, but no more than an eighth of the memory;
others are computed by every round."""


@dataclass(frozen=True)
class Round:
    """The model after a round: in the pruned shape, with its plan and all repairs so far."""

    plan: Plan
    pruned: Loaded
    recovery: Recovery


def prune_in_rounds(plan: Plan, request: PruneRequest, reporter: Reporter) -> Path:
    """Return the folder of a checkpoint within the budget of `plan`, reached in the rounds of the request.

    Its record has a step for each round, with the figures before and after that round's repair. Raises InputError for a
    plan that is not by budget, and for one whose calibration is missing.
    """
    settings, rounds, limits = request.part(RepairSettings), request.rounds, _limits(plan)
    measured = load_calibration(paths.local(plan.calibration, "calibration"))
    task = held_out.rows_for_repair(plan, request.data)
    original = load_original(plan, settings, reporter)
    check_same(plan, original)
    output = request.output or workspace.fresh_path("checkpoint", f"{Path(original.facts.source).name}-rounds")
    workspace.check_output(output, plan.after.bytes)
    precision = precision_of(settings.precision, original.model)
    drawn = draw(task, settings, plan, original, original, reporter)
    calibrated = calibrated_rows(measured, original)
    states: dict[bytes, Tensor] = {}
    room = min(ROOM, memory_there(original.model.device) // 8)
    residuals: Residuals | None = {} if _residuals(drawn, original) <= room else None
    folder = workspace.subfolder("rounds") / _key(plan, request, precision)
    last: Round | None = None
    for number in range(1, rounds + 1):
        file = folder / f"{number}.safetensors"
        if file.is_file():
            last = _read(file, original)
            continue
        said = reporter.named(lambda message, number=number: f"Round {number} of {rounds}: {message}")
        now = original if last is None else expanded(original, last)
        made = _planned(now, measured, calibrated, plan, last, _part(limits, number / rounds), precision, said)
        pruned = cut(now, made)
        at = RecoveryContext(pruned, original, drawn, settings, made, states=states, residuals=residuals)
        step, _ = repaired(at, settings, said)
        last = Round(made, pruned, (last.recovery if last else Recovery()).then(step))
        _keep(file, original, last)
    if last is None:
        raise ValueError(f"rounds={rounds}: at least one is needed")
    checkpoint.write(output, last.pruned, last.plan, last.recovery)
    shutil.rmtree(folder)
    return output


def _residuals(drawn: DrawnRows, original: Loaded) -> int:
    """Return the bytes of the original's residuals of the rows that a repair reads."""
    tokens = sum(len(drawn[role].rows) * max(drawn[role].lengths) for role in (TRAIN, VALIDATION))
    model = original.model
    return 2 * tokens * original.facts.layers * model.config.hidden_size * model.dtype.itemsize


def load_original(plan: Plan, settings: RepairSettings, reporter: Reporter) -> Loaded:
    """Return the plan's model to cut and repair in memory, in a number format that holds its weights exactly."""
    check_channels(plan.keep)
    return load_model(plan.model.source, device=settings.device, dtype=settings.dtype, exact=True, reporter=reporter)


def expanded(original: Loaded, last: Round) -> Loaded:
    """Return a pruned model in the original's shape, which computes the same: removed weights are zero.

    Whole tensors are shared with the pruned model.
    """
    state = dict(last.pruned.model.named_parameters())
    model, architecture, facts = original.model, original.architecture, original.facts
    whole = {
        name: _whole(parameter, name, state, architecture, facts, last.plan.keep)
        for name, parameter in model.named_parameters()
    }
    made = assembled(type(model), model.config, whole, dict(model.named_buffers()))
    made.generation_config = model.generation_config
    return replace(original, model=made)


@torch.no_grad()
def _whole(
    parameter: Tensor, name: str, state: Mapping[str, Tensor], architecture: Architecture, facts: ModelFacts, keep: Keep
) -> Tensor:
    """Return a parameter in the original's shape, from the `state` of the pruned model."""
    kept = slice_of(name, architecture, facts, keep)
    if kept == "none":
        return torch.zeros_like(parameter)
    found = state[renumbered(name, architecture, keep)]
    if not isinstance(kept, Slice):
        return found
    return torch.zeros_like(parameter).index_copy_(kept.dim, torch.tensor(kept.entries, device=found.device), found)


def _planned(
    now: Loaded,
    measured: Calibration,
    calibrated: tasks.Encoded,
    plan: Plan,
    last: Round | None,
    limits: dict[str, float],
    precision: str,
    reporter: Reporter,
) -> Plan:
    """Return the plan of a round, by a loss sketch of `now`, the model of the previous round."""
    pins, sketched, left = plan.pins, measured, None
    if last is not None:
        gone = _gone(last.plan.keep, plan.unit, plan.model)
        pins = Pins(keep=pins.keep, drop=tuple({*pins.drop, *gone}), protect=pins.protect)
        settings = measured.facts.settings
        work = Work(reporter, sketch_cost(settings.draws, rounding(now, settings)) * calibrated.tokens)
        sketch = Passes(now, calibrated, settings, "right", None, work).sketched(precision)
        sketched = replace(measured, sketch=sketch, check=None)
        left = measure_after_repair(now, calibrated, sketched, reporter) if plan.repaired else None
    elif plan.repaired:
        left = after_repair_sketch(measured, reporter)
    targets = [target(one.target) for one in plan.targets]
    planner = Planner(sketched, plan.unit, plan.uniform, pins, left, targets)
    keep, reason = planner.solve(limits), ByBudget(limits=limits)
    repaired_loss = planner.repaired(keep)
    return build_plan(
        measured, keep, plan.unit, reason, plan.pins, plan.uniform, repaired=repaired_loss, targets=targets
    )


def _gone(keep: Keep, unit: UnitName, facts: ModelFacts) -> Iterator[tuple[int, int]]:
    """Yield the units that are removed already, as (layer, number of the unit in it)."""
    size = facts.heads // UNITS[unit].count(facts)
    for layer, kept in enumerate(keep):
        stays = {head // size for head in kept.heads}
        yield from ((layer, place) for place in range(facts.heads // size) if place not in stays)


def _limits(plan: Plan) -> dict[str, float]:
    """Return the limits of a plan's budget. Raises InputError where rounds cannot approach them."""
    if not isinstance(plan.reason, ByBudget) or LOSS in plan.reason.limits:
        raise InputError(
            "rounds: they approach a limit of size, and this plan has none; make it with `slim plan --budget`, for "
            "instance params=0.9, without a limit of loss."
        )
    if not plan.calibration:
        raise InputError(
            "rounds: every round is planned on the calibration's rows, and the plan names no calibration; plan again."
        )
    return dict(plan.reason.limits)


def _part(limits: Mapping[str, float], share: float) -> dict[str, float]:
    """Return limits at a share of the way from the original to `limits`."""
    return {name: 1 + share * (limit - 1) for name, limit in limits.items()}


def _keep(file: Path, original: Loaded, done: Round) -> None:
    """Save a round: its plan, its record, and the weights that differ from the original's."""
    plain = dict(cut(original, done.plan).model.named_parameters())
    state = {
        name: weight.detach().cpu()
        for name, weight in done.pruned.model.named_parameters()
        if weight.data_ptr() != plain[name].data_ptr() and not torch.equal(weight, plain[name])
    }
    said = {"plan": done.plan.model_dump_json(), "recovery": done.recovery.model_dump_json()}
    with workspace.new_file(file, sum(weight.nbytes for weight in state.values())) as partial:
        save_file(state, partial, metadata=said)


def _read(file: Path, original: Loaded) -> Round:
    """Return a saved round."""
    with safe_open(file, "pt", device=str(original.model.device)) as stored:
        said = stored.metadata()
        plan = Plan.model_validate_json(said["plan"])
        pruned = cut(original, plan)
        for name in stored.keys():  # noqa: SIM118  it has keys and is not a mapping
            put(pruned.model, name, torch.nn.Parameter(stored.get_tensor(name), requires_grad=False))
    return Round(plan, pruned, Recovery.model_validate_json(said["recovery"]))


def _key(plan: Plan, request: PruneRequest, precision: str) -> str:
    """Return a hash of everything that the rounds depend on."""
    asked: dict[str, Any] = request.model_dump(mode="json", exclude={"plan", "output"})
    basis = [plan.model_dump_json(), asked, precision, sorted(versions().items())]
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:24]
