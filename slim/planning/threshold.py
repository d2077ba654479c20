"""From scores to a plan by a threshold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from slim.calibration.record import Calibration
from slim.calibration.scores import default_weights, weighted_ranks
from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.models.units import UNITS, Keep, LayerKeep, UnitName
from slim.planning.build import build_plan, check_unit, pinned, uniform_shapes
from slim.planning.record import THRESHOLD, ByThreshold, Pins, Plan
from slim.planning.shapes import best_valid_heads, in_parts, uniform_heads, valid_heads
from slim.planning.valid_choices import ValidChoice, valid_choices, what_targets_cost
from slim.targets.target import Target

MOST = 2.0
"""A threshold beyond every score; a larger one asks for the same."""
PINNED = 4
"""The cost of a pinned unit, in times all heads of a layer at the highest score: it decides, whatever the others do."""


def plan_by_threshold(
    calibration: Calibration,
    threshold: float = THRESHOLD,
    unit: UnitName = "head",
    weights: Mapping[str, float] | None = None,
    *,
    per_layer: Mapping[int, float] | None = None,
    pins: Pins | None = None,
    uniform: bool = False,
    targets: Sequence[Target] = (),
) -> Plan:
    """The plan that removes what scores `threshold` or more, made valid, with its size and forecast loss.

    `per_layer` are thresholds of single layers, `pins` what stays or goes whatever it scores, `uniform` asks for
    one shape in all layers, so that the checkpoint is a stock one, and `targets` for shapes that all of them take.

    Raises InputError for a threshold that is not a number of 0 or more, pins outside of the model, or what would remove
    every attention block.
    """
    per_layer, pins, facts = dict(per_layer or {}), pins or Pins(), calibration.facts.model
    check_unit(unit, facts)
    weights = dict(default_weights(calibration, unit) if weights is None else weights)
    ranks = weighted_ranks(calibration, weights, unit)
    scores = ranks.scores.reshape(facts.layers, -1)  # (L, count)
    thresholds = [in_parts(value, ranks.whole) for value in _thresholds(threshold, per_layer, facts)]
    spread = facts.heads // scores.shape[1]
    pin = pinned(pins, unit, facts)
    costs = np.where(pin == 0, ranks.total.reshape(scores.shape), -pin * PINNED * facts.heads * ranks.whole)
    wanted = np.array(thresholds)[:, None] > costs
    costs, wanted = np.repeat(costs, spread, 1), np.repeat(wanted, spread, 1)  # (L, H) each
    notes: tuple[str, ...] = ()
    keep = _kept(costs, thresholds, unit, facts, uniform)
    if targets:
        choices = valid_choices(facts, unit, targets, uniform)
        if uniform and not UNITS[unit].whole_layers:
            choices = [replace(choice, gone=None) for choice in choices]  # by scores of heads no MLP goes
        free, keep = keep, _for_targets(costs, thresholds, choices, facts)
        notes = what_targets_cost(free, keep, facts)
    if not any(kept.attention for kept in keep):
        raise InputError(
            f"threshold={threshold:g} would remove every attention block, and the last one cannot go: "
            f"choose a threshold above {float(scores.min()):.2f}."
        )
    reason = ByThreshold(
        threshold=threshold,
        per_layer=per_layer,
        weights=weights,
        scores=tuple(tuple(map(float, row)) for row in scores),
    )
    return build_plan(calibration, keep, unit, reason, pins, uniform, wanted, targets=targets, notes=notes)


def _thresholds(threshold: float, per_layer: Mapping[int, float], facts: ModelFacts) -> list[float]:
    """One for each layer."""
    for name, value in (("threshold", threshold), *((f"threshold of layer {at}", t) for at, t in per_layer.items())):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}={value} must be a number of 0 or more; scores run from 0 to 1.")
    found = [float(threshold)] * facts.layers
    for layer, value in per_layer.items():
        if not 0 <= layer < facts.layers:
            raise InputError(f"threshold of layer {layer}: the model has layers 0 to {facts.layers - 1}.")
        found[layer] = float(value)
    return [min(value, MOST) for value in found]


def _kept(
    costs: NDArray[np.int64], thresholds: Sequence[float], unit: UnitName, facts: ModelFacts, uniform: bool
) -> Keep:
    """The valid plan with the largest sum of margins."""
    row = UNITS[unit]
    if uniform and not row.whole_layers:
        return uniform_heads(costs, thresholds, facts.kv_heads, uniform_shapes(facts, unit))
    per_group = sorted({count for _, count in row.shapes(facts)})
    sets = (
        valid_heads(costs[layer], threshold, facts.kv_heads, per_group) for layer, threshold in enumerate(thresholds)
    )
    return tuple(LayerKeep(heads=heads) if heads else row.gone for heads in sets)


def _for_targets(
    costs: NDArray[np.int64], thresholds: Sequence[float], choices: Sequence[ValidChoice], facts: ModelFacts
) -> Keep:
    """The plan of one of the `choices` with the largest sum of margins."""

    def value(choice: ValidChoice) -> tuple[float, Keep]:
        found = [
            (best_valid_heads(row, threshold, facts.kv_heads, choice.shapes, choice.gone is not None), choice.gone)
            for row, threshold in zip(costs, thresholds, strict=True)
        ]
        keep = tuple(gone if not heads and gone else LayerKeep(heads=heads) for (_, heads), gone in found)
        return sum(margin for (margin, _), _ in found), keep

    return max(map(value, choices), key=lambda one: one[0])[1]
