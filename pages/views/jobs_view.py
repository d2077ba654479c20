"""The workspace's jobs, those of the page and those of commands: running, waiting in their order, and over."""

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Literal

import streamlit as st

from pages.views.frame import duration, plain_errors, sentence, stop_word, tend_jobs
from slim import jobs
from slim.core.errors import InputError, SlimError
from slim.jobs import Job
from slim.jobs.job import State
from slim.jobs.kinds import kind_of

Color = Literal["gray", "blue", "orange", "red", "green"]
LOOK = 1.5
"""Seconds between two updates."""
MOST = 12
"""Finished jobs that are shown by default."""
LOG, LINES = 240, 8
"""Pixels of a log that is longer than `LINES` lines."""
BADGES: dict[State, tuple[str, str, Color]] = {
    "queued": ("Queued", ":material/hourglass_empty:", "gray"),
    "running": ("Running", ":material/play_arrow:", "blue"),
    "cancelling": ("Cancelling", ":material/stop:", "orange"),
    "cancelled": ("Cancelled", ":material/cancel:", "gray"),
    "failed": ("Failed", ":material/error:", "red"),
    "done": ("Done", ":material/check_circle:", "green"),
}


@st.fragment(run_every=LOOK)
def show_jobs() -> None:
    """Show every job with its state, progress, memory and buttons; the list updates itself."""
    tend_jobs()
    with plain_errors():
        found = jobs.in_order(jobs.jobs())
    if not found:
        st.info("There are no jobs yet. Long work is listed here.", icon=":material/info:")
        return
    current, over = [job for job in found if job.unfinished], [job for job in found if not job.unfinished]
    for job in current:
        ahead = [one for one in current if one.state == "queued" and one.device == job.device]
        _show(job, [one.id for one in ahead])
    if not over:
        return
    if current:
        st.subheader("Finished")
    every = st.toggle(f"Show all {len(over)}", key="jobs-all") if len(over) > MOST else False
    for job in over if every else over[:MOST]:
        _show(job, [])
    if len(over) > 1:
        st.button(
            "Delete all finished",
            icon=":material/delete_sweep:",
            key="jobs-clear",
            on_click=_do,
            args=(lambda: _forget_all(over),),
        )


def _show(job: Job, queue: list[str]) -> None:
    with st.container(border=True):
        words, buttons = st.columns([4, 2], vertical_alignment="center")
        with words, st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"**{_title(job)}**", width="content")
            _badge(job)
        with buttons, st.container(horizontal=True, horizontal_alignment="right", gap="small"):
            _buttons(job, queue)
        if job.state in ("running", "cancelling"):
            st.progress(job.fraction, _progress(job))
        st.caption(_facts(job, queue))
        if job.state == "failed":
            st.error(sentence(job.error or "It failed without a reason."), icon=":material/error:")
        _show_log(job)


def _title(job: Job) -> str:
    """The kind of a job, and the names of the models or runs that it works on."""
    kind = kind_of(job.kind)
    if kind is None:
        return sentence(job.kind)
    try:
        subject = getattr(jobs.request_of(job), kind.subject)
    except InputError:  # of a newer Slim on the same workspace
        subject = ()
    subjects = subject if isinstance(subject, tuple) else (subject,)
    names = [Path(str(one).removeprefix("bundled:")).name for one in subjects]
    return sentence(f"{kind.request.verb} {', '.join(names)}".strip())


def _badge(job: Job) -> None:
    if job.silent():
        st.badge("Not answering", icon=":material/question_mark:", color="orange")
        return
    name, icon, color = BADGES[job.state]
    st.badge(name, icon=icon, color=color)


def _progress(job: Job) -> str:
    left = job.remaining(time.time())
    words = [job.message, f"{job.fraction:.0%}", *([f"about {duration(left)} left"] if left is not None else [])]
    return sentence(" · ".join(words))


def _facts(job: Job, queue: list[str]) -> str:
    """Place, start, memory and origin of a job."""
    words = [f"{job.id[:8]}", f"on {job.device}", f"from the {job.origin}"]
    if job.state == "queued" and job.id in queue:
        place = queue.index(job.id)
        words.append(f"{place} before it in the queue" if place else "next in the queue")
    if job.started is not None:
        words.append(f"began {datetime.fromtimestamp(job.started):%d %b %H:%M}")
        words.append(f"took {duration((job.ended or time.time()) - job.started)}" if job.ended else "")
    if job.unfinished and job.memory is not None:
        words.append(f"{job.memory / 1e6:,.0f} MB now")
    if job.peak is not None:
        words.append(f"{job.peak / 1e6:,.0f} MB at most")
    if job.state == "cancelled":
        words.append(jobs.what_is_kept(job).rstrip("."))
    if job.repeats:
        words.append(f"again after {job.repeats[:8]}")
    return " · ".join(word for word in words if word)


def _buttons(job: Job, queue: list[str]) -> None:
    if job.state == "queued" and job.id in queue[1:]:
        ahead = queue[queue.index(job.id) - 1]
        _button("Move up", "arrow_upward", job, lambda: jobs.move(job.id, before=ahead))
    if job.unfinished:
        _button(stop_word(job), "close", job, lambda: jobs.cancel(job.id), disabled=job.state == "cancelling")
        return
    label, icon = ("Go on", "resume") if job.state != "done" and jobs.resumes(job) else ("Again", "refresh")
    _button(label, icon, job, lambda: jobs.again(job.id), help=None if job.state == "done" else jobs.what_is_kept(job))
    gone = "Takes it off this list, with its log. Its result stays."
    _button("Delete", "delete", job, lambda: jobs.forget(job.id), help=gone)


def _button(
    label: str, icon: str, job: Job, action: Callable[[], object], *, disabled: bool = False, help: str | None = None
) -> None:
    key = f"jobs-{label.lower().replace(' ', '-')}-{job.id}"
    st.button(label, icon=f":material/{icon}:", key=key, on_click=_do, args=(action,), disabled=disabled, help=help)


def _do(action: Callable[[], object]) -> None:
    """Act before the list is drawn again; an action that comes too late is only reported."""
    try:
        action()
    except SlimError as error:
        st.toast(sentence(str(error)), icon=":material/info:")


def _forget_all(found: list[Job]) -> None:
    for job in found:
        jobs.forget(job.id)


def _show_log(job: Job) -> None:
    """Show the last lines of a job's log, read only where they are shown."""
    if job.started is None:
        return
    place = st.expander("Log", icon=":material/article:", key=f"jobs-log-{job.id}", on_change="rerun")
    if place.open:
        printed = jobs.log_of(job.id).strip() or "The log is empty."
        place.code(printed, language=None, height=LOG if printed.count("\n") > LINES else "content")
