"""Prune: drag a threshold, see what it would give and cost, then remove the weights."""

import math

import numpy as np
import streamlit as st

from pages.frame import (
    PLOT,
    chosen_calibration,
    newest_job,
    next_step,
    page_title,
    plain_errors,
    result_of,
    show_job,
    weight_sliders,
)
from slim import charts, jobs, plan, workspace
from slim.calibration import Calibration
from slim.errors import InputError
from slim.records import Plan, Unit


@st.cache_data(max_entries=16, show_spinner=False)
def curve(
    path: str, unit: Unit, weights: tuple[tuple[str, float], ...], _calibration: Calibration
) -> list[tuple[float, float]]:
    """Share of the parameters that stays and forecast loss, for thresholds from 1 down."""
    points = []
    for threshold in np.linspace(1.001, 0.3, 36):
        try:
            made = plan.make_plan(_calibration, float(threshold), unit, dict(weights))
        except InputError:
            break
        if made.forecast is not None:
            points.append((made.after.parameters / made.before.parameters, made.forecast.nats_per_token))
    return points


def show_projection(made: Plan) -> None:
    """What the plan would weigh and cost, beside the original."""
    before, after = made.before, made.after
    one, two, three, four = st.columns(4)
    one.metric(
        "Parameters",
        f"{after.parameters / 1e6:,.1f} M",
        f"{after.parameters / before.parameters - 1:.1%}",
        delta_color="inverse",
        border=True,
    )
    two.metric(
        "Weights on disk",
        f"{after.bytes / 1e6:,.1f} MB",
        f"{after.bytes / before.bytes - 1:.1%}",
        delta_color="inverse",
        border=True,
    )
    three.metric(
        "KV cache per token",
        f"{after.kv_bytes_per_token / 1024:,.1f} KiB",
        f"{after.kv_bytes_per_token / before.kv_bytes_per_token - 1:.1%}",
        delta_color="inverse",
        border=True,
    )
    if made.forecast is None:
        four.metric("Forecast loss", "not measured", border=True, help="Calibrate with KL to get a forecast.")
        return
    f = made.forecast
    four.metric(
        "Forecast loss",
        f"{f.nats_per_token:.3f} nats",
        f"perplexity × {math.exp(f.nats_per_token):.2f}",
        delta_color="off",
        delta_arrow="off",
        border=True,
        help=f"KL to the original: {f}, 95% interval, on {f.sequences} rows that did "
        "not choose the plan. The perplexity is that of text the original would write.",
    )


page_title("Prune")
path, calibration = chosen_calibration("prune-calibration")

left, right = st.columns([1, 2], vertical_alignment="bottom")
by_block = left.segmented_control(
    "Remove", ["Heads", "Attention blocks"], default="Heads", required=True, key="prune-unit", persist_state="session"
)
unit: Unit = "block" if by_block == "Attention blocks" else "head"
threshold = right.slider(
    "Threshold: what scores this much or more goes", 0.0, 1.0, 0.8, 0.01, key="prune-threshold", persist_state="session"
)
with st.expander("Weights of the score"):
    st.caption("Each metric is ranked over the whole model; the score is their weighted mean.")
    chosen = weight_sliders(calibration, unit, across=True)
    weights = {name: weight for name, weight in chosen.items() if weight > 0} or chosen

with plain_errors():
    scores = plan.composite(calibration, weights, unit)
    made = plan.make_plan(calibration, threshold, unit, weights)
show_projection(made)

removed = plan.removed_mask(made.keep, made.model.heads)
kept = sum(change.change == "kept" for change in made.changes)
words = [
    f"{made.removed_heads} of {removed.size} heads go",
    f"{len(made.removed_blocks)} of {made.model.layers} blocks with all of theirs",
]
if made.changes:
    more = len(made.changes) - kept
    words.append(f"to keep every layer's shape legal, {kept} more stay and {more} more go than the threshold asks")
st.caption("; ".join(words) + ".")
map_column, curve_column = st.columns([3, 2])
if unit == "head":
    figure = charts.heatmap(scores, "Composite score, crossed out: removed", "1 = first to go", removed=removed)
else:
    figure = charts.block_bars(
        calibration.level("block").get("kl_output", scores),
        "Loss without the block, orange: removed",
        "nats/token",
        made.removed_blocks,
    )
map_column.plotly_chart(figure, key="prune-map", config=PLOT)
points = curve(str(path), unit, tuple(sorted(weights.items())), calibration)
if points and made.forecast:
    here = (made.after.parameters / made.before.parameters, made.forecast.nats_per_token)
    curve_column.plotly_chart(charts.size_against_loss(points, here), key="prune-curve", config=PLOT)

with plain_errors():
    job = newest_job("prune")
busy = job is not None and job.unfinished
if st.button("Prune", type="primary", icon=":material/content_cut:", disabled=busy or made.removed_heads == 0):
    with plain_errors():
        file = plan.save(made, workspace.fresh_path("plan", f"{unit}-{threshold:g}"))
        jobs.start("prune", plan=str(file))
    st.rerun()
show_job(job)
if (folder := result_of(job)) is not None:
    st.success(f"Saved: {folder}", icon=":material/check_circle:")
    next_step("Compare its answers with the original's", "pages/compare.py", ":material/compare:")
