"""A finished evaluation on a page: in words and tables, as charts, and as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from pages.views.evaluation_tables import show_summary, show_tables
from pages.views.frame import choose_run, duration, sentence
from pages.views.report_button import offer_report
from slim.core.errors import InputError
from slim.core.markdown import escaped
from slim.data.omissions import reading
from slim.evaluation.charts import change_bars, radar, trade_off
from slim.evaluation.comparison import ComparedMetric, Group, compare_models, named_metric
from slim.evaluation.record import Evaluation, EvaluationFacts, figures_table, load_evaluation
from slim.evaluation.tables import in_short

GROUPS: dict[Group, str] = {"quality": "Quality", "speed": "Speed", "size": "Size"}


@st.cache_resource(max_entries=8, show_spinner="Reading the evaluation")
def _evaluation(path: str, written: int) -> Evaluation:
    return load_evaluation(Path(path))


def show_past(key: str) -> None:
    """Show the chosen evaluation of the workspace, the newest first; the page's link keeps the choice."""
    path = choose_run("evaluation", "Evaluation", key, "pages/evaluate.py")
    st.query_params["evaluation"] = path.name
    record = path / "record.json"
    try:
        done = _evaluation(str(path), record.stat().st_mtime_ns if record.exists() else 0)
    except InputError as error:
        st.error(sentence(str(error)), icon=":material/error:")
        return
    show_evaluation(done, path.name)
    offer_report(path)


def show_evaluation(done: Evaluation, name: str) -> None:
    """All of it. `name` is that of the downloads."""
    facts = done.facts
    found = compare_models(facts)
    st.caption(sentence(_about(facts)))
    if facts.dataset:
        st.caption(" ".join(f"{escaped(said)}." for said in reading(facts.dataset)))
    for note in facts.notes:
        st.warning(f"{sentence(note)}.", icon=":material/warning:")
    show_summary(facts, found)
    show_tables(facts, found)
    names = [one.name for one in facts.models]
    _show_changes(found, names, name)
    _show_trade_off(found, names, name)
    _show_downloads(facts, name)


def _about(facts: EvaluationFacts) -> str:
    words = [f"compared with {facts.original.name}, {duration(facts.seconds)} on {facts.device}"]
    if data := facts.dataset:
        words.append(f"{data.rows:,} rows, {data.tokens:,} tokens of {data.source}; held out: {facts.held_out}")
    words += [f"{name}: {task.rows:,} rows, {task.shots} solved examples" for name, task in facts.tasks.items()]
    for one in facts.models:
        if one.truncated_answers:
            words.append(f"{one.name}: {one.truncated_answers} answers stopped at {facts.max_new_tokens} tokens")
    return " ".join([". ".join(words) + ".", *facts.ends])


def _saved_as(name: str, chart: str) -> dict[str, Any]:
    """The settings of a chart whose one button, always in sight, is the camera that saves it as a picture."""
    return {
        "displayModeBar": True,
        "displaylogo": False,
        "modeBarButtons": [["toImage"]],
        "toImageButtonOptions": {"format": "png", "scale": 2, "filename": f"{name}-{chart}"},
    }


def _show_changes(found: Sequence[ComparedMetric], names: Sequence[str], name: str) -> None:
    if len(names) == 1:
        return
    st.subheader("Beside the original", anchor=False)
    there = [group for group in GROUPS if any(any(one.changes) for one in found if one.group == group)]
    with st.container(horizontal=True):
        way = st.segmented_control(
            "Drawn as",
            ["Bars", "Radar"],
            default="Bars",
            required=True,
            key="evaluate-drawn",
            label_visibility="collapsed",
        )
        group = st.segmented_control(
            "Of",
            there,
            default=there[0],
            required=True,
            format_func=GROUPS.__getitem__,
            key=f"evaluate-group-{'-'.join(there)}",
            label_visibility="collapsed",
            disabled=way == "Radar",
        )
    if way == "Radar":
        figure = radar(in_short(found), names)
        if figure is None:
            st.info("A radar needs three figures that all models have; the bars need fewer.")
            return
        st.plotly_chart(figure, key="evaluate-radar", config=_saved_as(name, "radar"))
        st.caption("A radar shows no intervals, so a difference in it may be chance. The bars show them.")
        return
    figure = change_bars([one for one in found if one.group == group], names)
    st.plotly_chart(figure, key="evaluate-bars", config=_saved_as(name, f"{group}-bars"))
    st.caption("The line at 0 is the original. Whiskers: the intervals of the tables.")


def _show_trade_off(found: Sequence[ComparedMetric], names: Sequence[str], name: str) -> None:
    st.subheader("Size and speed against quality", anchor=False)
    small = sorted((one for one in found if one.group != "quality"), key=lambda one: one.name != "parameters")
    good = [one for one in found if one.group == "quality"] or [one for one in small if one.group == "speed"]
    if not good:
        st.info("Neither quality nor speed was measured.", icon=":material/info:")
        return
    left, right = st.columns(2)
    with left:
        x = _axis("Horizontal axis", "size", small)
    with right:
        y = _axis("Vertical axis", "quality", good)
    st.plotly_chart(trade_off(x, y, names), key="evaluate-scatter", config=_saved_as(name, f"{x.name}-{y.name}"))
    words = "Filled and joined: the efficient ones, which no other beats in one without being behind in the other."
    if len(small) == 1:
        words += " Bytes, memory and speed are there to choose after an evaluation with speed."
    st.caption(words)


def _axis(label: str, key: str, options: Sequence[ComparedMetric]) -> ComparedMetric:
    titles = {one.name: one.label for one in options}
    return named_metric(
        options, st.selectbox(label, list(titles), format_func=titles.__getitem__, key=key, bind="query-params")
    )


def _show_downloads(facts: EvaluationFacts, name: str) -> None:
    st.subheader("Take it along", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Figures as CSV",
            figures_table(facts).to_csv(index=False),
            f"{name}.csv",
            "text/csv",
            icon=":material/table:",
            on_click="ignore",
        )
        st.download_button(
            "Record as JSON",
            facts.model_dump_json(indent=1),
            f"{name}.json",
            "application/json",
            icon=":material/data_object:",
            on_click="ignore",
        )
        st.caption("The camera at a chart's corner saves it as PNG.")
