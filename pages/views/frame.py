"""Shared by the pages: watching a job, choosing a run, showing a calibration's maps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from pages.views import login
from pages.views.libraries import spare_imports
from slim import jobs
from slim.calibration import charts, scores
from slim.calibration import record as calibration
from slim.calibration.criteria import CRITERIA
from slim.calibration.record import CHECK_FILE, Calibration
from slim.core import paths
from slim.core.errors import SlimError
from slim.core.markdown import escaped
from slim.core.run_index import runs
from slim.core.workspace import Kind
from slim.data.omissions import omitted
from slim.jobs import Job
from slim.jobs.kinds import kind_of
from slim.models.units import UnitName
from slim.planning.board_choice import first_state, metrics_of

PAGES = {
    "home": "home",
    "calibrate": "speed",
    "explore": "grid_on",
    "prune": "content_cut",
    "recover": "healing",
    "evaluate": "monitoring",
    "compare": "compare",
    "runs": "account_tree",
}
"""Each page's file and its icon, in the order of the pipeline."""
ICON = Path(__file__).parent.parent / "assets" / "icon.png"
LOG_SCALED = ("kl_output", "variance")
PLOT = {"displayModeBar": False}
_framed = False

spare_imports()


def navigation() -> st.Page:
    """Register the pages, and return the requested one; visitors without access get the login at each address.

    Every run of a page calls this, so jobs are tended here.
    """
    global _framed  # noqa: PLW0603
    _framed = True
    st.set_page_config(page_title="Slim", page_icon=ICON, layout="wide")
    login.warn_once()
    paths.confine(shared=login.is_shared())
    if not login.admitted():
        gates = [st.Page(login.show_gate, title="Slim", url_path=page, default=page == "home") for page in PAGES]
        return st.navigation(gates, position="hidden")
    tend_jobs()
    return st.navigation(
        [
            st.Page(f"pages/{page}.py", title=page.capitalize(), icon=f":material/{icon}:", default=page == "home")
            for page, icon in PAGES.items()
        ],
        position="top",
    )


def tend_jobs() -> None:
    """Record the ends of dead jobs, and start queues that wait; listing jobs does neither."""
    with suppress(SlimError):  # of a workspace that cannot be used, which the page itself reports
        jobs.tend()


def page_title(text: str) -> None:
    """Show a page's heading.

    The first visitor of a fresh server may ask for a page directly. Streamlit then runs that file alone, because it
    takes any folder named pages for its older kind of app until st.navigation was called once: so call it, start over.
    The same holds for a visitor without access who came here in that moment: they see the login, and nothing else.
    """
    if not _framed or not login.admitted():
        navigation()
        st.rerun()
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.title(text)
        login.show_user()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Show an error a user can meet as one sentence and ends the page there."""
    try:
        yield
    except SlimError as error:
        st.error(sentence(str(error)), icon=":material/error:")
        st.stop()


def sentence(text: str) -> str:
    """An error's text for a page: capitalized, with Markdown escaped."""
    return escaped(text[:1].upper() + text[1:])


def duration(seconds: float) -> str:
    """Seconds in words, in whole minutes from 90 s on."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def newest_job(kind: str) -> Job | None:
    """The newest job of a kind. Raises SlimError for a workspace that cannot be used."""
    return next(iter(jobs.jobs(kind)), None)


def show_job(job: Job | None) -> None:
    """Show progress while a job runs, and its error when it failed. The page reruns when it ends."""
    if job is None:
        return
    if job.unfinished:
        _watch(job.id)
    elif job.state == "failed":
        st.error(sentence(job.error or "It failed without a reason."), icon=":material/error:")
    elif job.state == "cancelled":
        stopped = "Paused" if stop_word(job) == "Pause" else "Cancelled"
        st.info(f"{stopped}. {jobs.what_is_kept(job)}", icon=":material/cancel:")


def stop_word(job: Job) -> str:
    """The word for stopping a job: a training, which goes on where it was stopped, is paused."""
    kind = kind_of(job.kind)
    return kind.stop if kind else "Cancel"


@st.fragment(run_every=1.0)
def _watch(job_id: str) -> None:
    tend_jobs()
    job = jobs.state_of(job_id)
    if job is None or not job.unfinished:
        st.rerun()
    left = job.remaining(time.time())
    message = escaped(job.message)
    words = [message, f"{job.fraction:.0%}"] if job.started else [message]
    if left is not None:
        words.append(f"about {duration(left)} left")
    bar, button = st.columns([6, 1], vertical_alignment="bottom")
    bar.progress(job.fraction, " · ".join(words))
    if button.button(stop_word(job), key=f"cancel-{job_id}", width="stretch", disabled=job.state == "cancelling"):
        jobs.cancel(job_id)
        st.rerun()


def next_step(label: str, page: str, icon: str) -> None:
    """Show a button that leads to the page where the work continues."""
    if st.button(label, type="primary", icon=icon):
        go_to(page)


def go_to(page: str) -> NoReturn:
    """End this page and open another.

    This page's fragments are forgotten first. A browser asks for those that update themselves until it knows of the
    new page, and Streamlit would answer a late request by clearing that page, which then stays empty.
    """
    context = get_script_run_ctx()
    if context is not None:
        context.fragment_storage.clear()
    st.switch_page(page)


def result_of(job: Job | None) -> Path | None:
    """The result of a finished job, while it still exists."""
    if job is None or job.state != "done" or job.result is None:
        return None
    path = Path(job.result)
    return path if path.exists() else None


def choose_run(kind: Kind, label: str, key: str, maker: str) -> Path:
    """Ask for one of the workspace's runs, the newest first. Without any, the page leads to `maker` and ends."""
    with plain_errors():
        found = runs(kind)
    if not found:
        st.info(f"There is no {label.lower()} yet.", icon=":material/info:")
        st.page_link(maker, label="Make the first one", icon=":material/arrow_forward:")
        st.stop()
    if st.session_state.get(key) not in found:
        st.session_state.pop(key, None)
    return st.selectbox(label, found, format_func=lambda path: path.stem if path.suffix else path.name, key=key)


@st.cache_resource(max_entries=32, show_spinner="Reading the calibration")
def _calibration(path: str, written: int) -> Calibration:
    return calibration.load_calibration(Path(path))


def read_calibration(path: Path) -> Calibration:
    """A calibration, from a small cache in memory. Raises InputError as `calibration.load` does."""
    files = [path / "record.json", path / CHECK_FILE]
    return _calibration(str(path), max(file.stat().st_mtime_ns if file.exists() else 0 for file in files))


def open_calibration(path: Path) -> Calibration:
    """The same; the page ends with one sentence where it cannot be read."""
    with plain_errors():
        return read_calibration(path)


def went_back() -> bool:
    """Return whether the browser's Back or Forward caused this run, so that its link counts and not the session."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def follow_link(kind: Kind, key: str) -> None:
    """Choose under `key` the run that the page's link names, where nothing was chosen since it was opened."""
    name = st.query_params.get(kind)
    if name and (key not in st.session_state or went_back()):
        with plain_errors():
            found = [path for path in runs(kind) if path.name == name]
        if found:
            st.session_state[key] = found[0]
        else:
            st.info(sentence(f"the link's {kind} {name!r} is not here."), icon=":material/link_off:")


def follow_job(job: Job | None, kind: Kind, key: str) -> bool:
    """Choose under `key` a job's result, or the run that the link names; return whether the job is unfinished.

    The link names it by the `kind` of run that it makes.
    """
    watched = f"{key}-watched"
    if job is not None and job.unfinished:
        st.session_state[watched] = job.id
    elif job is not None and st.session_state.pop(watched, None) == job.id and (made := result_of(job)):
        st.session_state[key] = made
    follow_link(kind, key)
    return job is not None and job.unfinished


def chosen_calibration(key: str) -> tuple[Path, Calibration]:
    """The calibration chosen on a page, initially the one that the link names."""
    follow_link("calibration", key)
    path = choose_run("calibration", "Calibration", key, "pages/calibrate.py")
    return path, open_calibration(path)


def weight_key(unit: UnitName, name: str) -> str:
    """The key of a criterion's weight in the session, the same on every page."""
    return f"weight-{unit}-{name}"


def weight_sliders(calibration: Calibration, unit: UnitName) -> dict[str, float]:
    """Ask for the weight of each criterion in the score of a `unit`, by sliders."""
    for name, weight in first_state(calibration, unit).weights.items():
        st.session_state.setdefault(weight_key(unit, name), weight)
    return {
        name: st.slider(CRITERIA[name].title, 0.0, 1.0, step=0.05, key=weight_key(unit, name), persist_state="session")
        for name in metrics_of(calibration, unit)
    }


def facts_line(calibration: Calibration) -> str:
    """The model and the rows of a calibration, for Markdown."""
    facts = calibration.facts
    cached = f", {facts.reused:.0%} of it from the cache" if facts.reused else ""
    notes = "".join(f"; {note}" for note in (*omitted(facts.dataset.omissions), *facts.notes))
    return escaped(
        f"{facts.model.source} on {facts.dataset.source}, {facts.dataset.rows} rows of {facts.dataset.split}, "
        f"{facts.dataset.tokens:,} tokens, {duration(facts.seconds)} on {facts.device}{cached}{notes}"
    )


def show_maps(calibration: Calibration, key: str) -> None:
    """Show the four maps, layers × heads: KL, entropy, variance and the composite score."""
    heads = calibration.level("head")
    score = scores.composite(calibration, scores.default_weights(calibration), "head")
    figures = [
        charts.heatmap(heads[name], CRITERIA[name].title, CRITERIA[name].unit, log=name in LOG_SCALED)
        for name in ("kl_output" if "kl_output" in heads else "kl_uniform", "entropy", "variance")
    ]
    figures.append(charts.heatmap(score, "Composite score", "1 = first to go"))
    for start in range(0, len(figures), 2):
        for column, (index, figure) in zip(st.columns(2), enumerate(figures[start : start + 2], start), strict=False):
            column.plotly_chart(figure, key=f"{key}-{index}", config=PLOT)
