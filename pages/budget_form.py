"""Planning by budget: limits of size, speed and loss, and the cheapest plan within them."""

import streamlit as st

from pages.board import UNITS
from slim import budget
from slim.calibration import Calibration
from slim.records import Plan

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


def budget_plan(calibration: Calibration) -> Plan | None:
    """The form, and the plan that it asked for last; None before the first. Raises InputError as the planner does."""
    with st.form("budget", border=True):
        top = st.columns([2, 1], vertical_alignment="bottom")
        unit = UNITS[
            top[0].segmented_control("Remove", list(UNITS), default="Heads", required=True, key="budget-unit")
            or "Heads"
        ]
        uniform = top[1].checkbox(
            "One shape in all layers",
            key="budget-uniform",
            help="The checkpoint is then stock: every runtime loads it.",
        )
        limits = {}
        for name, column in zip(FIELDS, [*st.columns(4), *st.columns(4)], strict=False):
            title, of = FIELDS[name]
            value = column.number_input(
                title, 0.0, None, None, 0.05, placeholder="no limit", help=of, key=f"budget-{name}"
            )
            if value is not None:
                limits[name] = float(value)
        asked = st.form_submit_button("Find the cheapest plan", type="primary", icon=":material/search:")
    if asked:
        with st.spinner("Planning"):
            st.session_state.pop("budget-plan", None)
            made = budget.plan_for_budget(calibration, limits, unit, uniform=uniform)
            st.session_state["budget-plan"] = made.model_dump_json()
    kept = st.session_state.get("budget-plan")
    made = Plan.model_validate_json(kept) if kept else None
    return made if made and made.model.fingerprint == calibration.facts.model.fingerprint else None
