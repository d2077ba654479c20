"""What the models of an evaluation can be compared by, whether a difference is sure, and which models are efficient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slim.evaluation.metrics import Figure
from slim.evaluation.record import EvaluationFacts
from slim.evaluation.speed import Footprint, Speed, Timed

Group = Literal["quality", "speed", "size"]
Standing = Literal["better", "worse", "same", "apart", "open", "unknown"]
"""Of a model beside the original. `open`: the interval holds no difference. `unknown`: there is no interval.
`apart`: of a distance, which is above 0 as soon as anything differs, so that its interval says nothing of worse."""
KL_MEASURE = "kl"
PERCENT = "%"


@dataclass(frozen=True)
class ComparedMetric:
    """One thing that was found of the models of an evaluation, in their order; None where one has none.

    `changes` are what each has more than the original, in `change_unit`. Of speed they have the lowest and highest
    ratio of runs side by side as their ends; sizes are counted, so their ends are the change itself.
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
        """The figures; NaN where there is none.  # (M,)"""
        return np.array([np.nan if figure is None else figure.value for figure in self.figures])

    @property
    def shares(self) -> NDArray[np.float64]:
        """How many times as good as the original each is; NaN where that cannot be said.  # (M,)"""
        values = self.values
        above, below = (values, values[0]) if self.higher_is_better else (values[0], values)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.divide(above, below)
        return np.where(np.isfinite(found) & (found >= 0), found, np.nan)

    def change_in_words(self, model: int) -> str:
        """What a model has more than the original, and how sure that is: "−1.2 points [−2.9, +0.4]"."""
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
        """What the interval of a model's change says; None where there is no change."""
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
    """Everything the evaluation found: quality, then speed at each batch size, then size."""
    return [*_quality(facts), *_speed(facts), *_size(facts)]


def efficient(x: ComparedMetric, y: ComparedMetric) -> NDArray[np.bool_]:
    """The models that no other is at least as good as in both quantities and better than in one (the Pareto front).

    Models that are alike in both stand or fall together; one that lacks a figure is never efficient.  # (M,)
    """
    return pareto(x.values, y.values, more_x=x.higher_is_better, more_y=y.higher_is_better)


def pareto(x: NDArray[np.float64], y: NDArray[np.float64], *, more_x: bool, more_y: bool) -> NDArray[np.bool_]:
    """The same for plain values; `more_x` and `more_y` say whether more is better.  # (M,)"""
    points = np.stack((x if more_x else -x, y if more_y else -y), 1)
    known = np.isfinite(points).all(1)
    points[~known] = -np.inf  # so that it is better than nothing
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
        if name == KL_MEASURE:  # a model's distance to itself is none, so a figure is the change as well
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
    """How many per cent more than the original: tokens a second where more is better, else seconds."""
    ratios = (timed.times, timed.low, timed.high) if higher else (1 / timed.times, 1 / timed.high, 1 / timed.low)
    value, low, high = (100 * (ratio - 1) for ratio in ratios)
    return Figure(value=value, low=low, high=high)


def named_metric(found: Sequence[ComparedMetric], name: str) -> ComparedMetric:
    """The quantity of this name."""
    return next(quantity for quantity in found if quantity.name == name)
