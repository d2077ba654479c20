"""What a person asks of a recovery: the sensible next step in one button, or their own method, data and settings."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from pages.views.frame import plain_errors, read_calibration, sentence
from pages.views.task_data import choose_data, choose_source, open_task
from slim import jobs
from slim.core import paths
from slim.core.errors import InputError, SlimError
from slim.core.resources import Workload
from slim.data.tasks import Task
from slim.planning.record import Plan
from slim.pruning import held_out
from slim.pruning.history import Method, Recovery
from slim.recovery import finetune, repair
from slim.recovery.charts import NAMES
from slim.recovery.layer_distillation import workload
from slim.recovery.preview import preview
from slim.recovery.repair import RepairSettings
from slim.recovery.settings import TrainSettings

KEEP = "session"
DATA = "recover-data"
POSITIONS = {"all": "Every token", "answer": "The answer only"}
SHORT: dict[str, Any] = {"steps": 60, "samples": 256, "evaluations": 6, "batch_size": 4}
"""A training that is worth its wait on a CPU."""
TOWARDS = SHORT | {"positions": "all"}
"""The original is asked for all it predicts, not for the answers alone."""


ROLES = {"learn": "to learn from", "choose": "to choose by", "decide": "to decide", "report": "to tell of"}


@dataclass(frozen=True)
class Way:
    """A method as the form offers it."""

    label: str
    words: str
    trains: bool = True
    first: dict[str, Any] = field(default_factory=dict)
    """What the form says first, where the stage has it otherwise."""


WAYS: dict[Method, Way] = {
    "repair": Way(
        "Repair it", "Least squares of what is left onto what was: seconds to minutes, no training.", trains=False
    ),
    "local": Way(
        "Distil its layers",
        "Each layer learns to give what the original has there, one at a time: little memory.",
        first=TOWARDS,
    ),
    "kd": Way(
        "Distil it",
        "Learns what the original predicts on the rows, which is asked once.",
        first=TOWARDS,
    ),
    "lora": Way(
        "Train it", "Learns the rows' own answers: better at the task, not closer to the original.", first=SHORT
    ),
}
"""Adding a method is a row here and one in `slim.recovery.charts.NAMES`."""
FIRST: tuple[Method, ...] = ("repair", "kd")
"""The sensible order: what is cheap first."""


@dataclass(frozen=True)
class Asked:
    """A recovery as it is asked for: what of which rows, and the job's kind and arguments."""

    task: Task
    method: Method
    arguments: dict[str, Any]

    @property
    def kind(self) -> str:
        return "finetune" if WAYS[self.method].trains else "repair"


def suggestion(recovery: Recovery) -> Method | None:
    """What is sensible next; None where both were done."""
    done = {step.method for step in recovery.steps}
    if done - {"repair"}:
        return None
    return next((method for method in FIRST if method not in done), None)


def offer(path: Path, plan: Plan, recovery: Recovery, busy: bool) -> None:
    """The one button that does the sensible thing on the rows of the calibration, with what it takes."""
    method = suggestion(recovery)
    if method is None:
        return
    try:
        task, length = calibrated(plan)
    except SlimError as error:
        st.info(f"{sentence(str(error))} The form below takes any data.", icon=":material/dataset:")
        return
    data = _arguments_of(task) if WAYS[method].trains else {}  # a repair finds the calibration's rows by itself
    asked = asked_for(path, task, method, data, {"max_length": length} | WAYS[method].first)
    with st.container(border=True):
        st.markdown(f"**Next: {NAMES[method].lower()}.** {WAYS[method].words}")
        start(WAYS[method].label, path, asked, busy, "recover-next", primary=True)


def asked_for(path: Path, task: Task, method: Method, data: dict[str, Any], chosen: dict[str, Any]) -> Asked:
    """Raises InputError for a setting that cannot be."""
    arguments = {"source": str(path), **data, "settings": settings_of(method, chosen).model_dump(mode="json")}
    return Asked(task, method, arguments | ({"method": method} if WAYS[method].trains else {}))


def settings_of(method: Method, chosen: dict[str, Any]) -> Any:
    """Raises InputError for a setting that cannot be."""
    return (TrainSettings if WAYS[method].trains else RepairSettings).checked(**chosen)


def calibrated(plan: Plan) -> tuple[Task, int]:
    """The rows of the calibration, and the tokens beyond which it cut them. Raises InputError where it is gone."""
    return _calibrated(plan.calibration, plan)


@st.cache_data(max_entries=8, show_spinner="Reading the dataset")
def _calibrated(calibration: str, _plan: Plan) -> tuple[Task, int]:
    task = held_out.calibration_task(_plan)
    return task, read_calibration(paths.local(calibration, "calibration")).facts.settings.max_length


def _arguments_of(task: Task) -> dict[str, Any]:
    """What `tasks.load_task` took."""
    data: dict[str, Any] = {"dataset": task.source, "config": task.config, "split": task.split}
    data["revision"] = task.revision
    if layout := task.layout:
        data |= {"template": layout.template.name, "columns": dict(layout.columns), "prompt": layout.prompt}
    return data


def request(path: Path, plan: Plan, recovery: Recovery) -> Asked:
    """The form. The page ends with one sentence where a dataset or a setting cannot be used."""
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
    st.caption(WAYS[method].words)
    length = None
    with suppress(SlimError):
        task, length = calibrated(plan)
        st.session_state.setdefault(DATA, task.source)
    data = choose_data(choose_source(st, DATA), DATA)
    task = open_task(data)
    with plain_errors():
        return asked_for(path, task, method, {"dataset": data.pop("source"), **data}, _settings(method, length))


def _settings(method: Method, length: int | None) -> dict[str, Any]:
    """Steps, rows and lengths, and what few people touch in an expander."""
    trains = WAYS[method].trains
    first = settings_of(method, WAYS[method].first).model_dump()
    columns = iter(st.columns(4 if trains else 3))
    chosen: dict[str, Any] = {}
    if trains:
        about = "Of the optimiser." if method != "local" else "In each layer."
        chosen["steps"] = number(next(columns), "Steps", "steps", 1, 1_000_000, first["steps"], about)
    about = "To learn from, to choose and decide by, to tell of."
    chosen["samples"] = number(next(columns), "Rows", f"samples-{trains}", 4, 1_000_000, first["samples"], about)
    chosen["max_length"] = number(
        next(columns), "Longest row, tokens", "length", 2, 32_768, length or first["max_length"]
    )
    title = "Rows of a step" if trains else "Rows per forward"
    chosen["batch_size"] = number(next(columns), title, f"batch-{trains}", 1, 1024, first["batch_size"])
    with st.expander("More settings", icon=":material/settings:"):
        left, right = st.columns(2)
        chosen["positions"] = left.radio(
            "Learnt and told of" if trains else "The figures count",
            list(POSITIONS),
            format_func=POSITIONS.__getitem__,
            index=list(POSITIONS).index(first["positions"]),
            horizontal=True,
            key=f"recover-positions-{method}",
            persist_state=KEEP,
        )
        chosen["seed"] = number(right, "Seed", "seed", 0, 2**31 - 1, 0, "Chooses the rows and their order.")
        if trains:
            chosen |= _training(method, first)
    return chosen


def _training(method: Method, first: dict[str, Any]) -> dict[str, Any]:
    """What few people touch of a training."""
    one, two, three, four = st.columns(4)
    chosen: dict[str, Any] = {
        "learning_rate": one.number_input(
            "Learning rate",
            1e-7,
            1.0,
            first["learning_rate"],
            1e-4,
            format="%.1e",
            key=f"recover-rate-{method}",
            persist_state=KEEP,
        ),
        "evaluations": number(two, "Looks", "looks", 1, 1000, 6, "At the validation rows; the state is saved at each."),
        "patience": number(
            three, "Patience", "patience", 1, 1000, 3, "Looks without a better loss after which it stops."
        ),
        "micro_batch": number(four, "Rows in memory", "micro", 1, 1024, 4, "At once; halved where memory ends."),
    }
    one, two, three, four = st.columns(4, vertical_alignment="bottom")
    weights = one.selectbox(
        "What learns",
        ["adapter", "full"],
        format_func={"adapter": "A LoRA, merged at the end", "full": "All weights"}.__getitem__,
        key="recover-weights",
        persist_state=KEEP,
    )
    chosen["weights"] = weights
    chosen["rank"] = number(two, "Rank of the LoRA", "rank", 1, 1024, 16, disabled=weights == "full")
    if method == "kd":
        chosen["temperature"] = three.number_input(
            "Temperature", 0.1, 20.0, 1.0, 0.1, key="recover-temperature", persist_state=KEEP
        )
        chosen["task_weight"] = four.number_input(
            "Weight of the answers",
            0.0,
            1.0,
            first["task_weight"],
            0.05,
            key="recover-task-weight",
            persist_state=KEEP,
            help="Of the rows' own tokens, beside what the original predicts.",
        )
    one, two = st.columns(2, vertical_alignment="bottom")
    chosen["precision"] = one.selectbox(
        "Matrix products in", ["auto", "float32", "bfloat16"], key="recover-precision", persist_state=KEEP
    )
    chosen["checkpointing"] = two.checkbox(
        "Less memory for a third more time", key="recover-checkpointing", persist_state=KEEP
    )
    return chosen


def number(
    place: Any, title: str, key: str, low: int, high: int, value: int, help: str | None = None, disabled: bool = False
) -> int:
    """A whole number that is kept while the session lasts."""
    key = f"recover-{key}"
    return place.number_input(title, low, high, value, key=key, persist_state=KEEP, help=help, disabled=disabled)


def start(label: str, path: Path, asked: "Asked", busy: bool, key: str, primary: bool = False) -> None:
    """The button that starts the job, with what that will take and what the rows are for beside it."""
    words, problem, work = "What it takes is told once the original is unpacked.", None, None
    try:
        found = _told(asked.task, str(path), asked.method, json.dumps(asked.arguments))
    except InputError as error:
        words, problem, found = "", str(error), None
    if found:
        work, rows = found
        words = (
            f"About {work.time()}, {work.memory / 1e9:,.1f} GB of memory, {work.disk / 1e6:,.0f} MB on disk; "
            f"{work.rows} rows: {', '.join(f'{rows[role]} {to}' for role, to in ROLES.items())}."
        )
    with st.container(horizontal=True, vertical_alignment="center"):
        icon = ":material/healing:" if primary else ":material/play_arrow:"
        kind = "primary" if primary else "secondary"
        if st.button(label, type=kind, icon=icon, disabled=busy or problem is not None, key=key):
            with plain_errors():
                jobs.start(asked.kind, **asked.arguments)
            st.rerun()
        st.caption(words)
    if problem:
        st.error(sentence(problem), icon=":material/error:")
    if work and work.too_much:
        st.warning(work.too_much, icon=":material/memory:")


@st.cache_data(max_entries=16, show_spinner="Counting rows")
def _told(_task: Task, path: str, method: Method, arguments: str) -> tuple[Workload, dict[str, int]] | None:
    settings = settings_of(method, json.loads(arguments)["settings"])
    at = preview(path, _task, settings)
    if at is None:
        return None
    stages = {"repair": repair.workload, "local": workload}
    work = stages.get(method, finetune.workload)(at, settings)
    return work, {role: len(part.rows) for role, part in at.drawn.parts.items()}
