"""Figures with their uncertainty: a ratio of sums over rows, and what resampling the rows makes of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 400
LEVEL = 0.95
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
"""The quantiles an interval lies between."""


@dataclass(frozen=True)
class Estimate:
    """A figure per unit and its 95% interval; both ends are NaN where a single row leaves it unknown."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def unsure(cls, value: NDArray[np.float64]) -> "Estimate":
        """A figure of which nothing says how sure it is."""
        return cls(value, np.full_like(value, np.nan), np.full_like(value, np.nan))


def ratio_of_sums(parts: NDArray[np.float64], weights: NDArray[Any], seed: int = 0) -> Estimate:
    """Σ_rows parts / Σ_rows weights with its percentile bootstrap over rows (Efron 1979).

    `parts` (R, …) are what each row adds to a figure, `weights` (R,) or (R, L) what it weighs, usually in tokens.
    Tokens of one row are alike, so rows are resampled, not tokens. A unit that no row has weight for gives 0.
    """
    value, drawn = bootstrap(parts, weights, np.random.default_rng(seed))
    return Estimate.unsure(value) if len(parts) < 2 else Estimate(value, *interval(drawn))


def bootstrap(
    parts: NDArray[np.float64], weights: NDArray[Any], generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ratio of `ratio_of_sums` (…), and that of each resample of the rows (RESAMPLES, …)."""
    rows = len(parts)
    weights = weights.reshape(*weights.shape, *[1] * (parts.ndim - weights.ndim))
    drawn = resample_counts(rows, generator)
    above, below = (np.tensordot(drawn, sums, (1, 0)) for sums in (parts, weights))
    return _ratio(parts.sum(0), weights.sum(0)), _ratio(above, below)


def resample_counts(rows: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """How often each row is in each resample.  # (RESAMPLES, R)"""
    return generator.multinomial(rows, [1 / rows] * rows, size=RESAMPLES)


def interval(drawn: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the middle 95% of the resamples begin and end."""
    low, high = np.quantile(drawn, ENDS, axis=0)
    return low, high


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value among those of its row (…, N), from 1 on; ties share their mean.

    By pandas, which pages have loaded already.
    """
    import pandas as pd

    return pd.DataFrame(values.reshape(-1, values.shape[-1])).rank(axis=1).to_numpy().reshape(values.shape)


def _ratio(above: NDArray[np.float64], below: NDArray[Any]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.zeros_like(above), where=np.broadcast_to(below > 0, above.shape))
