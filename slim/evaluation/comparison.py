"""Metrics that compare the models of an evaluation, the verdict on each difference, and the efficient models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slim.evaluation.metrics import Figure
from slim.evaluation.record import EvaluationFacts
from slim.evaluation.speed_record import Footprint, Speed, Timed

Group = Literal["quality", "speed", "size"]
Standing = Literal["better", "worse", "same", "apart", "open", "unknown"]
"""Verdict on a model beside the original. `open`: the interval includes 0. `unknown`: there is no interval.
`apart`: for a distance, which is above 0 as soon as anything differs, so its interval does not show what is worse."""
KL_MEASURE = "kl"
PERCENT = "%"


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of the models of an evaluation, in their order; None where a model lacks it.

    `changes` are the differences to the original, in `change_unit`. The interval of a speed is the lowest and highest
    ratio of paired runs; sizes are counted, so both ends of their interval are the difference itself.
    """

    name: str
    title: str
    unit: str
    group: Group
    higher_is_better: bool
    digits: int
    figures: tuple[Figure | None, ...]
    changes: tuple[Figure | None, ...]
    change_unit: str

    @property
    def label(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def values(self) -> NDArray[np.float64]:
        """The figures; NaN where a model lacks one.  # (M,)"""
        return np.array([np.nan if figure is None else figure.value for figure in self.figures])

    @property
    def shares(self) -> NDArray[np.float64]:
        """The ratio of each model to the original, above 1 where it is better; NaN where it is undefined.  # (M,)"""
        values = self.values
        above, below = (values, values[0]) if self.higher_is_better else (values[0], values)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.divide(above, below)
        return np.where(np.isfinite(found) & (found >= 0), found, np.nan)

    def change_in_words(self, model: int) -> str:
        """Return the difference of a model to the original, and its interval: "−1.2 points [−2.9, +0.4]"."""
        change = self.changes[model]
        if change is None:
            return ""
        in_percent = self.change_unit == PERCENT
        words = change.words(1 if in_percent else self.digits, sign=True)
        number, _, interval = words.partition(" ")
        unit = self.change_unit if in_percent or not self.change_unit else f" {self.change_unit}"
        counted = self.group == "size" and change.low == change.high
        return f"{number}{unit}" if counted else f"{number}{unit} {interval}"

    def standing(self, model: int) -> Standing | None:
        """Return the verdict on a model's difference by its interval; None where the difference is unknown."""
        change = self.changes[model]
        if change is None:
            return None
        if change.low is None or change.high is None:
            return "unknown"
        if change.low == change.high == 0:
            return "same"
        if self.name == KL_MEASURE:
            return "apart"
        if change.low <= 0 <= change.high:
            return "open"
        return "better" if (change.low > 0) == self.higher_is_better else "worse"


def compare_models(facts: EvaluationFacts) -> list[ComparedMetric]:
    """Return all metrics of an evaluation: quality, then speed at each batch size, then size."""
    return [*_quality(facts), *_speed(facts), *_size(facts)]


def efficient(x: ComparedMetric, y: ComparedMetric) -> NDArray[np.bool_]:
    """Return which models are on the Pareto front: no other is at least as good in both metrics and better in one.

    Models that are equal in both are treated alike; one that lacks a figure is never efficient.  # (M,)
    """
    return pareto(x.values, y.values, more_x=x.higher_is_better, more_y=y.higher_is_better)


def pareto(x: NDArray[np.float64], y: NDArray[np.float64], *, more_x: bool, more_y: bool) -> NDArray[np.bool_]:
    """Return the same for plain values; `more_x` and `more_y` say whether more is better.  # (M,)"""
    points = np.stack((x if more_x else -x, y if more_y else -y), 1)
    known = np.isfinite(points).all(1)
    points[~known] = -np.inf  # so that it is better than no other
    as_good = (points[:, None] >= points[None]).all(2)
    better = (points[:, None] > points[None]).any(2)
    beaten = np.any(as_good & better, axis=0)
    return np.logical_and(known, np.logical_not(beaten))


def _quality(facts: EvaluationFacts) -> list[ComparedMetric]:
    found = []
    for name, about in facts.measures.items():
        scores = [one.scores.get(name) for one in facts.models]
        figures = [score and score.figure for score in scores]
        changes = [score and score.difference for score in scores]
        if name == KL_MEASURE:  # a model's distance to itself is 0, so a figure is its difference as well
            changes = [None, *figures[1:]]
            figures[0] = Figure(value=0.0, low=0.0, high=0.0)
        found.append(
            ComparedMetric(
                name=name,
                title=f"{about.task}: {about.title}" if about.task else about.title,
                unit=about.unit,
                group="quality",
                higher_is_better=about.higher_is_better,
                digits=about.digits,
                figures=tuple(figures),
                changes=tuple(changes),
                change_unit=about.unit,
            )
        )
    return found


def _speed(facts: EvaluationFacts) -> list[ComparedMetric]:
    found = []
    for rows in dict.fromkeys(pace.rows for pace in facts.original.pace):
        paces = [next((pace for pace in one.pace if pace.rows == rows), None) for one in facts.models]
        at = f", {rows} row{'s' if rows > 1 else ''}"
        ways: tuple[tuple[str, str, str, bool, int, Callable[[Speed], Timed]], ...] = (
            ("prefill", "prefill", "tokens/s", True, 0, lambda pace: pace.prefill),
            ("decode", "decoding", "tokens/s", True, 1, lambda pace: pace.decode),
            ("first_token", "first token", "s", False, 3, lambda pace: pace.first_token),
        )
        for name, title, unit, higher, digits, timed in ways:
            timings = [None if pace is None else timed(pace) for pace in paces]
            found.append(_timed(f"{name}-{rows}", title + at, unit, "speed", higher, digits, timings))
        held = [None if pace is None else pace.cache_bytes / 1e6 for pace in paces]
        found.append(_counted(f"cache-{rows}", f"KV cache{at}", "MB", 2, held))
    return found


def _size(facts: EvaluationFacts) -> list[ComparedMetric]:
    parameters = [one.parameters / 1e6 for one in facts.models]
    found = [_counted("parameters", "parameters", "M", 1, parameters)]
    if facts.original.footprint is None:
        return found

    def taken(of: Callable[[Footprint], float]) -> list[float | None]:
        return [None if one.footprint is None else of(one.footprint) for one in facts.models]

    loads = [None if one.footprint is None else one.footprint.load for one in facts.models]
    return [
        *found,
        _counted("file", "file", "MB", 1, taken(lambda footprint: footprint.file_bytes / 1e6)),
        _counted("peak_memory", "peak memory", "MB", 1, taken(lambda footprint: footprint.peak_bytes / 1e6)),
        _timed("load", "loading", "s", "size", False, 2, loads),
    ]


def _counted(name: str, title: str, unit: str, digits: int, values: Sequence[float | None]) -> ComparedMetric:
    original = values[0]
    changes = [None if not original or value is None else 100 * (value / original - 1) for value in values[1:]]
    return ComparedMetric(
        name=name,
        title=title,
        unit=unit,
        group="size",
        higher_is_better=False,
        digits=digits,
        figures=tuple(None if value is None else Figure(value=value) for value in values),
        changes=(None, *(None if more is None else Figure(value=more, low=more, high=more) for more in changes)),
        change_unit=PERCENT,
    )


def _timed(
    name: str, title: str, unit: str, group: Group, higher: bool, digits: int, timings: Sequence[Timed | None]
) -> ComparedMetric:
    return ComparedMetric(
        name=name,
        title=title,
        unit=unit,
        group=group,
        higher_is_better=higher,
        digits=digits,
        figures=tuple(None if timed is None else Figure(value=timed.value) for timed in timings),
        changes=(None, *(None if timed is None else _change(timed, higher) for timed in timings[1:])),
        change_unit=PERCENT,
    )


def _change(timed: Timed, higher: bool) -> Figure:
    """Return the difference to the original in percent: of tokens/s where more is better, else of seconds."""
    ratios = (timed.times, timed.low, timed.high) if higher else (1 / timed.times, 1 / timed.high, 1 / timed.low)
    value, low, high = (100 * (ratio - 1) for ratio in ratios)
    return Figure(value=value, low=low, high=high)


def named_metric(found: Sequence[ComparedMetric], name: str) -> ComparedMetric:
    """Return the metric of this name."""
    return next(quantity for quantity in found if quantity.name == name)
