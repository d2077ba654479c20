"""An evaluation's figures in words and tables: a card for each checkpoint, and a line for each model."""

import html
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from slim.core.chart_style import QUIET
from slim.evaluation.comparison import ComparedMetric, Standing
from slim.evaluation.record import EvaluationFacts
from slim.evaluation.tables import STANDINGS, in_short, quality_table, size_table, speed_table

TONES: dict[Standing, str] = {"better": "#0d9488", "worse": "#e4572e"}
"""Colors of differences whose interval excludes 0; the others are gray."""
STYLE = """<style>
.slim-table { overflow-x: auto; }
.slim-table table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
.slim-table th { text-align: left; font-weight: 600; opacity: .7; }
.slim-table th, .slim-table td { padding: .3rem .7rem .3rem 0; border: 0; vertical-align: top; }
.slim-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 1rem; }
.slim-cards > div { border: 1px solid rgba(148, 163, 184, .4); border-radius: .5rem; padding: .8rem 1rem; }
.slim-cards > div { min-width: 0; }
.slim-cards b { overflow-wrap: anywhere; }
.slim-cards small { opacity: .65; display: block; }
.slim-cards tbody tr:first-child td { border-top: 0; }
.slim-table tr + tr td, .slim-table tbody tr:first-child td { border-top: 1px solid rgba(148, 163, 184, .3); }
</style>"""


def show_summary(facts: EvaluationFacts, found: Sequence[ComparedMetric]) -> None:
    """A card for each checkpoint: its differences from the original, and whether their intervals exclude 0."""
    if len(facts.models) == 1:
        st.info("There is no checkpoint beside the original in this evaluation.", icon=":material/info:")
        return
    shown = in_short(found)
    cards = [
        f"<div><b>{html.escape(facts.models[model].name)}</b>"
        + _table([], [_card_line(one, model) for one in shown if one.changes[model] is not None])
        + "</div>"
        for model in range(1, len(facts.models))
    ]
    st.html(f"<div class='slim-cards'>{STYLE}{''.join(cards)}</div>")
    st.caption(
        "Differences of quality with 95% intervals over the same rows of both; of speed with the lowest and highest of "
        "runs side by side. “No sure difference”: the interval contains 0. KL is the distance to the original itself."
    )


def _card_line(metric: ComparedMetric, model: int) -> list[str]:
    standing = metric.standing(model) or "unknown"
    return [
        f"{html.escape(metric.title)}<small>{'more' if metric.higher_is_better else 'less'} is better</small>",
        html.escape(metric.change_in_words(model)),
        f"<span style='color:{TONES.get(standing, QUIET)}'>●</span>&nbsp;{STANDINGS[standing]}",
    ]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already: whoever makes them escapes names of users and files."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    top = f"<thead>{row(head, 'th')}</thead>" if head else ""
    body = "".join(row(line, "td") for line in lines)
    return f"<div class='slim-table'><table>{top}<tbody>{body}</tbody></table></div>"


def _show(frame: pd.DataFrame) -> None:
    """Show a table of plain text."""
    head = [html.escape(str(name)) for name in frame.columns]
    lines = [[html.escape(str(cell)) for cell in line] for line in frame.itertuples(index=False)]
    st.html(STYLE + _table(head, lines))


def show_tables(facts: EvaluationFacts, found: Sequence[ComparedMetric]) -> None:
    """A table each of quality, of speed for every batch size, and of size."""
    if facts.measures:
        st.subheader("Quality", anchor=False)
        _show(quality_table(facts, found))
    for place, speed in enumerate(facts.original.pace):
        st.subheader(f"Speed, {speed.rows} row{'s' if speed.rows > 1 else ''} at a time", anchor=False)
        _show(speed_table(facts, place))
    if facts.original.pace:
        st.caption(
            "The median, and how many times as fast as the original: median, lowest and highest of runs in turn."
        )
    st.subheader("Size", anchor=False)
    _show(size_table(facts, found))
