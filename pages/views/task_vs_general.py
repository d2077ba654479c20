"""Task against general text: the map of the heads that this task needs more or less, and the second calibration."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from pages.views.frame import duration, newest_job, read_calibration, show_job
from pages.views.head_detail import Shown, clickable, head_table
from slim import jobs
from slim.calibration import charts, task_vs_general
from slim.calibration.facts import CalibrationFacts
from slim.calibration.record import Calibration
from slim.calibration.request import CalibrateRequest
from slim.calibration.task_vs_general import TaskDifference
from slim.core.run_index import runs
from slim.data import tasks

GENERAL = f"bundled:{tasks.GENERAL}"


def show_difference(shown: Shown) -> None:
    """Show the heads that general text needs more than this task. Raises SlimError where they cannot be compared."""
    if shown.calibration.sketch is None:
        st.info("This calibration was made without KL, so it has no loss increase of a head.", icon=":material/info:")
        return
    facts = shown.calibration.facts
    others = task_vs_general.of_same_model(facts.model, runs("calibration"), but=shown.path)
    others.sort(key=lambda pair: pair[1] != GENERAL)
    if others:
        compare(shown, dict(others))
    else:
        st.info("There is no second calibration of this model to compare with.", icon=":material/info:")
    if GENERAL not in (facts.dataset.source, *(source for _, source in others)):
        offer_general(facts, first=not others)


def offer_general(facts: CalibrationFacts, first: bool) -> None:
    """Show the button that calibrates the same model on general text, with the same settings."""
    job = newest_job("calibrate")
    if job is not None and job.arguments.get("dataset") == GENERAL:
        show_job(job)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Calibrate on general text",
            type="primary" if first else "secondary",
            icon=":material/speed:",
            disabled=job is not None and job.unfinished,
        ):
            settings = facts.settings.model_dump()
            jobs.start(CalibrateRequest.asked(model=facts.model.source, dataset=GENERAL, **settings))
            st.rerun()
        words = "The bundled plain prose, with the settings of this calibration"
        if facts.reused < 0.5:
            words += f": about {duration(facts.seconds / (1 - facts.reused))}"
        st.caption(f"{words}.")


def compare(shown: Shown, others: Mapping[Path, str]) -> None:
    """Show the difference map and the heads that this task needs least."""
    names: dict[str, Path] = {}
    for path in others:
        names.setdefault(path.name, path)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox(
            "General text",
            list(names),
            format_func=lambda name: f"{others[names[name]]} ({name})",
            key="general",
            bind="query-params",
            help="Any other calibration of this model.",
        )
        centred = st.toggle(
            "Take out what all heads share",
            key="centred",
            bind="query-params",
            help="General text may cost more or less with any head gone; this sets the median head to × 1.",
        )
    general = read_calibration(names[name])
    keys = tuple((str(one.path), one.facts.started) for one in (shown.calibration, general))
    found = _difference(keys, centred, shown.calibration, general)
    clickable(charts.difference_map(found, chosen=shown.head), "difference")
    less, more = int((found.ratio.low > 0).sum()), int((found.ratio.high < 0).sum())
    words = [
        f"Teal: general text needs the head more than {shown.calibration.facts.dataset.source} does, so this task can "
        f"spare it sooner. A dot: the 95% interval leaves out × 1 ({less} spared, {more} needed more, of "
        f"{found.sure.size}; were there no difference, {found.sure.size / 20:.0f} would be marked by chance)"
    ]
    if found.shared:
        words.append(f"a factor of {np.exp(found.shared):.2f} that all heads share is taken out")
    unlike = task_vs_general.unlike(shown.calibration, general)
    if unlike:
        words.append(f"the two were not measured alike ({'; '.join(unlike)})")
    st.caption("; ".join(words) + ".")
    show_least_needed(found)


def show_least_needed(found: TaskDifference) -> None:
    """Show the heads that this task needs least, as a short table."""
    first = found.least_needed(8)
    if not first:
        st.caption("There is no head that this task surely needs less than general text.")
        return
    st.markdown("**Heads this task needs least, compared with general text**")
    layers, heads = np.array(first).T
    ratio = found.ratio
    table = pd.DataFrame(
        {
            "layer": layers,
            "head": heads,
            "general / task": np.exp(ratio.value[layers, heads]),
            "95% interval": [f"{np.exp(ratio.low[place]):.2f} to {np.exp(ratio.high[place]):.2f}" for place in first],
            "on the task": found.task[layers, heads],
            "on general text": found.general[layers, heads],
        }
    )
    costs = {
        name: st.column_config.NumberColumn(f"{name}, nats/token", format="%.4f")
        for name in ("on the task", "on general text")
    }
    columns = {"general / task": st.column_config.NumberColumn(format="× %.2f")} | costs
    head_table(table, "least-needed", column_config=columns)


@st.cache_resource(max_entries=8, show_spinner="Comparing")
def _difference(
    keys: tuple[tuple[str, str], ...], centred: bool, _task: Calibration, _general: Calibration
) -> TaskDifference:
    return task_vs_general.task_difference(_task, _general, centred=centred, seed=_task.facts.settings.seed)
