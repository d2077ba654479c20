"""Measures over rows: a figure, its difference to another model's on the same rows, and how sure both are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slim.core.records import Record
from slim.core.statistics import interval, resample_counts

Columns = Mapping[str, NDArray[np.float64]]
"""What each row adds to a measure, by name.  # (R,) each"""
POINTS = "points"
LARGEST = 700.0
"""Nats whose exponential is still a number."""


class Figure(Record):
    """A number with the interval that 95% of resampled rows give. One row alone gives no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def words(self, digits: int, sign: bool = False) -> str:
        """The number and its interval, each with its sign where `sign` is wanted: "−1.2 [−2.9, +0.4]"."""
        form = f"{'+' if sign else ''},.{digits}f"
        if self.low is None or self.high is None:
            return f"{self.value:{form}} (one row, no interval)".replace("-", "−")
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]".replace("-", "−")


@dataclass(frozen=True)
class Metric:
    """A measure by name. `figure` gives it for each of S resamples from how often each row is in them (S, R)."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    figure: Callable[[Columns, NDArray[np.int64]], NDArray[np.float64]]
    digits: int = 1
    """After the decimal point, where it is shown."""


def mean(name: str, title: str, unit: str = POINTS, higher_is_better: bool = True, digits: int = 1) -> Metric:
    """The mean of the column `name`; in points it is multiplied by 100."""
    scale = 100.0 if unit == POINTS else 1.0
    return Metric(
        name, title, unit, higher_is_better, lambda rows, counts: scale * (counts @ rows[name]) / counts.sum(1), digits
    )


def assess(
    measure: Metric, mine: Columns, baseline: Columns | None = None, seed: int = 0
) -> tuple[Figure, Figure | None]:
    """A model's figure, and how much more than the `baseline`'s it is on the same rows.

    Every resample takes the same rows of both, so what makes a row hard for both cancels (a paired bootstrap).
    """
    rows = len(next(iter(mine.values())))
    counts = np.vstack((np.ones((1, rows), dtype=np.int64), resample_counts(rows, np.random.default_rng(seed))))
    values = measure.figure(mine, counts)
    if baseline is None:
        return _figure(values, rows), None
    return _figure(values, rows), _figure(values - measure.figure(baseline, counts), rows)


def _figure(values: NDArray[np.float64], rows: int) -> Figure:
    if rows < 2:
        return Figure(value=float(values[0]))
    low, high = interval(values[1:])
    return Figure(value=float(values[0]), low=float(low), high=float(high))


def _per_token(name: str) -> Callable[[Columns, NDArray[np.int64]], NDArray[np.float64]]:
    return lambda rows, counts: (counts @ rows[name]) / (counts @ rows["predicted"])


def _perplexity(rows: Columns, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.exp(np.minimum(_per_token("surprise")(rows, counts), LARGEST))


def _macro_f1(rows: Columns, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean over the labels that occur, asked for or answered; an answer that is no label (−1) finds none."""
    gold, said = rows["gold"], rows["said"]
    labels = np.unique(np.concatenate((gold, said[said >= 0])))[:, None]
    hits = counts @ ((gold == labels) & (said == labels)).T  # (S, labels)
    both = counts @ ((gold == labels).astype(np.int64) + (said == labels)).T
    f1 = np.divide(2.0 * hits, both, out=np.zeros(both.shape), where=both > 0)
    return 100 * f1.sum(1) / (both > 0).sum(1)


PERPLEXITY = Metric("perplexity", "perplexity", "", False, _perplexity, digits=2)
KL = Metric("kl", "KL to the original", "nats/token", False, _per_token("kl"), digits=4)
MACRO_F1 = Metric("macro_f1", "macro-F1", POINTS, True, _macro_f1)
ROUGE = tuple(mean(f"rouge{which}", f"ROUGE-{which}") for which in ("1", "2", "L"))
EXACT = mean("exact_match", "exact match")
TOKEN_F1 = mean("token_f1", "F1 of words")
ACCURACY = mean("accuracy", "accuracy")
RANKED = mean("ranked", "accuracy, likelihood per character")
RANKED_WHOLE = mean("ranked_whole", "accuracy, likelihood")
