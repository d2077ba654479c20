"""Explore: a calibration's figures of every head, as maps and distributions and against the measured damage."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from pages.views.criteria import show_check
from pages.views.frame import PLOT, chosen_calibration, facts_line, page_title, sentence, weight_sliders
from pages.views.head_detail import Shown, chosen_head, clickable, head_table, show_head
from pages.views.task_vs_general import show_difference
from slim.calibration import charts, scores
from slim.calibration.check_record import rank_correlation
from slim.calibration.criteria import CRITERIA
from slim.calibration.head_scores import HeadScore, head_scores
from slim.calibration.record import Calibration
from slim.core.errors import SlimError
from slim.core.markdown import escaped


@st.cache_resource(max_entries=32, show_spinner=False)
def _measures(
    path: str, started: str, checked: float, weights: tuple[tuple[str, float], ...], _calibration: Calibration
) -> dict[str, HeadScore]:
    return head_scores(_calibration, dict(weights))


_heatmap = st.cache_resource(max_entries=128, show_spinner=False)(charts.heatmap)
"""The maps, kept from run to run: most stay the same when a weight or a setting changes."""
_block_bars = st.cache_resource(max_entries=32, show_spinner=False)(charts.block_bars)


def choose_weights(calibration: Calibration) -> dict[str, float]:
    """The composite's weights, the same as on the Prune page."""
    st.caption("Each criterion is ranked over the whole model; the composite score is their weighted mean.")
    chosen = weight_sliders(calibration, "head")
    if chosen.get("entropy") and chosen.get("kl_uniform"):
        st.caption("KL to uniform is mean ln(visible keys) minus entropy: weighting both counts one thing twice.")
    used = {name: weight for name, weight in chosen.items() if weight > 0}
    if not used:
        st.caption("Every weight is 0, so the first ones are used.")
    return used or dict(scores.default_weights(calibration))


def show_maps(shown: Shown) -> None:
    """Show a map of every figure, and the blocks."""
    st.caption("Click a head in any figure to see it in detail. The ring marks it.")
    measures = [measure for measure in shown.measures.values() if measure.name != "damage"]
    for start in range(0, len(measures), 2):
        columns = st.container(key=f"wide-maps-{start}").columns(2)
        for column, measure in zip(columns, measures[start : start + 2], strict=False):
            figure = _heatmap(
                measure.values, measure.title, measure.unit, log=measure.log, clickable=True, chosen=shown.head
            )
            clickable(figure, f"map-{measure.name}", column)
    st.subheader("Attention blocks", anchor=False)
    there = shown.calibration.estimates
    blocks = {name: there[name]["block"] for name in ("kl_output", "block_influence", "variance") if name in there}
    columns = st.container(key="wide-blocks").columns(2)
    for column, (name, estimate) in zip(columns, blocks.items(), strict=False):
        title = "Loss without the block, measured" if name == "kl_output" else CRITERIA[name].title
        figure = _block_bars(estimate.value, title, CRITERIA[name].unit, sure=estimate)
        column.plotly_chart(figure, key=f"blocks-{name}", config=PLOT)


def choose_measure(shown: Shown, label: str, key: str, first: str) -> HeadScore:
    names = list(shown.measures)
    name = st.selectbox(
        label,
        names,
        index=names.index(first) if first in names else 0,
        format_func=lambda name: shown.measures[name].title,
        key=key,
        bind="query-params",
    )
    return shown.measures[name]


def show_distributions(shown: Shown) -> None:
    """Show one figure of every head, layer by layer, and its histogram."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        measure = choose_measure(shown, "Figure", "figure", "kl_output")
        known = bool(np.isfinite(measure.estimate.low).any())
        intervals = st.toggle("Intervals", key="intervals", bind="query-params", disabled=not known)
    figure = charts.distribution(measure, intervals=intervals and known, chosen=shown.head)
    clickable(figure, "distribution")
    values = measure.values[np.isfinite(measure.values)]
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    words = f"Median {middle:.3g}; nine in ten heads lie between {low:.3g} and {high:.3g} {measure.unit}."
    if not known:
        words += " This figure has no interval."
    elif measure.log:
        total = np.sort(values)[::-1]
        share = total[: max(1, round(0.1 * len(total)))].sum() / total.sum() if total.sum() else 0
        words += f" The largest tenth of the heads holds {share:.0%} of the sum."
    st.caption(f"{words} The line is each layer's median.")


def show_scatter(shown: Shown) -> None:
    """Show any figure against any other."""
    left, right = st.columns(2)
    with left:
        x = choose_measure(shown, "Horizontal axis", "x", "entropy")
    with right:
        y = choose_measure(shown, "Vertical axis", "y", "sketch" if "sketch" in shown.measures else "variance")
    both = np.isfinite(x.values) & np.isfinite(y.values)
    if both.sum() < 3:
        st.info("Fewer than three heads have both figures.", icon=":material/info:")
        return
    clickable(charts.scatter(x, y, chosen=shown.head), "scatter")
    value, low, high = rank_correlation(-x.values[both], y.values[both])
    words = f"Spearman's rank correlation {value:+.2f}" if np.isfinite(value) else "One of them does not vary"
    if np.isfinite(low):
        words += f" [{low:+.2f}, {high:+.2f}], 95% interval over resampled heads"
    st.caption(f"{words}; {int(both.sum())} heads.")


def show_table(shown: Shown) -> None:
    """Show a table of every head and every figure."""
    facts = shown.calibration.facts.model
    columns = {
        "layer": np.repeat(np.arange(facts.layers), facts.heads),
        "head": np.tile(np.arange(facts.heads), facts.layers),
    }
    for name, measure in shown.measures.items():
        columns[name] = measure.values.ravel()
        if np.isfinite(measure.estimate.low).any():
            columns |= {f"{name} low": measure.estimate.low.ravel(), f"{name} high": measure.estimate.high.ravel()}
    table = pd.DataFrame(columns).sort_values("composite", ascending=False, kind="stable")
    titles = {
        name: st.column_config.NumberColumn(f"{measure.title}, {measure.unit}", format="%.4g")
        for name, measure in shown.measures.items()
    }
    order = ["layer", "head", *shown.measures]
    head_table(table, "heads-table", height=520, column_order=order, column_config=titles)
    st.download_button(
        "Download as CSV",
        table.to_csv(index=False),
        "heads.csv",
        "text/csv",
        icon=":material/download:",
        on_click="ignore",
    )
    st.caption(
        "The heads that are pruned first are on top. Tick a row to see a head in detail. The file has intervals too."
    )


VIEWS: dict[str, Callable[[Shown], None]] = {
    "Maps": show_maps,
    "Distributions": show_distributions,
    "Scatter": show_scatter,
    "Criterion check": show_check,
    "Task vs general": show_difference,
    "Table": show_table,
}
EARLIER = {"faithfulness": "Criterion check"}
"""Views by their names in links of Slim 0.1, in lower case, each with its name of today."""

page_title("Explore")
st.html(Path(__file__).parent / "assets" / "explore.css")
with st.container(horizontal=True, vertical_alignment="bottom"):
    path, calibration = chosen_calibration("explore-calibration")
    with st.popover("Weights of the score", icon=":material/tune:"):
        weights = choose_weights(calibration)
st.query_params["calibration"] = path.name
st.caption(facts_line(calibration))

linked = EARLIER.get(st.query_params.get("view", "").lower(), "Maps")
view = st.segmented_control(
    "View", list(VIEWS), default=linked, required=True, key="view", bind="query-params", label_visibility="collapsed"
)
checked = calibration.check.seconds if calibration.check else -1.0
measures = _measures(str(path), calibration.facts.started, checked, tuple(sorted(weights.items())), calibration)
shown = Shown(path, calibration, weights, measures, chosen_head(calibration))
left, right = st.columns([5, 3], gap="medium")
with left:
    try:
        VIEWS[view or "Maps"](shown)
    except SlimError as error:
        st.error(sentence(str(error)), icon=":material/error:")
    with st.expander("Meaning of the figures"):
        for name, measured in calibration.facts.metrics.items():
            title = f"**{CRITERIA[name].title}** (`{name}`, {escaped(measured.unit)})"
            method = f"{escaped(measured.method)}. {measured.rows} rows, {measured.positions:,} positions."
            st.markdown(f"{title}: {method}")
with right.container(border=True, key="head-detail"):
    show_head(shown)
