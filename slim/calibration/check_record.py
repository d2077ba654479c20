"""Which criterion predicts real damage, on this model and task: measured, not believed.

On rows that took no part in the calibration some heads are left out one by one, and each criterion's first 5, 10, 20
and 30% of the heads together. The rank correlation tells how well a criterion orders heads; the perplexities tell what
following it would cost. The same joint removals, forecast and measured, give the correction of the forecast.
"""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from slim.core.records import Record
from slim.core.statistics import ranks

SHARES = (0.05, 0.1, 0.2, 0.3)
"""Shares of all heads that are removed together."""
SMALL_SHARES = (0.01, 0.02)
"""Shares that only the correction of the forecast is fitted on, of what orders heads well."""
LARGEST_LOG = 50.0
"""Of a factor: far beyond what any removal costs, and such that products of it are numbers."""


class Removal(Record):
    """Heads left out together: what was forecast and what it cost."""

    share: float = Field(gt=0, le=1, description="of all heads")
    heads: int = Field(ge=1)
    forecast: float | None = Field(default=None, ge=0, description="nats/token, before any correction")
    kl: float = Field(ge=0, description="measured, nats/token")
    perplexity: float = Field(gt=0, description="on the rows' own tokens")


class Verdict(Record):
    """How well one criterion predicts damage."""

    criterion: str
    correlation: float | None = Field(description="Spearman with the measured cost of single heads; 1 is perfect")
    low: float | None
    high: float | None
    removals: tuple[Removal, ...]


class Correction(Record):
    """measured ≈ forecast · exp(intercept + slope · x + curvature · x²) with x = ln forecast, within what was seen.

    Small removals cost what the second order says; larger ones more, and ruin saturates: a line cannot say all three.
    """

    intercept: float
    slope: float
    curvature: float = 0.0
    smallest: float = Field(gt=0)
    largest: float = Field(gt=0)
    spread: float = Field(ge=0, le=LARGEST_LOG, description="standard deviation of ln(measured / corrected)")
    removals: int = Field(ge=3)

    @model_validator(mode="after")
    def _gives_numbers(self) -> Self:
        ends = np.log([self.smallest, self.largest])
        turn = -self.slope / (2 * self.curvature) if self.curvature else ends[0]
        if not all(abs(self._log(seen)) <= LARGEST_LOG for seen in (*ends, np.clip(turn, *ends))):
            raise ValueError("its factor is not a number that a forecast can be multiplied with")
        return self

    def factor(self, forecast: float) -> float:
        """Return the factor that corrects a forecast in nats/token; outside of the fitted range, that of its end."""
        if forecast <= 0:
            return 1.0
        return float(np.exp(self._log(np.log(np.clip(forecast, self.smallest, self.largest)))))

    def _log(self, seen: float) -> float:
        return self.intercept + self.slope * seen + self.curvature * seen**2


class CriterionCheck(Record):
    """`faithfulness.json` beside a calibration."""

    schema_version: Literal[1] = 1
    kind: Literal["faithfulness"] = "faithfulness"
    rows: int = Field(ge=1)
    tokens: int = Field(ge=1, description="predicted positions")
    unseen: bool = Field(description="whether the rows took no part in the calibration")
    perplexity: float = Field(gt=0, description="of the whole model")
    weights: dict[str, float] = Field(description="of the composite")
    heads: tuple[tuple[int, int], ...] = Field(description="(layer, head) that were left out alone")
    damage: tuple[float, ...] = Field(description="what each of them cost, nats/token")
    verdicts: tuple[Verdict, ...]
    correction: Correction | None
    seconds: float = Field(ge=0)

    def verdict(self, criterion: str) -> Verdict | None:
        return next((verdict for verdict in self.verdicts if verdict.criterion == criterion), None)


def rank_correlation(
    prunability: NDArray[np.float64], damage: NDArray[np.float64], seed: int = 0
) -> tuple[float, float, float]:
    """Spearman of "goes late" with the damage, and its 95% bootstrap interval over heads; NaN without variation."""
    count = len(damage)
    resampled = np.random.default_rng(seed).integers(count, size=(300, count))
    chosen = np.concatenate((np.arange(count)[None], resampled))
    value, *samples = _correlation(ranks(-prunability[chosen]), ranks(damage[chosen]))
    if not np.isfinite(samples).any():
        return float(value), np.nan, np.nan
    low, high = np.nanquantile(samples, (0.025, 0.975))
    return float(value), float(low), float(high)


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's of each row.  # (R,)"""
    one, other = (each - each.mean(1, keepdims=True) for each in (one, other))
    below = np.sqrt(np.square(one).sum(1) * np.square(other).sum(1))
    return np.divide((one * other).sum(1), below, out=np.full(len(below), np.nan), where=below > 0)


def fit_correction(forecast: NDArray[np.float64], measured: NDArray[np.float64]) -> Correction | None:
    """Least absolute deviations of ln(measured / forecast) over ln forecast; None with fewer than six removals.

    The fit bends where there are ten removals or more. None as well where it gives no numbers, as heads that are nearly
    dead may make it.
    """
    fine = (forecast > 0) & (measured > 0)
    if fine.sum() < 6:
        return None
    x, y = np.log(forecast[fine]), np.log(measured[fine] / forecast[fine])
    design = np.vander(x, 3 if len(x) >= 10 else 2, increasing=True)
    curve = _least_absolute(design, y)
    try:
        return Correction(
            intercept=curve[0],
            slope=curve[1],
            curvature=curve[2] if len(curve) > 2 else 0.0,
            smallest=float(forecast[fine].min()),
            largest=float(forecast[fine].max()),
            spread=float((y - design @ curve).std()),
            removals=int(fine.sum()),
        )
    except ValidationError:
        return None


def first_heads(prunability: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """The `share` of all heads that a criterion would remove first, ties by layer and head.  # (L, H)"""
    count = max(1, round(share * prunability.size))
    chosen = np.zeros(prunability.size, dtype=bool)
    chosen[np.argsort(-prunability.ravel(), kind="stable")[:count]] = True
    return chosen.reshape(prunability.shape)


def _least_absolute(design: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The fit that a few ruinous removals do not bend: reweighted least squares."""
    weights = np.ones_like(y)
    fit = np.zeros(design.shape[1])
    for _ in range(50):
        fit = np.linalg.lstsq(design * weights[:, None], y * weights, rcond=None)[0].astype(np.float64)
        weights = 1 / np.sqrt(np.maximum(np.abs(y - design @ fit), 1e-3))
    return fit
