"""Planning by budget: limits of size, speed and loss, and the cheapest plan within them."""

from pathlib import Path

import streamlit as st

from pages.views.fields import ask
from pages.views.frame import newest_job, show_job
from slim import jobs
from slim.calibration.record import Calibration
from slim.models.units import UNITS
from slim.planning import budget
from slim.planning.after_repair_record import FILE, AfterRepairSketch, load_after_repair
from slim.planning.quantities import LIMITS, limit_words
from slim.planning.record import Plan
from slim.planning.request import AfterRepairRequest, PlanRequest
from slim.targets.target import suggestions, target


def budget_plan(path: Path, calibration: Calibration) -> Plan | None:
    """Show the form, and return its last plan; None before the first. Raises InputError as the planner does."""
    measured = (path / FILE).is_file()
    with st.form("budget", border=True):
        first = next(iter(UNITS))
        unit = st.segmented_control(
            "Remove",
            list(UNITS),
            default=first,
            format_func=lambda name: UNITS[name].title,
            required=True,
            key="budget-unit",
        )
        limits = {}
        for name, column in zip(LIMITS, [*st.columns(4), *st.columns(4)], strict=True):
            title, of = limit_words(name)
            value = column.number_input(
                title, 0.0, None, None, 0.05, placeholder="no limit", help=of, key=f"budget-{name}"
            )
            if value is not None:
                limits[name] = float(value)
        where = PlanRequest.option("targets")
        targets = st.multiselect(
            where.title,
            suggestions(),
            accept_new_options=True,
            placeholder="anywhere",
            help=f"{where.help[:1].upper()}{where.help[1:]}. `bytes` are then those of the first format.",
            key="budget-targets",
        )
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            asked = st.form_submit_button("Find the cheapest plan", type="primary", icon=":material/search:")
            uniform = ask(PlanRequest, "uniform", "budget-uniform")
            after = ask(
                PlanRequest,
                "after_repair",
                f"budget-repaired-{measured}",
                value=measured,
                disabled=not measured,
                help="Heads whose output the others can express cost nothing after repair. For heads, KV groups and "
                "attention blocks.",
            )
    if not measured:
        offer_after_repair(path, calibration)
    if asked:
        with st.spinner("Planning"):
            st.session_state.pop("budget-plan", None)
            left = read_after_repair(path) if measured and after and not UNITS[unit].whole_layers else None
            aims = [target(one) for one in targets]
            made = budget.plan_by_budget(calibration, limits, unit, uniform=uniform, absorbed=left, targets=aims)
            st.session_state["budget-plan"] = made.model_dump_json()
    kept = st.session_state.get("budget-plan")
    made = Plan.model_validate_json(kept) if kept else None
    return made if made and made.model.fingerprint == calibration.facts.model.fingerprint else None


def offer_after_repair(path: Path, calibration: Calibration) -> None:
    """Show the button that measures the forecast after repair, and its progress."""
    job = newest_job("after-repair")
    if job is not None and job.arguments.get("calibration") == str(path):
        show_job(job)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Measure the forecast after repair",
            icon=":material/healing:",
            disabled=calibration.sketch is None or (job is not None and job.unfinished),
        ):
            jobs.start(AfterRepairRequest.asked(calibration=path))
            st.rerun()
        st.caption(
            "Once for this calibration, on its own rows, about as long as it took itself. Plans can then be made by it."
            if calibration.sketch is not None
            else "This calibration was made without KL, so the forecast after repair cannot be measured on it."
        )


def read_after_repair(path: Path) -> AfterRepairSketch:
    """The sketch, from a small cache in memory. Raises InputError where it is damaged."""
    return _after_repair(str(path), (path / FILE).stat().st_mtime_ns)


@st.cache_resource(max_entries=2, show_spinner=False)
def _after_repair(path: str, written: int) -> AfterRepairSketch:
    return load_after_repair(Path(path))
