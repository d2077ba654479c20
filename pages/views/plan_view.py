"""A plan on a page: what it gives and costs, what it removes, the curve it lies on, and how another one differs."""

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import streamlit as st

from pages.views.frame import PLOT, plain_errors
from slim.calibration import charts
from slim.calibration.facts import Forecast
from slim.calibration.forecast import forecast, removed_mask
from slim.calibration.record import Calibration
from slim.calibration.scores import composite, default_weights
from slim.core.errors import InputError
from slim.core.records import Unit
from slim.core.run_index import runs
from slim.planning import budget
from slim.planning.files import load_plan, plan_difference
from slim.planning.record import Plan, Size
from slim.planning.sizes import CONTEXT, speedup

CURVE_POINTS = 50
SIZES: tuple[tuple[str, Callable[[Size], str], Callable[[Size], int]], ...] = (
    ("Parameters", lambda size: _scaled(size.parameters, "M", "B"), lambda size: size.parameters),
    ("Weights on disk", lambda size: _scaled(size.bytes, "MB", "GB"), lambda size: size.bytes),
    (
        "KV cache per token",
        lambda size: f"{size.kv_bytes_per_token / 1024:,.1f} KiB",
        lambda size: size.kv_bytes_per_token,
    ),
    ("Work per token", lambda size: f"{size.flops_per_token / 1e9:,.3f} GFLOP", lambda size: size.flops_per_token),
)


def _scaled(value: int, millions: str, billions: str) -> str:
    return f"{value / 1e6:,.1f} {millions}" if value < 1e10 else f"{value / 1e9:,.1f} {billions}"


def show_projection(made: Plan) -> None:
    """What the plan would weigh and cost, beside the original."""
    columns = [*st.columns(3), *st.columns(3)]
    for column, (title, words, value) in zip(columns, SIZES, strict=False):
        change = value(made.after) / value(made.before) - 1 if value(made.before) else 0.0
        column.metric(title, words(made.after), f"{change:.1%}", delta_color="inverse", border=True)
    faster = speedup(made.before, made.after)
    columns[4].metric(
        "Faster at most",
        f"{faster.prefill:.2f}× · {faster.decode:.2f}×",
        "prefill · decoding",
        delta_color="off",
        delta_arrow="off",
        border=True,
        help=f"Where work alone sets the pace of {CONTEXT} prompt tokens, and where reading weights and cache alone "
        "sets that of decoding one row. Measure it with `python -m benchmarks.pace`.",
    )
    if made.forecast is None:
        columns[5].metric("Forecast loss", "not measured", border=True, help="Calibrate with KL to get a forecast.")
        return
    f, r = made.forecast, made.repaired
    words = f"KL to the original: {f}, 95% interval, on {f.sequences} rows that did not choose the plan. "
    value, factor = f"{f.nats_per_token:.3f}", _factor(f)
    if r:
        words += f"Once it is repaired: {r}, on {r.sequences} rows. "
        value, factor = f"{value} → {r.nats_per_token:.3f}", f"{factor} → {_factor(r)} once repaired"
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
    """In a line what goes."""
    total = made.model.layers * made.model.heads
    words = [f"{made.removed_heads} of {total} heads go"]
    if made.removed_blocks:
        words.append(f"{len(made.removed_blocks)} of {made.model.layers} attention blocks with all of theirs")
    if made.removed_layers:
        words.append(f"{len(made.removed_layers)} of {made.model.layers} layers, MLP and all")
    if made.changes:
        kept = sum(change.change == "kept" for change in made.changes)
        more = len(made.changes) - kept
        words.append(f"to keep every layer's shape legal, {kept} more stay and {more} more go than was asked for")
    if made.repaired:
        words.append(f"chosen for what is left after repair, forecast {made.repaired}")
    st.caption("; ".join(words) + ".")


def show_map(made: Plan, calibration: Calibration) -> None:
    """The heads, what goes crossed out."""
    removed = removed_mask(made.keep, made.model.heads)
    with plain_errors():
        scores = composite(calibration, default_weights(calibration), "head")
    figure = charts.heatmap(scores, "Composite score, crossed out: removed", "1 = first to go", removed=removed)
    st.plotly_chart(figure, key="prune-map", config=PLOT)


@st.cache_data(max_entries=8, show_spinner="Planning 50 budgets")
def curve(path: str, started: str, unit: Unit, uniform: bool, _calibration: Calibration) -> list[tuple[float, float]]:
    """Share of the bytes that stays and forecast loss, from the whole model down."""
    points = []
    for share, keep in budget.curve(_calibration, unit, uniform=uniform, points=CURVE_POINTS):
        if (found := forecast(_calibration, keep)) is not None:
            points.append((share, found.nats_per_token))
    return points


def show_curve(path: Path, calibration: Calibration, made: Plan) -> None:
    """Forecast loss against size for many budgets, with the plan on it, once it was asked for."""
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
    """The plan beside a saved one of the same model."""
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
            *(title for title, _, _ in SIZES),
            "Forecast loss",
            "Forecast loss once repaired",
            "heads that only it removes",
        ],
        "this plan": _column(found.one, found.only_one),
        file.stem: _column(found.other, found.only_other),
    }
    st.dataframe(pd.DataFrame(table), hide_index=True)
    st.caption(f"Both remove {found.shared} heads.")


def _column(made: Plan, alone: tuple[tuple[int, int], ...]) -> list[str]:
    sizes = [words(made.after) for _, words, _ in SIZES]
    heads = ", ".join(f"{layer}:{head}" for layer, head in alone[:20]) + (" …" if len(alone) > 20 else "")
    return [
        str(made.reason),
        *sizes,
        str(made.forecast or "unknown"),
        str(made.repaired or "unknown"),
        f"{len(alone)}{': ' if alone else ''}{heads}",
    ]
