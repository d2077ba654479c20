"""A plan on a page: its sizes and forecast loss, its removals, its curve, and how another plan differs."""

import math
from pathlib import Path

import pandas as pd
import streamlit as st

from pages.views.frame import PLOT, plain_errors
from slim.calibration import charts
from slim.calibration.facts import Forecast
from slim.calibration.forecast import forecast
from slim.calibration.record import Calibration
from slim.calibration.scores import composite, default_weights
from slim.core.errors import InputError
from slim.core.run_index import runs
from slim.models.columns import removed_heads
from slim.models.units import UnitName
from slim.planning import budget
from slim.planning.files import load_plan, plan_difference
from slim.planning.quantities import SIZES
from slim.planning.record import Plan, Served
from slim.planning.sizes import CONTEXT, speedup

CURVE_POINTS = 50


def show_projection(made: Plan) -> None:
    """Show the plan's sizes and forecast loss beside the original's."""
    columns = [*st.columns(3), *st.columns(3)]
    for column, quantity in zip(columns, SIZES, strict=False):
        before, after = (getattr(size, quantity.field) for size in (made.before, made.after))
        change = after / before - 1 if before else 0.0
        column.metric(quantity.title, quantity.words(after), f"{change:.1%}", delta_color="inverse", border=True)
    faster = speedup(made.before, made.after)
    columns[4].metric(
        "Faster at most",
        f"{faster.prefill:.2f}× · {faster.decode:.2f}×",
        "prefill · decoding",
        delta_color="off",
        delta_arrow="off",
        border=True,
        help=f"Bounds: from arithmetic alone for {CONTEXT} prompt tokens, and from reading weights and cache alone "
        "for decoding one row. An evaluation with speed measures the true speed.",
    )
    if made.forecast is None:
        columns[5].metric("Forecast loss", "not measured", border=True, help="Calibrate with KL to get a forecast.")
        return
    f, r = made.forecast, made.repaired
    words = f"KL to the original: {f}, 95% interval, on {f.sequences} rows of the held-out fold. "
    value, factor = f"{f.nats_per_token:.3f}", _factor(f)
    if r:
        words += f"After repair: {r}, on {r.sequences} rows. "
        value, factor = f"{value} → {r.nats_per_token:.3f}", f"{factor} → {_factor(r)} after repair"
    columns[5].metric(
        "Forecast loss",
        f"{value} nats",
        f"perplexity × {factor}",
        delta_color="off",
        delta_arrow="off",
        border=True,
        help=f"{words}The perplexity is that of text the original would write.",
    )


def _factor(forecast: Forecast) -> str:
    return f"{math.exp(min(forecast.nats_per_token, 50)):,.2f}"


def show_words(made: Plan) -> None:
    """Show the removals in a line."""
    total = made.model.layers * made.model.heads
    words = [f"{made.removed_heads} of {total} heads go"]
    if made.removed_blocks:
        words.append(f"{len(made.removed_blocks)} of {made.model.layers} attention blocks with all of theirs")
    if made.removed_layers:
        numbers = ", ".join(map(str, made.removed_layers))
        words.append(f"{len(made.removed_layers)} of {made.model.layers} layers, MLP and all ({numbers})")
    if made.changes:
        kept = sum(change.change == "kept" for change in made.changes)
        more = len(made.changes) - kept
        words.append(f"valid shapes keep {kept} more heads and remove {more} more than asked for")
    if made.repaired:
        words.append(f"chosen by the forecast after repair, {made.repaired}")
    words += map(_served, made.targets)
    st.caption("; ".join(words) + ".")


def _served(served: Served) -> str:
    """A target's file in words."""
    sizes = f"{served.target}: {served.before / 1e6:,.1f} → {served.after / 1e6:,.1f} MB of tensors"
    return sizes + (f", {served.fallbacks} matrices in larger types" if served.fallbacks else "")


def show_map(made: Plan, calibration: Calibration) -> None:
    """Show the heads, the removed ones crossed out."""
    removed = removed_heads(made.keep, made.model.heads)
    with plain_errors():
        scores = composite(calibration, default_weights(calibration), "head")
    figure = charts.heatmap(scores, "Composite score, crossed out: removed", "1 = first to go", removed=removed)
    st.plotly_chart(figure, key="prune-map", config=PLOT)


@st.cache_data(max_entries=8, show_spinner="Planning 50 budgets")
def curve(
    path: str, started: str, unit: UnitName, uniform: bool, _calibration: Calibration
) -> list[tuple[float, float]]:
    """The shares of bytes that stay and the forecast losses of many budgets, from the whole model down."""
    points = []
    for share, keep in budget.curve(_calibration, unit, uniform=uniform, points=CURVE_POINTS):
        if (found := forecast(_calibration, keep)) is not None:
            points.append((share, found.nats_per_token))
    return points


def show_curve(path: Path, calibration: Calibration, made: Plan) -> None:
    """Show, on request, forecast loss against size for many budgets, with the plan marked."""
    if made.forecast is None:
        return
    key = f"curve-{path}-{made.unit}-{made.uniform}"
    if not st.session_state.get(key):
        if not st.button(f"Show the curve of {CURVE_POINTS} budgets", icon=":material/show_chart:"):
            return
        st.session_state[key] = True
    with plain_errors():
        points = curve(str(path), calibration.facts.started, made.unit, made.uniform, calibration)
    here = (made.after.bytes / made.before.bytes, made.forecast.nats_per_token)
    st.plotly_chart(charts.size_against_loss(points, here), key="prune-curve", config=PLOT)


def compare_plans(made: Plan) -> None:
    """Show the plan beside a saved one of the same model."""
    others = {}
    for file in runs("plan"):
        try:
            other = load_plan(file)
        except InputError:
            continue
        if other.model.fingerprint == made.model.fingerprint:
            others[file] = other
    if not others:
        st.caption("No plan of this model is saved yet.")
        return
    file = st.selectbox("Saved plan", list(others), format_func=lambda file: file.stem, key="compare-plan")
    if file is None:
        return
    found = plan_difference(made, others[file])
    table = {
        "": [
            "decided by",
            *(quantity.title for quantity in SIZES),
            "Forecast loss",
            "Forecast loss after repair",
            "heads that only it removes",
        ],
        "this plan": _column(found.one, found.only_one),
        file.stem: _column(found.other, found.only_other),
    }
    st.dataframe(pd.DataFrame(table), hide_index=True)
    st.caption(f"Both remove {found.shared} heads.")


def _column(made: Plan, alone: tuple[tuple[int, int], ...]) -> list[str]:
    sizes = [quantity.words(getattr(made.after, quantity.field)) for quantity in SIZES]
    heads = ", ".join(f"{layer}:{head}" for layer, head in alone[:20]) + (" …" if len(alone) > 20 else "")
    return [
        str(made.reason),
        *sizes,
        str(made.forecast or "unknown"),
        str(made.repaired or "unknown"),
        f"{len(alone)}{': ' if alone else ''}{heads}",
    ]
