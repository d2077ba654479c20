"""What a plan is forecast to cost, on the sequences that did not choose it."""

import math

import numpy as np
from numpy.typing import NDArray

from slim.calibration.facts import Forecast
from slim.calibration.record import Calibration
from slim.calibration.sketch import MLP
from slim.core.records import Keep
from slim.core.statistics import ratio_of_sums

RUINOUS = 0.7
"""Nats/token; twice the perplexity. What costs more is not worth repairing, as far as was seen."""


def removed_columns(removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Removed heads (L, H) as columns of the sketch (L, H+2): a layer without any head loses the whole block."""
    blocks = removed.all(1, keepdims=True)
    return np.concatenate((removed & ~blocks, blocks, np.zeros_like(blocks)), 1)


def removed_mask(keep: Keep, heads: int) -> NDArray[np.bool_]:
    """True where a head goes.  # (L, H)"""
    mask = np.ones((len(keep), heads), dtype=bool)
    for layer, kept in enumerate(keep):
        mask[layer, list(kept or ())] = False
    return mask


def columns_of(keep: Keep, heads: int) -> NDArray[np.bool_]:
    """The columns of the sketch that a plan removes.  # (L, H+2)"""
    columns = removed_columns(removed_mask(keep, heads))
    columns[:, MLP] = [kept is None for kept in keep]
    return columns


def forecast(calibration: Calibration, keep: Keep) -> Forecast | None:
    """Forecast loss of a plan on the sequences that did not choose it; None without a sketch.

    Where the calibration was checked, the correction fitted on measured removals is in it, and the interval is wider by
    how far the measured ones lay from the fit.
    """
    if calibration.sketch is None:
        return None
    unseen = calibration.sketch.fold(1)
    removed = columns_of(keep, calibration.facts.model.heads)
    found = ratio_of_sums(unseen.costs(removed), unseen.tokens, calibration.facts.settings.seed)
    value, ends = float(found.value), (float(found.low), float(found.high))
    correction = calibration.check.correction if calibration.check else None
    factor = correction.factor(value) if correction else 1.0
    if len(unseen.tokens) < 2:
        return Forecast(nats_per_token=factor * value, sequences=len(unseen.tokens), factor=factor)
    low, high = (factor * _wider(end, value, correction.spread if correction else 0.0) for end in ends)
    return Forecast(nats_per_token=factor * value, low=low, high=high, sequences=len(unseen.tokens), factor=factor)


def warnings(forecast: Forecast | None) -> tuple[str, ...]:
    """What a person should hear before cutting by a plan with this forecast."""
    if forecast is None:
        return ("nothing is known of what this costs, as the calibration has no loss sketch",)
    if forecast.nats_per_token >= RUINOUS:
        return (
            f"forecast loss {forecast}: perplexity × {math.exp(min(forecast.nats_per_token, 50)):,.1f}. "
            "Expect broken answers; remove less, or other units",
        )
    return ()


def _wider(end: float, middle: float, spread: float) -> float:
    """An end of an interval moved away from its middle by an error of its own, both relative."""
    if not 0 < end != middle:
        return end
    away = math.log(end / middle)
    return middle * math.exp(math.copysign(math.hypot(away, 1.96 * spread), away))
