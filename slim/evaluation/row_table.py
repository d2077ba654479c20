"""Score columns: metrics that share their rows, with the contribution of every row for every model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from slim.data.tasks import Example
from slim.evaluation.metrics import KL, Columns, Metric, assess
from slim.evaluation.record import MetricFacts, Score


@dataclass(frozen=True)
class ScoreColumns:
    """Metrics over the same rows, with `columns` and `texts` of each model by name.

    `places` are the rows' places among all drawn rows; `task` is a standard task, or empty for the dataset rows.
    """

    task: str
    measures: tuple[Metric, ...]
    places: Sequence[int]
    columns: Mapping[str, Columns]
    texts: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)

    def key(self, measure: Metric) -> str:
        """Return the metric's name in the record."""
        return f"{self.task}/{measure.name}" if self.task else measure.name

    def scored(self) -> "ScoreColumns | None":
        """Return the rows that every model has a figure for; None where there is no such row."""
        fine = np.all([np.isfinite(column) for mine in self.columns.values() for column in mine.values()], axis=0)
        if not fine.any():
            return None
        chosen: list[int] = np.flatnonzero(fine).tolist()
        return replace(
            self,
            places=[self.places[place] for place in chosen],
            columns={
                model: {name: column[fine] for name, column in mine.items()} for model, mine in self.columns.items()
            },
            texts={
                model: {name: [values[place] for place in chosen] for name, values in mine.items()}
                for model, mine in self.texts.items()
            },
        )


def facts_of(parts: Sequence[ScoreColumns]) -> dict[str, MetricFacts]:
    """Return the description of each metric."""
    return {
        part.key(measure): MetricFacts(
            task=part.task,
            title=measure.title,
            unit=measure.unit,
            higher_is_better=measure.higher_is_better,
            digits=measure.digits,
            rows=len(part.places),
            chance=100 * float(next(iter(part.columns.values()))["chance"].mean()) if measure.guessed else None,
        )
        for part in parts
        for measure in part.measures
    }


def scores_of(parts: Sequence[ScoreColumns], model: str, original: str, seed: int) -> dict[str, Score]:
    """Return a model's figures, and their differences to the original's. KL has none, as it is itself a difference."""
    found = {}
    for part in parts:
        for measure in part.measures:
            if measure is KL and model == original:
                continue
            first = None if measure is KL or model == original else part.columns[original]
            figure, difference = assess(measure, part.columns[model], first, seed)
            found[part.key(measure)] = Score(figure=figure, difference=difference)
    return found


def table(parts: Sequence[ScoreColumns], examples: Sequence[Example]) -> pd.DataFrame:
    """Return a line for each model and row: prompt, answer and reference, and the contribution to every metric."""
    frames: dict[tuple[str, str], pd.DataFrame] = {}
    for part in parts:
        for model, columns in part.columns.items():
            frame = frames.setdefault((model, part.task), _empty(part, examples))
            for name, values in (dict(part.texts.get(model, {})) | dict(columns)).items():
                frame[name] = pd.Series(_plain(values), index=list(part.places))
    whole = [frame.assign(model=model, task=task, row=frame.index) for (model, task), frame in frames.items()]
    first = ["model", "task", "row"]
    if not whole:
        return pd.DataFrame({name: [] for name in first})
    joined = pd.concat(whole, ignore_index=True)
    return joined.reindex(columns=first + [name for name in joined.columns if name not in first])


def _empty(part: ScoreColumns, examples: Sequence[Example]) -> pd.DataFrame:
    if part.task:
        return pd.DataFrame(index=list(part.places))
    asked = {"prompt": [one.prompt for one in examples], "reference": [one.answer for one in examples]}
    return pd.DataFrame(asked, index=range(len(examples)))


def _plain(values: Any) -> Any:
    """Return numbers and texts as they are, and other items of a standard task as text."""
    return [str(value) for value in values] if isinstance(values, np.ndarray) and values.dtype.kind == "O" else values
