"""The forecast loss of a plan, on the held-out fold of the calibration's sequences."""

import math

from slim.calibration.facts import Forecast
from slim.calibration.record import Calibration
from slim.core.statistics import ratio_of_sums
from slim.models.columns import removed_columns
from slim.models.units import Keep

RUINOUS = 0.7
"""Nats/token; twice the perplexity. In the measurements so far, a larger loss was not worth repairing."""


def forecast(calibration: Calibration, keep: Keep) -> Forecast | None:
    """Forecast the loss of a plan on the held-out fold; None without a sketch.

    Where the calibration was checked, the correction fitted on measured removals is in it, and the interval is wider by
    how far the measured ones lay from the fit.
    """
    if calibration.sketch is None:
        return None
    unseen = calibration.sketch.fold(1)
    removed = removed_columns(keep, calibration.facts.model.heads)
    found = ratio_of_sums(unseen.costs(removed), unseen.tokens, calibration.facts.settings.seed)
    value, ends = float(found.value), (float(found.low), float(found.high))
    correction = calibration.check.correction if calibration.check else None
    factor = correction.factor(value) if correction else 1.0
    if len(unseen.tokens) < 2:
        return Forecast(nats_per_token=factor * value, sequences=len(unseen.tokens), factor=factor)
    low, high = (factor * _wider(end, value, correction.spread if correction else 0.0) for end in ends)
    return Forecast(nats_per_token=factor * value, low=low, high=high, sequences=len(unseen.tokens), factor=factor)


def warnings(forecast: Forecast | None) -> tuple[str, ...]:
    """Return the warnings to show before a plan with this forecast is executed."""
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
