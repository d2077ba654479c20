"""Metrics over rows: a figure, its difference to another model's on the same rows, and the intervals of both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slim.core.records import Record
from slim.core.statistics import interval, resample_counts

Columns = Mapping[str, NDArray[np.float64]]
"""Contribution of each row to a metric, by name.  # (R,) each"""
POINTS = "points"
LARGEST = 700.0
"""Nats whose exponential is still finite."""


class Figure(Record):
    """A number with its 95% bootstrap interval over rows. One row alone gives no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def words(self, digits: int, sign: bool = False) -> str:
        """Return the number and its interval, each with its sign where `sign` is set: "−1.2 [−2.9, +0.4]"."""
        form = f"{'+' if sign else ''},.{digits}f"
        if self.low is None or self.high is None:
            return f"{self.value:{form}} (one row, no interval)".replace("-", "−")
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]".replace("-", "−")


@dataclass(frozen=True)
class Metric:
    """A metric by name. `figure` returns it for each of S resamples (S,), from the count of each row in them (S, R)."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    figure: Callable[[Columns, NDArray[np.int64]], NDArray[np.float64]]
    digits: int = 1
    """Digits after the decimal point, where it is shown."""
    guessed: bool = False
    """Whether the column `chance` holds what a guess contributes to it."""


def mean(
    name: str, title: str, unit: str = POINTS, higher_is_better: bool = True, digits: int = 1, guessed: bool = False
) -> Metric:
    """Return the mean of the column `name` as a metric; in points it is multiplied by 100."""
    scale = 100.0 if unit == POINTS else 1.0
    return Metric(
        name,
        title,
        unit,
        higher_is_better,
        lambda rows, counts: scale * (counts @ rows[name]) / counts.sum(1),
        digits,
        guessed,
    )


def assess(
    measure: Metric, mine: Columns, baseline: Columns | None = None, seed: int = 0
) -> tuple[Figure, Figure | None]:
    """Return a model's figure, and its difference to the `baseline`'s on the same rows.

    Every resample takes the same rows of both (a paired bootstrap), so a row's difficulty for both cancels.
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
    """Return the mean F1 over the labels that occur, in references or answers; −1 is an answer without a label."""
    from sklearn.metrics import f1_score

    gold, said = rows["gold"], rows["said"]

    def figure(taken: NDArray[np.int64]) -> float:
        there = np.concatenate((gold[taken > 0], said[taken > 0]))
        return f1_score(gold, said, labels=np.unique(there[there >= 0]), average="macro", sample_weight=taken)

    return 100 * np.array([figure(taken) for taken in counts])


PERPLEXITY = Metric("perplexity", "perplexity", "", False, _perplexity, digits=2)
KL = Metric("kl", "KL to the original", "nats/token", False, _per_token("kl"), digits=4)
MACRO_F1 = Metric("macro_f1", "macro-F1", POINTS, True, _macro_f1)
ROUGE = tuple(mean(f"rouge{which}", f"ROUGE-{which}") for which in ("1", "2", "L"))
EXACT = mean("exact_match", "exact match")
TOKEN_F1 = mean("token_f1", "F1 of words")
ACCURACY = mean("accuracy", "accuracy", guessed=True)
RANKED = mean("ranked", "accuracy, likelihood per character", guessed=True)
RANKED_WHOLE = mean("ranked_whole", "accuracy, likelihood", guessed=True)
