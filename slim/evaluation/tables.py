"""Tables of an evaluation's figures in words, a line for each model: quality, speed and size."""

from collections.abc import Sequence

import pandas as pd

from slim.evaluation.comparison import ComparedMetric, Standing, named_metric
from slim.evaluation.record import EvaluationFacts, in_words
from slim.evaluation.speed_record import Timed

STANDINGS: dict[Standing, str] = {
    "better": "better",
    "worse": "worse",
    "same": "the same",
    "apart": "differs",
    "open": "no sure difference",
    "unknown": "unknown, one row",
}
IN_SHORT = ("prefill", "decode", "parameters", "file")
"""Metrics of a checkpoint's summary besides quality."""


def in_short(found: Sequence[ComparedMetric]) -> list[ComparedMetric]:
    """Return the main metrics: quality, speed and size."""
    return [one for one in found if one.group == "quality" or one.name.partition("-")[0] in IN_SHORT]


def quality_table(facts: EvaluationFacts, found: Sequence[ComparedMetric]) -> pd.DataFrame:
    """Return a line for each metric and model."""
    lines = []
    for key, about in facts.measures.items():
        quantity = named_metric(found, key)
        lead = [quantity.label + about.beside_chance, "more" if about.higher_is_better else "less", f"{about.rows:,}"]
        for model, one in enumerate(facts.models):
            if (score := one.scores.get(key)) is None:
                continue
            said = quantity.standing(model)
            lines.append(
                [
                    *lead,
                    one.name,
                    in_words(about, score.figure),
                    quantity.change_in_words(model),
                    STANDINGS[said] if said else "",
                ]
            )
            lead = ["", "", ""]
    return pd.DataFrame(
        lines, columns=["measure", "better", "rows", "model", "figure", "difference to the original", "that is"]
    )


def speed_table(facts: EvaluationFacts, place: int) -> pd.DataFrame:
    """Return a line for each model, at one batch size."""
    rows = facts.original.pace[place].rows
    lines = [
        [
            one.name,
            _timed(mine.prefill, 0, one is facts.original),
            _timed(mine.decode, 1, one is facts.original),
            _timed(mine.first_token, 3, one is facts.original),
            f"{mine.cache_bytes / 1e6:,.2f}",
        ]
        for one in facts.models
        for mine in one.pace
        if mine.rows == rows
    ]
    return pd.DataFrame(
        lines, columns=["model", "prefill, tokens/s", "decoding, tokens/s", "first token, s", "KV cache, MB"]
    )


def _timed(timed: Timed, digits: int, original: bool) -> str:
    return f"{timed.value:,.{digits}f}" if original else timed.words(digits).replace("  ", " · ")


def _plain(quantity: ComparedMetric) -> list[str]:
    return ["" if figure is None else f"{figure.value:,.{quantity.digits}f}" for figure in quantity.figures]


def size_table(facts: EvaluationFacts, found: Sequence[ComparedMetric]) -> pd.DataFrame:
    """Return a line for each model: parameters, file size, peak memory and load time."""
    columns = {"model": [one.name for one in facts.models]}
    for quantity in found:
        if quantity.name in ("parameters", "file", "peak_memory"):
            counted = quantity.name == "parameters"
            columns[quantity.title if counted else quantity.label] = [
                " · ".join(
                    filter(None, (f"{one.parameters:,}" if counted else figure, quantity.change_in_words(model)))
                )
                for model, (one, figure) in enumerate(zip(facts.models, _plain(quantity), strict=True))
            ]
    if facts.original.footprint is not None:
        columns["loading, s"] = [
            "" if one.footprint is None else _timed(one.footprint.load, 2, one is facts.original)
            for one in facts.models
        ]
    return pd.DataFrame(columns)
