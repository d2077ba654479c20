"""Iterative pruning: remove a little, repair, measure again, until a plan's budget is met.

What a head is worth changes when others are gone and what is left has been repaired, so each round is planned on a loss
sketch of the model that the round before left, and repaired towards the original.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slim.calibration.passes import Passes
from slim.calibration.record import Calibration, load_calibration
from slim.calibration.reload import calibrated_rows
from slim.calibration.resources import sketch_cost
from slim.core import paths, workspace
from slim.core.environment import versions
from slim.core.errors import InputError
from slim.core.progress import Progress, silent
from slim.core.records import Keep, ModelFacts, Unit
from slim.data.batch_runner import Work
from slim.models.architectures import Architecture
from slim.models.load import Loaded, load_model
from slim.planning.after_repair import after_repair_sketch, measure_after_repair
from slim.planning.budget import LOSS, Planner
from slim.planning.build import build_plan, units_per_layer
from slim.planning.record import ByBudget, Pins, Plan
from slim.planning.slicing import Slice, renumbered, slice_of
from slim.pruning import checkpoint
from slim.pruning.history import RECOVERY_FILE, Recovery, load_recovery
from slim.pruning.surgery import check_same, prune, pruned_state
from slim.recovery.repair import RepairSettings, prune_and_repair, repair


def execute_plan(
    plan: Plan,
    *,
    repaired: bool = True,
    rounds: int = 1,
    settings: RepairSettings | None = None,
    output: Path | None = None,
    progress: Progress = silent,
    told: Callable[[int, Path], None] = lambda number, folder: None,
    **data: Any,
) -> Path:
    """The folder of the checkpoint that a plan gives: cut at once or in `rounds`, and repaired unless it is not wanted.

    `data` names the rows of the repair, where they are not the calibration's. Raises InputError as the stages do.
    """
    if rounds != 1:
        if not repaired:
            raise InputError("rounds: every round is repaired before the next: leave out --no-repair, or the rounds.")
        return prune_in_rounds(plan, rounds, settings, output, progress, told, **data)
    if repaired and plan.removed_heads:
        return prune_and_repair(plan, settings, output=output, progress=progress, **data)
    return prune(plan, output, progress)


def prune_in_rounds(
    plan: Plan,
    rounds: int,
    settings: RepairSettings | None = None,
    output: Path | None = None,
    progress: Progress = silent,
    told: Callable[[int, Path], None] = lambda number, folder: None,
    **data: Any,
) -> Path:
    """The folder of a checkpoint within the budget of `plan`, reached in so many rounds (default: in the workspace).

    Its record has a step for each round, with the figures before and after that round's repair. `told` hears the
    number and the folder of each; `data` names the rows of the repairs, where they are not the calibration's.
    Finished rounds are kept until the last is done: the same call goes on after them. Raises InputError for a plan that
    is not by budget, or whose calibration is gone.
    """
    settings = settings or RepairSettings()
    if rounds < 2:
        raise InputError(f"rounds={rounds}: that is no more than one removal: take 2 or more, or leave it out.")
    limits = _limits(plan)
    measured = load_calibration(paths.local(plan.calibration, "calibration"))
    original = load_model(plan.model.source, device=settings.device, dtype=settings.dtype, progress=progress)
    check_same(plan, original)
    output = output or workspace.fresh_path("checkpoint", f"{Path(original.facts.source).name}-rounds")
    workspace.check_output(output, plan.after.bytes)
    folder = workspace.subfolder("rounds", _key(plan, rounds, settings, data))
    for number in range(1, rounds + 1):
        done = folder / str(number)
        if not done.is_dir():
            last = folder / str(number - 1) if number > 1 else None
            said = _named(progress, f"Round {number} of {rounds}")
            made, now = _planned(original, measured, plan, last, _part(limits, number / rounds), said)
            cut = folder / f"{number}-cut"
            shutil.rmtree(cut, ignore_errors=True)
            state = pruned_state(now.model, original.architecture, original.facts, made.keep)
            checkpoint.write(cut, original, state, made)
            earlier = load_recovery(last) if last else Recovery()
            (cut / RECOVERY_FILE).write_text(earlier.model_dump_json(), encoding="utf-8")
            repair(str(cut), settings=settings, output=done, progress=said, **data)
            shutil.rmtree(cut)
        told(number, done)
    checkpoint.rewrite(str(folder / str(rounds)), output, {}, load_recovery(folder / str(rounds)))
    shutil.rmtree(folder)
    return output


def expanded(original: Loaded, folder: Path) -> Loaded:
    """A pruned checkpoint in the original's shape: what was removed is zero. It computes what the checkpoint does."""
    plan = checkpoint.recipe(folder)
    model = original.model
    where: dict[str, Any] = {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch.")}
    pruned, dense = load_model(str(folder), **where), load_model(original.facts.source, **where)
    state = dict(pruned.model.named_parameters())
    for name, parameter in dense.model.named_parameters():
        _fill(parameter, name, state, original.architecture, original.facts, plan.keep)
    return replace(dense, facts=dense.facts.model_copy(update={"fingerprint": pruned.facts.fingerprint}))


@torch.no_grad()
def _fill(
    parameter: Tensor, name: str, state: Mapping[str, Tensor], architecture: Architecture, facts: ModelFacts, keep: Keep
) -> None:
    cut = slice_of(name, architecture, facts, keep)
    if cut == "none":
        parameter.zero_()
        return
    found = state[renumbered(name, architecture, keep)].to(parameter)
    if isinstance(cut, Slice):
        parameter.zero_().index_copy_(cut.dim, torch.tensor(cut.entries, device=parameter.device), found)
    else:
        parameter.copy_(found)


def _planned(
    original: Loaded, measured: Calibration, plan: Plan, last: Path | None, limits: dict[str, float], progress: Progress
) -> tuple[Plan, Loaded]:
    """The plan of a round, by a sketch of what the round before left, and that in the original's shape."""
    now, pins, sketched, left = original, plan.pins, measured, None
    if last is not None:
        now, encoded = expanded(original, last), calibrated_rows(measured, original)
        gone = _gone(checkpoint.recipe(last).keep, plan.unit, plan.model)
        pins = Pins(keep=pins.keep, drop=tuple({*pins.drop, *gone}), protect=pins.protect)
        settings = measured.facts.settings
        work = Work(progress, sketch_cost(settings.draws) * encoded.tokens)
        sketched = replace(measured, sketch=Passes(now, encoded, settings, "right", None, work).sketched(), check=None)
        left = measure_after_repair(now, encoded, sketched, progress) if plan.repaired else None
    elif plan.repaired:
        left = after_repair_sketch(measured, progress)
    planner = Planner(sketched, plan.unit, plan.uniform, pins, left)
    keep, reason = planner.solve(limits), ByBudget(limits=limits)
    made = build_plan(measured, keep, plan.unit, reason, plan.pins, plan.uniform, repaired=planner.repaired(keep))
    return made, now


def _gone(keep: Keep, unit: Unit, facts: ModelFacts) -> Iterator[tuple[int, int]]:
    """What is gone already, as (layer, number of the unit in it)."""
    size = facts.heads // units_per_layer(unit, facts)
    for layer, heads in enumerate(keep):
        stays = {head // size for head in heads or ()}
        yield from ((layer, place) for place in range(facts.heads // size) if place not in stays)


def _limits(plan: Plan) -> dict[str, float]:
    """The limits of a plan's budget. Raises InputError where it has none that rounds can approach."""
    if not isinstance(plan.reason, ByBudget) or LOSS in plan.reason.limits:
        raise InputError(
            "rounds: they approach a size, and this plan is not for one: make it with `slim plan --budget`, for "
            "instance params=0.9, without a limit of loss."
        )
    if not plan.calibration:
        raise InputError("rounds: the plan names no calibration, and every round is planned on its rows: plan again.")
    return dict(plan.reason.limits)


def _part(limits: Mapping[str, float], share: float) -> dict[str, float]:
    """Limits a share of the way from the original."""
    return {name: 1 + share * (limit - 1) for name, limit in limits.items()}


def _named(progress: Progress, name: str) -> Progress:
    return lambda done, total, message: progress(done, total, f"{name}: {message}")


def _key(plan: Plan, rounds: int, settings: RepairSettings, data: Mapping[str, Any]) -> str:
    """What stands for everything that the rounds depend on."""
    basis = f"{plan.model_dump_json()} {rounds} {settings.model_dump_json()} {sorted(data.items())} "
    basis += f"{sorted(versions().items())}"
    return hashlib.sha256(basis.encode()).hexdigest()[:24]
