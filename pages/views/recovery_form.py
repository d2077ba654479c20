"""The form of a recovery: the suggested next step in one button, or the user's own method, data and settings."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from pages.views.fields import KEEP, POSITIONS, ask
from pages.views.frame import plain_errors, sentence
from pages.views.task_data import choose_data, choose_source, open_task, options_of
from pages.views.task_rows import show_reading
from slim import jobs
from slim.core.errors import InputError, SlimError
from slim.core.resources import Workload
from slim.data.tasks import Task
from slim.planning.record import Plan
from slim.pruning import held_out
from slim.pruning.history import Method, Recovery
from slim.recovery.charts import NAMES
from slim.recovery.request import FinetuneRequest, RepairRequest

DATA = "recover-data"
WEIGHTS = {"adapter": "A LoRA, merged at the end", "full": "All weights"}


@dataclass(frozen=True)
class Way:
    """A method as the form offers it."""

    label: str
    words: str
    trains: bool = True

    @property
    def request(self) -> type[RepairRequest | FinetuneRequest]:
        return FinetuneRequest if self.trains else RepairRequest


WAYS: dict[Method, Way] = {
    "repair": Way(
        "Repair it",
        "Fits what remains to the original's outputs by least squares: seconds to minutes, no training.",
        trains=False,
    ),
    "local": Way(
        "Distil its layers",
        "Each layer learns the original's hidden states, one layer at a time: little memory.",
    ),
    "kd": Way("Distil it", "Learns the original's predictions on the rows, which are computed once."),
    "lora": Way("Train it", "Learns the rows' own answers: better at the task, not closer to the original."),
}
"""Adding a method is a row here and one in `slim.recovery.charts.NAMES`."""
FIRST: tuple[Method, ...] = ("repair", "kd")
"""The suggested order, the cheapest first."""


@dataclass(frozen=True)
class Step:
    """The request of a step of recovery, and its rows."""

    request: RepairRequest | FinetuneRequest
    task: Task


def suggestion(recovery: Recovery) -> Method | None:
    """The suggested next method; None after both were applied."""
    done = {step.method for step in recovery.steps}
    if done - {"repair"}:
        return None
    return next((method for method in FIRST if method not in done), None)


def offer(path: Path, plan: Plan, recovery: Recovery, busy: bool) -> None:
    """Show the button of the suggested step on the rows of the calibration, with its dry-run estimate."""
    method = suggestion(recovery)
    if method is None:
        return
    try:
        task = calibrated(plan)
    except SlimError as error:
        st.info(f"{sentence(str(error))} The form below takes any data.", icon=":material/dataset:")
        return
    way = WAYS[method]
    rows = options_of(task.data.model_dump()) | {"method": method}
    step = Step(way.request.asked(folder=path, **(rows if way.trains else {})), task)  # a repair finds its rows itself
    with st.container(border=True):
        st.markdown(f"**Next: {NAMES[method].lower()}.** {way.words}")
        start(way.label, step, busy, "recover-next", primary=True)


def calibrated(plan: Plan) -> Task:
    """The rows of the calibration. Raises InputError where they are missing."""
    return _calibrated(plan.calibration, plan)


@st.cache_data(max_entries=8, show_spinner="Reading the dataset")
def _calibrated(calibration: str, _plan: Plan) -> Task:
    return held_out.rows_for_repair(_plan)


def choose_step(path: Path, plan: Plan, recovery: Recovery) -> Step:
    """Show the form. The page ends with one sentence where a dataset or a setting cannot be used."""
    sensible = suggestion(recovery) or "kd"
    method: Method = st.segmented_control(
        "Method",
        list(WAYS),
        default=sensible,
        format_func=NAMES.__getitem__,
        required=True,
        key=f"recover-method-{sensible}",
        persist_state=KEEP,
    )
    way = WAYS[method]
    st.caption(way.words)
    with suppress(SlimError):
        st.session_state.setdefault(DATA, calibrated(plan).source)
    data = choose_data(choose_source(st, DATA), DATA)
    task = open_task(data)
    show_reading(task)
    chosen = {"method": method, **_training(method)} if way.trains else _repair()
    with plain_errors():
        return Step(way.request.asked(folder=path, **options_of(data), **chosen), task)


def _repair() -> dict[str, Any]:
    """Ask for the settings of a repair."""
    one, two, three = st.columns(3)
    chosen = {
        "samples": ask(RepairRequest, "samples", "recover-samples-False", one),
        "max_length": ask(RepairRequest, "max_length", "recover-length-False", two),
        "batch_size": ask(RepairRequest, "batch_size", "recover-batch-False", three),
    }
    with st.expander("More settings", icon=":material/settings:"):
        return chosen | _counted(RepairRequest, "repair")


def _training(method: Method) -> dict[str, Any]:
    """Ask for the settings of a training, the rarely used ones in an expander."""
    one, two, three, four = st.columns(4)
    chosen = {
        "steps": ask(FinetuneRequest, "steps", "recover-steps", one),
        "samples": ask(FinetuneRequest, "samples", "recover-samples-True", two),
        "max_length": ask(FinetuneRequest, "max_length", "recover-length-True", three),
        "batch_size": ask(FinetuneRequest, "batch_size", "recover-batch-True", four),
    }
    with st.expander("More settings", icon=":material/settings:"):
        chosen |= _counted(FinetuneRequest, method)
        one, two, three, four = st.columns(4)
        rate = {"step": 1e-4, "format": "%.1e"}
        chosen |= {
            "learning_rate": ask(FinetuneRequest, "learning_rate", f"recover-rate-{method}", one, **rate),
            "evaluations": ask(FinetuneRequest, "evaluations", "recover-looks", two),
            "patience": ask(FinetuneRequest, "patience", "recover-patience", three),
            "micro_batch": ask(FinetuneRequest, "micro_batch", "recover-micro", four),
        }
        one, two, three, four = st.columns(4, vertical_alignment="bottom")
        weights = ask(FinetuneRequest, "weights", "recover-weights", one, labels=WEIGHTS)
        chosen["weights"] = weights
        chosen["rank"] = ask(FinetuneRequest, "rank", "recover-rank", two, disabled=weights == "full")
        if method == "kd":
            chosen["temperature"] = ask(FinetuneRequest, "temperature", "recover-temperature", three, step=0.1)
            chosen["task_weight"] = ask(FinetuneRequest, "task_weight", "recover-task-weight", four, step=0.05)
        one, two = st.columns(2, vertical_alignment="bottom")
        chosen["precision"] = ask(FinetuneRequest, "precision", "recover-precision", one)
        chosen["checkpointing"] = ask(FinetuneRequest, "checkpointing", "recover-checkpointing", two)
    return chosen


def _counted(request: type[RepairRequest | FinetuneRequest], method: Method) -> dict[str, Any]:
    """Ask for the predictions that count, and the seed."""
    left, right = st.columns(2)
    key = f"recover-positions-{method}"
    return {
        "positions": ask(request, "positions", key, left, labels=POSITIONS, radio=True),
        "seed": ask(request, "seed", "recover-seed", right),
    }


def start(label: str, step: Step, busy: bool, key: str, primary: bool = False) -> None:
    """Show the button that starts the job, with its dry-run estimate and the split of its rows beside it."""
    words, problem, work = "The estimate follows once the original is unpacked.", None, None
    try:
        found = _estimated(step.task, step.request.model_dump_json(), step.request)
    except InputError as error:
        words, problem, found = "", str(error), None
    if found:
        work, rows = found
        words = (
            f"About {work.time()}, {work.memory / 1e9:,.1f} GB of memory, {work.disk / 1e6:,.0f} MB on disk; "
            f"{work.rows} rows: {', '.join(f'{count} {role}' for role, count in rows.items())}."
        )
    with st.container(horizontal=True, vertical_alignment="center"):
        icon = ":material/healing:" if primary else ":material/play_arrow:"
        kind = "primary" if primary else "secondary"
        if st.button(label, type=kind, icon=icon, disabled=busy or problem is not None, key=key):
            with plain_errors():
                jobs.start(step.request)
            st.rerun()
        st.caption(words)
    if problem:
        st.error(sentence(problem), icon=":material/error:")
    if work and work.too_much:
        st.warning(work.too_much, icon=":material/memory:")


@st.cache_data(max_entries=16, show_spinner="Counting rows")
def _estimated(
    _task: Task, asked: str, _request: RepairRequest | FinetuneRequest
) -> tuple[Workload, dict[str, int]] | None:
    from slim.recovery import finetune, layer_distillation, repair
    from slim.recovery.preview import preview

    at = preview(str(_request.folder), _task, _request)
    if at is None:
        return None
    if isinstance(_request, RepairRequest):
        work = repair.workload(at, _request)
    else:
        stage = layer_distillation if _request.method == "local" else finetune
        work = stage.workload(at, _request)
    return work, {role: len(part.rows) for role, part in at.drawn.parts.items()}
