"""One head in detail: the choice of it, its figures, the loss increase of its removal, and its attention on a row."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from numpy.typing import NDArray

from pages.views.frame import PLOT, sentence
from pages.views.preview import ONE_AT_A_TIME, open_model, show_preview
from slim.calibration import charts
from slim.calibration.criteria import CRITERIA
from slim.calibration.head_scores import HeadScore, costs
from slim.calibration.record import Calibration
from slim.calibration.reload import calibrated_rows, check_model
from slim.core.chart_style import Head
from slim.core.errors import SlimError
from slim.core.records import ModelFacts
from slim.data.tasks import Encoded
from slim.models.units import Keep, LayerKeep, whole_model

if TYPE_CHECKING:
    from slim.models.load import Loaded

HEAD, LINK = "explore-head", "head"
NAMES: dict[str, str] = {"composite": "Composite score", "random": "Chance", "sketch": "Loss sketch"} | {
    name: criterion.title for name, criterion in CRITERIA.items()
}
NO_UNIT = ("0..1", "0..2", "1 = first to go")
"""Ranges that are omitted where space is short."""
TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:.875rem;line-height:1.6;max-height:18rem;overflow-y:auto"


def title_of(criterion: str) -> str:
    """The name of a criterion for display."""
    return NAMES.get(criterion, criterion)


@dataclass(frozen=True)
class Shown:
    """The data that all views of the page share."""

    path: Path
    calibration: Calibration
    weights: Mapping[str, float]
    measures: Mapping[str, HeadScore]
    head: Head


def clickable(figure: go.Figure, key: str, place: Any = st) -> None:
    """Show a figure in which a click on a head chooses it."""
    place.plotly_chart(
        figure,
        key=key,
        on_select=partial(_clicked, key),
        selection_mode="points",
        config=PLOT,
        alt=f"{figure.layout.title.text}. Click a head to see it in detail.",  # type: ignore[attr-defined]
    )


def _clicked(key: str) -> None:
    for point in st.session_state[key]["selection"]["points"]:
        if data := point.get("customdata"):
            layer, head = data.values() if isinstance(data, Mapping) else data
            choose(int(layer), int(head))


def head_table(table: pd.DataFrame, key: str, **options: Any) -> None:
    """Show a table with columns `layer` and `head` in which ticking a row chooses its head."""
    st.dataframe(
        table, hide_index=True, key=key, on_select=partial(_ticked, key, table), selection_mode="single-row", **options
    )


def _ticked(key: str, table: pd.DataFrame) -> None:
    for place in st.session_state[key]["selection"]["rows"]:
        choose(int(table["layer"].iloc[place]), int(table["head"].iloc[place]))


def choose(layer: int, head: int) -> None:
    """Open a head's detail."""
    st.session_state[HEAD] = (layer, head)


def chosen_head(calibration: Calibration) -> Head:
    """The head that was clicked or that the link names; initially the one of the largest loss. Updates the link."""
    facts = calibration.facts.model
    named = [st.session_state.get(HEAD), _linked()]
    there = [head for head in named if head and 0 <= head[0] < facts.layers and 0 <= head[1] < facts.heads]
    chosen = there[0] if there else _costliest(calibration)
    st.query_params[LINK] = f"{chosen[0]}.{chosen[1]}"
    return chosen


def _linked() -> Head | None:
    layer, _, head = st.query_params.get(LINK, "").partition(".")
    return (int(layer), int(head)) if layer.isdecimal() and head.isdecimal() else None


def _costliest(calibration: Calibration) -> Head:
    heads = calibration.level("head")
    values = heads.get("kl_output", next(iter(heads.values())))
    layer, head = np.unravel_index(int(values.argmax()), values.shape)
    return int(layer), int(head)


def show_head(shown: Shown) -> None:
    """Show the panel of the chosen head."""
    facts = shown.calibration.facts.model
    layer, head = shown.head
    st.subheader(f"Layer {layer}, head {head}", anchor=False)
    st.session_state["explore-layer"], st.session_state["explore-place"] = shown.head
    one, two = st.columns(2)
    one.number_input("Layer", 0, facts.layers - 1, key="explore-layer", on_change=_stepped)
    two.number_input("Head", 0, facts.heads - 1, key="explore-place", on_change=_stepped)
    _show_costs(shown)
    if st.toggle("Its attention on a row of the task", key="attention", bind="query-params"):
        _show_attention(shown.calibration, layer, head)
    if st.toggle("Answers without it", key="without", bind="query-params"):
        show_preview(facts.source, _all_but(layer, head, facts), "explore-preview", f"Without {layer}.{head}")
    st.markdown(_figures_table(shown.measures, layer, head))
    st.caption("In brackets the 95% interval over resampled rows. Place 1 is pruned first.")


def _all_but(layer: int, head: int, facts: ModelFacts) -> Keep:
    """The plan that removes one head alone, even where the layer's shape is then not valid."""
    keep = list(whole_model(facts))
    keep[layer] = LayerKeep(heads=tuple(other for other in keep[layer].heads if other != head))
    return tuple(keep)


def _stepped() -> None:
    choose(st.session_state["explore-layer"], st.session_state["explore-place"])


def _show_costs(shown: Shown) -> None:
    """Show the loss increase of removing the head, its group and its block."""
    found = costs(shown.calibration, *shown.head)
    if not found:
        st.caption("No forecast of its loss increase: this calibration was made without KL.")
        return
    rows = ["| Removing | loss increase, nats/token | |", "|:--|:--|:--|"]
    for cost in found:
        interval = "" if cost.measured and cost.low is None else _interval(cost.low, cost.high)
        how = "measured" if cost.measured else "forecast"
        rows.append(f"| {cost.what} | **{cost.value:.3g}** {interval} | {how} |")
    st.markdown("\n".join(rows))
    if shown.calibration.check is None:
        st.caption("The forecast is that of the held-out fold. It was not checked yet: see Criterion check.")
    else:
        st.caption(f"The check corrects the forecast of this head by × {found[0].factor:.2f}.")


def _figures_table(measures: Mapping[str, HeadScore], layer: int, head: int) -> str:
    count = measures["composite"].values.size
    rows = [f"| Figure | | place of {count} |", "|:--|:--|--:|"]
    for measure in measures.values():
        place = measure.place(layer, head)
        if place is None or measure.name == "damage":  # damage is measured on some heads only
            continue
        estimate = measure.estimate
        value, low, high = (float(part[layer, head]) for part in (estimate.value, estimate.low, estimate.high))
        interval = "" if measure.name == "composite" else _interval(low, high)
        unit = "" if measure.unit in NO_UNIT else measure.unit
        rows.append(f"| {measure.title} | **{value:.3g}** {interval} {unit} | {place[0]} |")
    return "\n".join(rows)


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or not np.isfinite((low, high)).all():
        return "(no interval)"
    return rf"\[{low:.3g}, {high:.3g}\]"


@st.cache_resource(max_entries=4, show_spinner="Reading the rows")
def _rows(path: str, started: str, _calibration: Calibration, _loaded: "Loaded") -> Encoded:
    check_model(_calibration, _loaded)
    return calibrated_rows(_calibration, _loaded)


@st.cache_data(max_entries=16, show_spinner="Running the model on the row")
def _attention(
    path: str, started: str, row: int, layer: int, head: int, _loaded: "Loaded", _encoded: Encoded
) -> NDArray[np.float32]:
    from slim.calibration import head_detail

    with ONE_AT_A_TIME:
        return head_detail.attention(_loaded, _encoded.rows[row], layer, head)


def _show_attention(calibration: Calibration, layer: int, head: int) -> None:
    """Show the head's attention on a row of the calibration: a map, and the text shaded."""
    from slim.calibration import head_detail

    facts, key = calibration.facts, (str(calibration.path), calibration.facts.started)
    try:
        loaded = open_model(facts.model.source, facts.settings.device, facts.settings.dtype)
        encoded = _rows(*key, calibration, loaded)
        row = 0
        if len(encoded.rows) > 1:
            row = int(st.number_input("Row", 1, len(encoded.rows), key="row", bind="query-params")) - 1
        weights = _attention(*key, row, layer, head, loaded, encoded)
    except SlimError as error:
        st.warning(sentence(str(error)), icon=":material/warning:")
        return
    words = head_detail.pieces(loaded, encoded.rows[row][: len(weights)])
    query = _choose_query(row, words)
    cells, side = head_detail.coarse(weights)
    st.plotly_chart(
        charts.attention_map(cells, side, words, query),
        key="explore-attention",
        config=PLOT,
        alt=f"Attention of layer {layer}, head {head} on row {row + 1}",
    )
    received = head_detail.received(weights, query)
    st.html(_shaded(words, received, query))
    st.caption(_in_words(words, received, query, side, len(encoded.rows[row])))


def _choose_query(row: int, words: list[str]) -> int | None:
    """Ask for the token whose attention shades the text; None is the average over all."""
    shade = st.segmented_control(
        "Shade the text by what it receives from",
        ["All tokens", "One token"],
        default="All tokens",
        required=True,
        key="explore-shade",
    )
    if shade == "All tokens":
        return None
    last = len(words) - 1
    return int(st.slider("Token that looks", 0, last, last, key=f"explore-query-{row}"))


def _shaded(words: list[str], received: NDArray[np.float64], query: int | None) -> str:
    """The row with each token shaded by the attention it receives; the strongest after the first is darkest."""
    most = float(received[1:].max()) if len(received) > 1 else 1.0
    parts = []
    for place, (word, weight) in enumerate(zip(words, received, strict=True)):
        strength = min(1.0, weight / most) ** 0.5 if most > 0 else 0.0
        style = f"background:rgba(13,148,136,{0.7 * strength:.3f});border-radius:3px"
        if place == query:
            style += ";outline:2px solid #e4572e"
        elif query is not None and place > query:
            style = "opacity:.35"
        parts.append(f"<span style='{style}' title='{place}: {weight:.2%}'>{html.escape(word)}</span>")
    return f"<div style='{TEXT}'>{''.join(parts)}</div>"


def _in_words(words: list[str], received: NDArray[np.float64], query: int | None, side: int, length: int) -> str:
    who = f"Token {query}" if query is not None else "On average a token"
    text = [f"{who} gives the first token {received[0]:.0%} of its attention"]
    if side > 1:
        text.append(f"a cell of the map is {side} × {side} tokens")
    if length > len(words):
        text.append(f"the first {len(words):,} of {length:,} tokens are shown")
    return "; ".join(text) + "."
