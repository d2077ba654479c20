"""Planning by budget: limits of size, speed and loss, and the cheapest plan within them."""

from pathlib import Path

import streamlit as st

from pages.views.board import UNITS
from pages.views.frame import newest_job, show_job
from slim import jobs
from slim.calibration.record import Calibration
from slim.planning import budget
from slim.planning.after_repair import FILE, AfterRepairSketch, load_after_repair
from slim.planning.record import Plan

FIELDS = {
    "heads": ("Heads at most", "of the original's"),
    "params": ("Parameters at most", "of the original's"),
    "bytes": ("Bytes on disk at most", "of the original's"),
    "kv": ("KV cache at most", "of the original's"),
    "flops": ("Work per token at most", "of the original's"),
    "prefill": ("Prefill faster at least", "times, where work sets the pace"),
    "decode": ("Decoding faster at least", "times, where reading weights and cache sets the pace"),
    "loss": ("Forecast loss at most", "nats/token"),
}


def budget_plan(path: Path, calibration: Calibration) -> Plan | None:
    """The form, and the plan that it asked for last; None before the first. Raises InputError as the planner does."""
    measured = (path / FILE).is_file()
    with st.form("budget", border=True):
        unit = UNITS[
            st.segmented_control("Remove", list(UNITS), default="Heads", required=True, key="budget-unit") or "Heads"
        ]
        limits = {}
        for name, column in zip(FIELDS, [*st.columns(4), *st.columns(4)], strict=False):
            title, of = FIELDS[name]
            value = column.number_input(
                title, 0.0, None, None, 0.05, placeholder="no limit", help=of, key=f"budget-{name}"
            )
            if value is not None:
                limits[name] = float(value)
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            asked = st.form_submit_button("Find the cheapest plan", type="primary", icon=":material/search:")
            uniform = st.checkbox(
                "One shape in all layers",
                key="budget-uniform",
                help="The checkpoint is then stock: every runtime loads it.",
            )
            after = st.checkbox(
                "Plan for what is left after repair",
                measured,
                key=f"budget-repaired-{measured}",
                disabled=not measured,
                help="Heads whose output the others can make up for cost nothing once they are repaired. For heads, KV "
                "groups and attention blocks.",
            )
    if not measured:
        offer_absorbed(path, calibration)
    if asked:
        with st.spinner("Planning"):
            st.session_state.pop("budget-plan", None)
            left = read_absorbed(path) if measured and after and unit != "layer" else None
            made = budget.plan_by_budget(calibration, limits, unit, uniform=uniform, absorbed=left)
            st.session_state["budget-plan"] = made.model_dump_json()
    kept = st.session_state.get("budget-plan")
    made = Plan.model_validate_json(kept) if kept else None
    return made if made and made.model.fingerprint == calibration.facts.model.fingerprint else None


def offer_absorbed(path: Path, calibration: Calibration) -> None:
    """The button that measures what repair can make up for, and how that goes."""
    job = newest_job("absorb")
    if job is not None and job.arguments.get("calibration") == str(path):
        show_job(job)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Measure what repair makes up for",
            icon=":material/healing:",
            disabled=calibration.sketch is None or (job is not None and job.unfinished),
        ):
            jobs.start("absorb", calibration=str(path))
            st.rerun()
        st.caption(
            "Once for this calibration, on its own rows, about as long as it took itself. Plans can then be made for "
            "what is left after repair."
            if calibration.sketch is not None
            else "This calibration was made without KL, so what repair makes up for cannot be measured on it."
        )


def read_absorbed(path: Path) -> AfterRepairSketch:
    """Kept in memory while few others are. Raises InputError where it is damaged."""
    return _absorbed(str(path), (path / FILE).stat().st_mtime_ns)


@st.cache_resource(max_entries=2, show_spinner=False)
def _absorbed(path: str, written: int) -> AfterRepairSketch:
    return load_after_repair(Path(path))
