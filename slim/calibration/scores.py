"""Scores: every chosen metric as a rank over the whole model, weighed into one number; the highest goes first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slim.calibration.criteria import CRITERIA
from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.core.statistics import ranks
from slim.models.units import UNITS, UnitName

DEFAULT_WEIGHTS: Mapping[str, float] = {"kl_output": 1.0, "variance": 0.25}
"""Of the mixes tried on the bundled model and task, none cost less at 5, 10, 20 and 30% (benchmarks/README.md)."""
FALLBACK_WEIGHTS: Mapping[str, float] = {"variance": 1.0}
"""For calibrations made with `--kl none`."""


def measured(calibration: Calibration, unit: UnitName) -> dict[str, NDArray[np.float64]]:
    """The criteria that exist for a unit, by name: (L, count), or (L,) of a unit of which a layer has one.

    Of a unit that no criterion measures, as whole layers, the loss sketch still has a forecast.
    """
    found = calibration.level(unit)
    if found or calibration.sketch is None:
        return found
    return {"kl_output": calibration.sketch.fold(0).of_unit(UNITS[unit], calibration.facts.model).value}


def default_weights(calibration: Calibration, unit: UnitName = "head") -> Mapping[str, float]:
    """The composite's weights where none are given."""
    there = measured(calibration, unit)
    found = {name: weight for name, weight in DEFAULT_WEIGHTS.items() if name in there}
    return found if "kl_output" in there else FALLBACK_WEIGHTS


WEIGHT_STEPS = 100_000
"""The largest whole number that a weight is taken as."""


@dataclass(frozen=True)
class WeightedRanks:
    """Composite scores as integers: `total` in parts of `whole`, in the shape of `measured`; highest = pruned first.

    Sums of integers are the same in any order, so the board in the browser computes the very same numbers.
    """

    total: NDArray[np.int64]
    whole: int

    @property
    def scores(self) -> NDArray[np.float64]:
        """The scores, 0..1."""
        return self.total / self.whole


def doubled_ranks(values: NDArray[np.float64], high_is_prunable: bool) -> NDArray[np.int64]:
    """Twice the rank of each value over the whole model, from 0 on, in the shape of `values`; highest = pruned first.

    Ties share their mean, which may be half of a rank: hence twice.
    """
    found = ranks((values if high_is_prunable else -values).ravel())
    return (2 * (found - 1)).round().astype(np.int64).reshape(values.shape)


def highest_rank(count: int) -> int:
    """Twice the highest rank among `count` values, and 1 where there is only one."""
    return max(1, 2 * (count - 1))


def prunability(values: NDArray[np.float64], high_is_prunable: bool) -> NDArray[np.float64]:
    """Ranks of `values` over the whole model as 0..1, ties sharing their mean; 1 = pruned first."""
    return doubled_ranks(values, high_is_prunable) / highest_rank(values.size)


def unit_ranks(calibration: Calibration, unit: UnitName) -> dict[str, NDArray[np.int64]]:
    """The doubled ranks by each criterion that exists for a unit."""
    there = measured(calibration, unit)
    return {name: doubled_ranks(values, CRITERIA[name].high_is_prunable) for name, values in there.items()}


def weight_parts(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights as whole numbers, so that sums are exact: themselves times a power of ten, where their digits are few,
    and else in steps of the largest."""
    largest, scale = max(weights.values()), 1
    while largest * scale <= WEIGHT_STEPS:
        if all(round(weight * scale) / scale == weight for weight in weights.values()):
            return {name: round(weight * scale) for name, weight in weights.items()}
        scale *= 10
    return {name: math.floor(weight / largest * WEIGHT_STEPS + 0.5) for name, weight in weights.items()}


def weighted_ranks(calibration: Calibration, weights: Mapping[str, float], unit: UnitName) -> WeightedRanks:
    """Weighted mean of the chosen criteria's ranks.

    Raises InputError for a criterion the calibration lacks for this unit, a negative weight, or weights that are all 0.
    """
    there = unit_ranks(calibration, unit)
    if not there:
        raise InputError(
            f"unit={unit}: nothing is known of what a {unit} costs, as this calibration has no loss sketch: "
            "calibrate with --kl fisher or exact."
        )
    for name, weight in weights.items():
        if name not in there:
            raise InputError(
                f"weights: {name!r} is not measured per {unit} here: choose among {', '.join(sorted(there))}."
            )
        if not (weight >= 0 and math.isfinite(weight)):
            raise InputError(f"weights: {name}={weight} must be 0 or more.")
    if not any(weights.values()):
        raise InputError("weights: every weight is 0: give at least one criterion a weight above 0.")
    parts = weight_parts(weights)
    total = np.sum([part * there[name] for name, part in parts.items()], axis=0)
    return WeightedRanks(total, sum(parts.values()) * highest_rank(total.size))


def composite(calibration: Calibration, weights: Mapping[str, float], unit: UnitName) -> NDArray[np.float64]:
    """The scores of `weighted_ranks`, in the shape of `measured`. Raises InputError as it does."""
    return weighted_ranks(calibration, weights, unit).scores


def criteria(calibration: Calibration, weights: Mapping[str, float]) -> dict[str, NDArray[np.float64]]:
    """Prunability (L, H) by everything that orders heads: each metric, the sketch, the composite, and chance."""
    facts, settings = calibration.facts.model, calibration.facts.settings
    chance = np.random.default_rng(settings.seed).random((facts.layers, facts.heads))
    orders = {"random": prunability(chance, True)}
    for name, levels in calibration.metrics.items():
        if "head" in levels:
            orders[name] = prunability(levels["head"], CRITERIA[name].high_is_prunable)
        elif "block" in levels:
            blocks = prunability(levels["block"], CRITERIA[name].high_is_prunable)
            orders[name] = np.repeat(blocks[:, None], facts.heads, 1)
    if calibration.sketch is not None and settings.kl == "exact":
        orders["sketch"] = prunability(calibration.sketch.fold(0).of_unit(UNITS["head"], facts).value, False)
    orders["composite"] = composite(calibration, weights, "head")
    return orders
