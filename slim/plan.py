"""From scores to a plan by a threshold, the plan as a file, and two plans compared."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slim import workspace
from slim.architectures import architecture_of
from slim.calibration import Calibration
from slim.cuts import stock_shape, whole_blocks_only
from slim.errors import InputError
from slim.forecast import forecast, warnings
from slim.legal import PINNED, changes, uniform_heads, valid_heads, valid_shapes
from slim.migrations import read_record
from slim.paths import is_file
from slim.project import everything, project
from slim.records import ByBudget, ByThreshold, Forecast, Keep, ModelFacts, Pins, Plan, Unit, why_invalid
from slim.scores import composite, default_weights

PLAN_FILE = "slim_plan.json"
"""The plan that a checkpoint was cut by, within its folder."""


def plan_by_threshold(
    calibration: Calibration,
    threshold: float = 0.8,
    unit: Unit = "head",
    weights: Mapping[str, float] | None = None,
    *,
    per_layer: Mapping[int, float] | None = None,
    pins: Pins | None = None,
    uniform: bool = False,
) -> Plan:
    """The plan that removes what scores `threshold` or more, made legal, with its size and forecast loss.

    `per_layer` are thresholds of single layers, `pins` what stays or goes whatever it scores, and `uniform` asks for
    one shape in all layers, so that the checkpoint is a stock one.

    Raises InputError for a threshold that is no number of 0 or more, pins outside of the model, or what would remove
    every attention block.
    """
    per_layer, pins, facts = dict(per_layer or {}), pins or Pins(), calibration.facts.model
    check_unit(unit, facts)
    weights = dict(default_weights(calibration, unit) if weights is None else weights)
    scores = composite(calibration, weights, unit)
    gains = _thresholds(threshold, per_layer, facts)[:, None] - scores.reshape(facts.layers, -1)  # (L, units)
    gains = pinned(gains, pins, unit, facts)
    keep = _kept(gains, unit, facts, uniform)
    if not any(keep):
        raise InputError(
            f"threshold={threshold:g} would remove every attention block, and the last one cannot go: "
            f"choose a threshold above {float(scores.min()):.2f}."
        )
    wanted = np.repeat(gains > 0, facts.heads // gains.shape[1], 1)  # (L, H)
    reason = ByThreshold(
        threshold=threshold,
        per_layer=per_layer,
        weights=weights,
        scores=tuple(tuple(map(float, row)) for row in scores.reshape(facts.layers, -1)),
    )
    return build_plan(calibration, keep, unit, reason, pins, uniform, wanted)


def build_plan(
    calibration: Calibration,
    keep: Keep,
    unit: Unit,
    reason: ByThreshold | ByBudget,
    pins: Pins,
    uniform: bool,
    wanted: NDArray[np.bool_] | None = None,
    repaired: Forecast | None = None,
) -> Plan:
    """The plan that keeps `keep`, with everything that follows from it; `wanted` (L, H) is what was to stay,
    `repaired` the forecast for it once it is repaired, where that was measured."""
    facts, expected = calibration.facts.model, forecast(calibration, keep)
    return Plan(
        model=facts,
        calibration=str(calibration.path.absolute()) if calibration.path else "",
        calibrated=calibration.facts.started,
        unit=unit,
        uniform=uniform,
        reason=reason,
        pins=pins,
        keep=keep,
        changes=() if wanted is None else changes(wanted, keep),
        before=project(facts, everything(facts)),
        after=project(facts, keep),
        forecast=expected,
        repaired=repaired,
        notes=_notes(expected, repaired) if keep != everything(facts) else (),
    )


def _notes(expected: Forecast | None, repaired: Forecast | None) -> tuple[str, ...]:
    if repaired is None:
        return warnings(expected)
    return (f"made for repair: without it the forecast is {expected}", *warnings(repaired))


def check_unit(unit: Unit, facts: ModelFacts) -> None:
    """Raises InputError where the family does not allow to remove parts of an attention block."""
    if unit in ("head", "group") and architecture_of(facts.model_type).whole_blocks:
        raise whole_blocks_only(facts.model_type)


def units_per_layer(unit: Unit, facts: ModelFacts) -> int:
    return {"head": facts.heads, "group": facts.kv_heads, "block": 1, "layer": 1}[unit]


def pinned(gains: NDArray[np.float64], pins: Pins, unit: Unit, facts: ModelFacts) -> NDArray[np.float64]:
    """`gains` (L, units) where pins count for more than anything. Raises InputError for a pin outside of the model."""
    gains = gains.copy()
    for layer in pins.protect:
        if layer >= facts.layers:
            raise InputError(f"protect: layer {layer} is not there: the model has layers 0 to {facts.layers - 1}.")
    for name, places, gain in (("keep", pins.keep, PINNED), ("drop", pins.drop, -PINNED)):
        for layer, index in places:
            if layer >= facts.layers or index >= gains.shape[1]:
                raise InputError(
                    f"{name}: {layer}:{index} is not there: the model has layers 0 to {facts.layers - 1} and, "
                    f"in each, {unit}s 0 to {gains.shape[1] - 1}."
                )
            gains[layer, index] = gain
    gains[list(pins.protect)] = PINNED
    if not (gains < PINNED).any():
        raise InputError("protect: every layer is protected, so nothing can go: leave one out.")
    return gains


def shapes_for(facts: ModelFacts, unit: Unit) -> list[tuple[int, int]]:
    """(KV groups, query heads per group) that a uniform plan may give every layer.

    Raises InputError for a unit that cannot be uniform.
    """
    if unit == "block":
        raise InputError("uniform: layers with and without attention are not alike: choose unit head, group or layer.")
    found = [
        (groups, per_group)
        for groups, per_group in valid_shapes(facts.kv_heads, facts.group)
        if stock_shape(facts, groups * per_group) and (unit == "head" or per_group == facts.group)
    ]
    return found if unit != "layer" else [(facts.kv_heads, facts.group)]


def _thresholds(threshold: float, per_layer: Mapping[int, float], facts: ModelFacts) -> NDArray[np.float64]:
    """One for each layer."""
    for name, value in (("threshold", threshold), *((f"threshold of layer {at}", t) for at, t in per_layer.items())):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}={value} must be a number of 0 or more; scores run from 0 to 1.")
    found = np.full(facts.layers, float(threshold))
    for layer, value in per_layer.items():
        if not 0 <= layer < facts.layers:
            raise InputError(f"threshold of layer {layer}: the model has layers 0 to {facts.layers - 1}.")
        found[layer] = value
    return found


def _kept(gains: NDArray[np.float64], unit: Unit, facts: ModelFacts, uniform: bool) -> Keep:
    """The legal plan with the largest sum of gains."""
    whole = tuple(range(facts.heads))
    if uniform and unit != "layer":
        shapes = shapes_for(facts, unit)
        return uniform_heads(np.repeat(gains, facts.heads // gains.shape[1], 1), facts.kv_heads, iter(shapes))
    if unit == "head":
        return tuple(valid_heads(row, facts.kv_heads) for row in gains)
    if unit == "group":
        return tuple(tuple(head for head in whole if row[head // facts.group] > 0) for row in gains)
    gone = () if unit == "block" else None
    return tuple(whole if row[0] > 0 else gone for row in gains)


@dataclass(frozen=True)
class PlanDifference:
    """How `other` differs from `one`: (layer, head) that only one of them removes, and the layers that do."""

    one: Plan
    other: Plan
    only_one: tuple[tuple[int, int], ...]
    only_other: tuple[tuple[int, int], ...]
    layers_only_one: tuple[int, ...]
    layers_only_other: tuple[int, ...]

    @property
    def shared(self) -> int:
        """Heads that both remove."""
        return self.one.removed_heads - len(self.only_one)


def plan_difference(one: Plan, other: Plan) -> PlanDifference:
    """Two plans of the same model compared. Raises InputError when they are of two models."""
    if one.model.fingerprint != other.model.fingerprint:
        raise InputError(
            f"plan: these are plans of two models, {one.model.source!r} and {other.model.source!r}: "
            "compare plans of one."
        )
    removed = [
        {(layer, head) for layer in range(one.model.layers) for head in range(one.model.heads)}
        - {(layer, head) for layer, heads in enumerate(plan.keep) for head in heads or ()}
        for plan in (one, other)
    ]
    layers = [set(plan.removed_layers) for plan in (one, other)]
    return PlanDifference(
        one,
        other,
        tuple(sorted(removed[0] - removed[1])),
        tuple(sorted(removed[1] - removed[0])),
        tuple(sorted(layers[0] - layers[1])),
        tuple(sorted(layers[1] - layers[0])),
    )


def save_plan(plan: Plan, output: Path) -> Path:
    """Writes the plan to a new or existing .json file."""
    if output.is_dir():
        raise InputError(f"output {str(output)!r} is a folder: name a .json file for the plan.")
    workspace.write_file(output, plan.model_dump_json(indent=1))
    workspace.remember(output, "plan")
    return output


def load_plan(path: Path) -> Plan:
    """A saved plan. Raises InputError when `path` does not hold a legal one."""
    if not is_file(path):
        raise InputError(f"plan {str(path)!r} was not found: run `slim plan DIR --output {path}` first.")
    try:
        plan = read_record(Plan, path, f"plan {str(path)!r}")
    except (ValueError, OSError) as error:
        raise InputError(
            f"plan {str(path)!r} is not valid: {why_invalid(error)}. Make it again with `slim plan`."
        ) from error
    for name, size, keep in (("before", plan.before, everything(plan.model)), ("after", plan.after, plan.keep)):
        try:
            expected = project(plan.model, keep)
        except InputError as error:
            raise InputError(f"plan {str(path)!r} is not valid: {error}") from error
        if size != expected:
            raise InputError(
                f"plan {str(path)!r} is not valid: {name}: it is not the size of what `keep` keeps. "
                "Make it again with `slim plan`."
            )
    return plan
