"""Scores: every chosen metric as a rank over the whole model, weighed into one number; the highest goes first."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from slim.calibration.criteria import CRITERIA
from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.core.records import Unit

DEFAULT_WEIGHTS: Mapping[str, float] = {"kl_output": 1.0, "variance": 0.25}
"""Of the mixes tried on the bundled model and task, none cost less at 5, 10, 20 and 30% (benchmarks/README.md)."""
FALLBACK_WEIGHTS: Mapping[str, float] = {"variance": 1.0}
"""For calibrations made with `--kl none`."""


def measured(calibration: Calibration, unit: Unit) -> dict[str, NDArray[np.float64]]:
    """The metrics that exist for a unit, by name: (L, H) for heads, (L, K) for groups, (L,) for blocks and layers.

    Of whole layers nothing is measured but what the loss sketch forecasts.
    """
    if unit != "layer":
        return calibration.level(unit)
    return {} if calibration.sketch is None else {"kl_output": calibration.sketch.fold(0).layers().value}


def default_weights(calibration: Calibration, unit: Unit = "head") -> Mapping[str, float]:
    """The composite's weights where a person chose none."""
    if unit == "layer":
        return {"kl_output": 1.0}
    return DEFAULT_WEIGHTS if "kl_output" in calibration.metrics else FALLBACK_WEIGHTS


def prunability(values: NDArray[np.float64], high_is_prunable: bool) -> NDArray[np.float64]:
    """Ranks of `values` over the whole model as 0..1, ties sharing their mean; 1 = first to go."""
    from scipy.stats import rankdata

    ranks = rankdata(values if high_is_prunable else -values, axis=None) - 1
    return (ranks / max(1, values.size - 1)).reshape(values.shape)


def parts(calibration: Calibration, unit: Unit) -> dict[str, NDArray[np.float64]]:
    """The prunability by each metric that exists for a unit."""
    there = measured(calibration, unit)
    return {name: prunability(values, CRITERIA[name].high_is_prunable) for name, values in there.items()}


def composite(calibration: Calibration, weights: Mapping[str, float], unit: Unit) -> NDArray[np.float64]:
    """Weighted mean of the chosen metrics' prunability, in the shape of `measured`; highest goes first.

    Raises InputError for a metric the calibration lacks at this level, a negative weight, or weights that are all 0.
    """
    there = measured(calibration, unit)
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
    total = float(np.sum([*weights.values()]))  # Python's own sum differs between its versions, the board's must not
    if total <= 0:
        raise InputError("weights: every weight is 0: give at least one metric a weight above 0.")
    chosen = [w / total * prunability(there[name], CRITERIA[name].high_is_prunable) for name, w in weights.items() if w]
    return np.sum(chosen, axis=0)
