"""The evaluation record and its files: the figures of each model, beside every row they come from."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import pandas as pd
from pydantic import Field, model_validator

from slim.core import workspace
from slim.core.migrations import read_run_record, readable
from slim.core.records import DatasetFacts, ModelFacts, Record, StandsForPath, why_invalid
from slim.core.run_index import remember
from slim.evaluation.metrics import POINTS, Figure
from slim.evaluation.settings import EvaluationSettings
from slim.evaluation.speed_record import Footprint, Speed

TABLE, SCORES = "table.parquet", "scores.csv"


class MetricFacts(Record):
    """Description of a metric, which is saved with its figures."""

    task: str = Field(description="a standard task, or empty for the dataset rows")
    title: str
    unit: str
    higher_is_better: bool
    digits: int = Field(ge=0, le=9, description="digits after the decimal point, where it is shown")
    rows: int = Field(ge=1)
    chance: float | None = Field(default=None, description="figure of a guess among the choices or labels")

    @property
    def beside_chance(self) -> str:
        """The figure of a guess in words, where there is one: " (chance: 25.0)"."""
        return "" if self.chance is None else f" (chance: {self.chance:.{self.digits}f})"


class Score(Record):
    """A model's figure, and its difference to the original's on the same rows."""

    figure: Figure
    difference: Figure | None = None


class ModelScores(Record):
    """All figures of one model, quality by metric."""

    name: str
    model: ModelFacts
    scores: dict[str, Score] = Field(default={})
    truncated_answers: int | None = Field(default=None, ge=0, description="answers that were cut at max_new_tokens")
    pace: tuple[Speed, ...] = ()
    footprint: Footprint | None = None

    @property
    def parameters(self) -> int:
        """The model's number of parameters."""
        return self.model.parameters


class TaskFacts(Record):
    """A standard task as it was run."""

    version: str
    shots: int = Field(ge=0)
    rows: int = Field(ge=1)


class EvaluationFacts(Record):
    """`record.json` of an evaluation. Its rows stand beside it in `table.parquet`, its figures in `scores.csv`."""

    schema_version: Literal[1] = 1
    kind: Literal["evaluation"] = "evaluation"
    dataset: DatasetFacts | None
    held_out: str = Field(description="why these rows are held out from every model, as far as that is known")
    settings: EvaluationSettings
    max_new_tokens: int | None = Field(default=None, ge=1)
    repetition_penalty: float | None = Field(default=None, description="of the answers; null without one")
    measures: dict[str, MetricFacts]
    tasks: dict[str, TaskFacts] = Field(default={})
    models: tuple[ModelScores, ...] = Field(min_length=1, description="the first is the original")
    versions: dict[str, str]
    device: str
    started: str
    seconds: float = Field(ge=0)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _explained(self) -> Self:
        """Raise ValueError for a score whose metric is not described."""
        unknown = {name for one in self.models for name in one.scores} - self.measures.keys()
        if unknown:
            raise ValueError(f"measures: {min(unknown)!r} has a score and no description")
        return self

    @property
    def ends(self) -> list[str]:
        """Sentences on the tokens that end an answer of each model; one where they are those of all."""
        named = {one.name: one.model.ends for one in self.models if one.model.stops}
        if len(named) == len(self.models) and len(set(named.values())) == 1:
            return [f"Answers end at {self.models[0].model.ends}."]
        return [f"{name}: answers end at {ends}." for name, ends in named.items()]

    @property
    def original(self) -> ModelScores:
        """The model that the others are compared with."""
        return self.models[0]


@dataclass(frozen=True)
class Evaluation(StandsForPath):
    """An evaluation's record, and a table with a line for each model and row."""

    facts: EvaluationFacts
    table: pd.DataFrame
    path: Path | None = None


def save_evaluation(evaluation: Evaluation, output: Path) -> Evaluation:
    """Write the record, the rows and the figures to the new folder `output`, and add it to the workspace's index."""
    with workspace.new_folder(output) as folder:
        evaluation.table.to_parquet(folder / TABLE, index=False)
        figures_table(evaluation.facts).to_csv(folder / SCORES, index=False)
        (folder / "record.json").write_text(evaluation.facts.model_dump_json(indent=1), encoding="utf-8")
    remember(output, "evaluation")
    return replace(evaluation, path=output)


def load_evaluation_facts(folder: Path) -> EvaluationFacts:
    """Return the record of a saved evaluation without its rows. Raises InputError where `folder` has none."""
    return read_run_record(EvaluationFacts, folder, "evaluate")


def load_evaluation(folder: Path) -> Evaluation:
    """Return a saved evaluation. Raises InputError where `folder` has none."""
    facts = load_evaluation_facts(folder)
    with readable(f"evaluation {str(folder)!r}", "evaluate"):
        return Evaluation(facts, _table(folder / TABLE), folder)


def _table(file: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"{TABLE}: {why_invalid(error)}") from error


def figures_table(facts: EvaluationFacts) -> pd.DataFrame:
    """Return a line for every figure of every model, with its interval: quality first, then speed and size."""
    lines = []
    for one in facts.models:
        for name, score in one.scores.items():
            about = facts.measures[name]
            shown = about.model_dump(include={"task", "unit", "higher_is_better", "rows"})
            lines.append(
                {"model": one.name, "measure": name, **shown}
                | _ends("", score.figure)
                | _ends("difference", score.difference)
            )
        lines += [{"model": one.name, **line} for line in _of_speed(one)]
    return pd.DataFrame(lines, columns=COLUMNS)


COLUMNS = [
    "model",
    "measure",
    "task",
    "unit",
    "higher_is_better",
    "rows",
    "value",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "times_original",
    "times_low",
    "times_high",
]
"""Columns of the table of figures. `difference` is for quality, `times` for speed: 1.2 is 20% faster."""


def in_words(about: MetricFacts, figure: Figure, sign: bool = False) -> str:
    """Return a figure as it is shown: "31.2 [28.0, 34.9]", or a difference: "−1.2 points [−2.9, +0.4]"."""
    words = figure.words(about.digits, sign)
    if not (sign and about.unit == POINTS):
        return words
    number, _, rest = words.partition(" ")
    return f"{number} {POINTS} {rest}"


def _ends(name: str, figure: Figure | None) -> dict[str, float | None]:
    if figure is None:
        return {}
    prefix = f"{name}_" if name else ""
    return {name or "value": figure.value, f"{prefix}low": figure.low, f"{prefix}high": figure.high}


def _of_speed(one: ModelScores) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = [{"measure": "parameters", "value": one.parameters, "higher_is_better": False}]
    for pace in one.pace:
        for name, unit, timed, higher in (
            ("prefill", "tokens/s", pace.prefill, True),
            ("decode", "tokens/s", pace.decode, True),
            ("first_token", "s", pace.first_token, False),
        ):
            times = {"times_original": timed.times, "times_low": timed.low, "times_high": timed.high}
            shown = {"unit": unit, "higher_is_better": higher, "value": timed.value}
            lines.append({"measure": name, "rows": pace.rows, **shown, **times})
        shown = {"unit": "bytes", "higher_is_better": False, "value": pace.cache_bytes}
        lines.append({"measure": "cache", "rows": pace.rows, **shown})
    if one.footprint is not None:
        for name, unit, value in (
            ("file", "bytes", one.footprint.file_bytes),
            ("peak_memory", "bytes", one.footprint.peak_bytes),
            ("load", "s", one.footprint.load.value),
        ):
            lines.append({"measure": name, "unit": unit, "higher_is_better": False, "value": value})
    return lines
