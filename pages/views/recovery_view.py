"""A checkpoint's recovery on a page: the loss of pruning, the running job, and each step before and after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from pages.views.frame import PLOT, duration, go_to, plain_errors, sentence, show_job
from pages.views.plan_view import show_words
from slim import jobs
from slim.core.errors import InputError
from slim.core.markdown import escaped
from slim.jobs import Job
from slim.planning.record import Plan
from slim.pruning.card_sections import ENDED
from slim.pruning.history import ROLES, UNCHANGED, CurvePoint, Method, Recovery, RecoveryStep
from slim.recovery.charts import NAMES, changes, curve, in_words
from slim.recovery.request import FinetuneRequest, RepairRequest

KINDS = (RepairRequest.verb, FinetuneRequest.verb)
"""The jobs that this page starts."""
WATCH = 2.0
"""Seconds between two updates of a growing curve."""
POINTS = 2
"""Least points of a curve that is drawn."""


def newest_recovery() -> Job | None:
    return next((job for job in jobs.jobs() if job.kind in KINDS), None)


def show_running(job: Job | None, chosen: Path) -> None:
    """Show the running job with its curve, or a stopped or failed one with the button that resumes it."""
    if job is None or job.state == "done":
        return
    try:
        request: Any = jobs.request_of(job)  # of one of KINDS
    except InputError as error:
        st.error(sentence(str(error)), icon=":material/error:")
        return
    folder, trains = Path(request.folder), isinstance(request, FinetuneRequest)
    method: Method = request.method if trains else "repair"
    steps = request.steps if trains else None
    with st.container(border=True):
        st.markdown(f"**{sentence(f'{NAMES[method]} of {folder.name}')}**")
        show_job(job)
        if job.unfinished:
            _watch_curve(job.id, steps)
            return
        _show_curve(job, steps)
        if trains or folder == chosen:
            _go_on(job, folder)


def _go_on(job: Job, folder: Path) -> None:
    """Start the same request again: a training goes on from its last saved state."""
    label, icon = ("Go on", ":material/resume:") if jobs.resumes(job) else ("Try again", ":material/refresh:")
    with st.container(horizontal=True):
        if st.button(label, type="primary", icon=icon, disabled=not folder.exists()):
            with plain_errors():
                jobs.again(job.id)
            st.rerun()
        if st.button("Leave it", icon=":material/close:"):
            jobs.forget(job.id)
            st.rerun()


@st.fragment(run_every=WATCH)
def _watch_curve(job_id: str, steps: int | None) -> None:
    job = jobs.state_of(job_id)
    if job is not None:
        _show_curve(job, steps)


def _show_curve(job: Job, steps: int | None) -> None:
    points = [CurvePoint.model_validate(point) for point in job.curve]
    if len(points) < POINTS:
        if points:
            st.caption(f"Before it: KL to the original {points[0].kl:.3f} nats/token on the validation rows.")
        return
    st.plotly_chart(curve(points, steps), key="recover-live", config=PLOT)
    first, last = points[0], points[-1]
    st.caption(
        f"Step {last.step}: KL to the original {first.kl:.3f} → {last.kl:.3f} nats/token, "
        f"loss {first.validation:.3f} → {last.validation:.3f}, on validation rows."
    )


def show_loss(plan: Plan, recovery: Recovery) -> None:
    """Show the removals, and their loss: forecast and measured."""
    one, two, three, four = st.columns(4)
    share = plan.after.parameters / plan.before.parameters - 1
    one.metric(
        "Parameters", f"{plan.after.parameters / 1e6:,.1f} M", f"{share:.1%}", delta_color="inverse", border=True
    )
    total = plan.model.layers * plan.model.heads
    _metric(two, "Heads removed", f"{plan.removed_heads}", f"{plan.removed_heads / total:.0%} of {total}")
    f, r = plan.forecast, plan.repaired
    words = f"Forecast when it was planned, KL to the original: {f}" if f else "The calibration was made without KL."
    if r:
        words += f"; after repair {r}"
    _metric(
        three,
        "Forecast loss",
        f"{f.nats_per_token:.3f}" if f else "not made",
        f"{r.nats_per_token:.3f} after repair" if r else "nats/token",
        words,
    )
    help_of_measured = "KL to the original on the test rows, after the last step of recovery."
    if recovery.steps:
        last = recovery.steps[-1].after
        _metric(four, "Measured loss", f"{last.kl:.3f}", f"perplexity {last.ratio:.2f}×", help_of_measured)
    else:
        _metric(four, "Measured loss", "not yet", "with the first step", help_of_measured)
    show_words(plan)


def _metric(place: Any, title: str, value: str, delta: str, help: str | None = None) -> None:
    place.metric(title, value, delta, delta_color="off", delta_arrow="off", border=True, help=help)


def show_recovery(recovery: Recovery) -> None:
    """Show the last step's effect, then every step so far."""
    last = recovery.steps[-1]
    show_steps(recovery.steps)
    if len(last.curve) >= POINTS:
        st.plotly_chart(curve(last.curve), key="recover-curve", config=PLOT)
    with st.expander("Every step in figures", icon=":material/table:"):
        st.dataframe(table(recovery), hide_index=True)
        for number, step in enumerate(recovery.steps, 1):
            st.caption(f"{number}. {escaped(details(step))}")


def show_steps(steps: Sequence[RecoveryStep]) -> None:
    """Show the last step in words, and each step as a line from before to after."""
    last = steps[-1]
    if last.applied:
        st.success(f"**{NAMES[last.method]}**: {proof(last)}.", icon=":material/check_circle:")
    else:
        st.warning(
            f"**{NAMES[last.method]}** was not applied: {last.unchanged}.",
            icon=":material/block:",
        )
    st.plotly_chart(changes(steps), key="recover-changes", config=PLOT)


def proof(step: RecoveryStep) -> str:
    """The figures on the test rows before and after a step, as a sentence."""
    rows = f"{step.after.rows} test rows, which took no part in it ({step.after.predicted:,} predicted tokens)"
    return f"{in_words(step.before, step.after)}, on {rows}"


def table(recovery: Recovery) -> pd.DataFrame:
    """A line for each step."""
    steps = recovery.steps
    return pd.DataFrame(
        {
            "step": [NAMES[step.method] for step in steps],
            "KL to the original, nats/token": [f"{step.before.kl:.4f} → {step.after.kl:.4f}" for step in steps],
            "perplexity, times the original's": [
                f"{step.before.ratio:.3f}× → {step.after.ratio:.3f}×" for step in steps
            ],
            **({ENDED: [step.stopped for step in steps]} if any(step.stopped for step in steps) else {}),
            "counted": [
                "the answer" if step.settings.get("positions") == "answer" else "every token" for step in steps
            ],
            "applied": [_applied(step) for step in steps],
            "test rows": [step.after.rows for step in steps],
            "took": [duration(step.seconds) for step in steps],
        }
    )


def _applied(step: RecoveryStep) -> str:
    if step.applied:
        return "yes"
    return "no: no better" if step.unchanged == UNCHANGED else "no: answers do not end"


def details(step: RecoveryStep) -> str:
    """A step's rows by their roles, its device, and its notes."""
    data, rows = step.dataset, ", ".join(f"{step.rows.get(role, 0)} {role}" for role in ROLES)
    words = [f"{NAMES[step.method]} on {data.source}, split {data.split}: rows {rows}; on {step.device}"]
    return ". ".join([*words, *(note[:1].upper() + note[1:] for note in step.notes)]) + "."


def lead_on(path: Path, recover: bool = False, primary: bool = True) -> None:
    """Show buttons to the next steps, with this checkpoint chosen there; the first of them is `primary`."""
    kind = "primary" if primary else "secondary"
    with st.container(horizontal=True):
        if recover and st.button("Recover more of it", type=kind, icon=":material/healing:"):
            st.session_state["recover-checkpoint"] = path
            go_to("pages/recover.py")
        if st.button("Evaluate it", type="secondary" if recover else kind, icon=":material/monitoring:"):
            st.session_state["evaluate-checkpoints"] = [str(path)]
            go_to("pages/evaluate.py")
        if st.button("Compare its answers with the original's", icon=":material/compare:"):
            st.session_state["compare-checkpoint"] = path
            st.session_state["judge-pruned"] = str(path)
            go_to("pages/compare.py")
