"""From scores to a plan by a threshold, the plan as a file, and two plans compared."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from slim.calibration.record import Calibration
from slim.calibration.scores import composite, default_weights
from slim.core.errors import InputError
from slim.core.records import Keep, ModelFacts, Unit
from slim.planning.build import build_plan, check_unit, pinned, shapes_for
from slim.planning.record import ByThreshold, Pins, Plan
from slim.planning.shapes import uniform_heads, valid_heads


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
