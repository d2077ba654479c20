"""The form of an evaluation: checkpoints and the model to compare with, rows and tasks, and timing."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import streamlit as st

from pages.views import login
from pages.views.checkpoints import checkpoint_names, cut_from
from pages.views.fields import KEEP, POSITIONS, ask
from pages.views.frame import plain_errors, sentence
from pages.views.task_data import choose_data, choose_source, open_task, options_of
from pages.views.task_rows import show_reading
from slim.core import paths
from slim.core.codecs import names, whole_numbers
from slim.core.errors import InputError
from slim.evaluation.request import EvaluateRequest

BATCH_SIZES = (1, 2, 4, 8, 16)
DATA = "evaluate-data"


def choose_models() -> tuple[list[str], str | None]:
    """Ask for the checkpoints, and the model to compare with; None for the one that they were pruned from."""
    found = checkpoint_names()
    left, right = st.columns(2)
    chosen = left.multiselect(
        EvaluateRequest.option("checkpoints").title,
        list(found),
        format_func=lambda source: found.get(source) or str(source),
        accept_new_options=True,
        placeholder="Choose them, or type a folder or a Hub id",
        help="Any number, side by side. Any model can be typed: a folder, a .gguf file or a Hub id.",
        key="evaluate-checkpoints",
        persist_state=KEEP,
    )
    original, problem = cut_from(chosen)
    placeholder = f"The model they were cut from{f': {original}' if original else ''}"
    baseline = ask(EvaluateRequest, "baseline", "evaluate-baseline", right, placeholder=placeholder)
    if problem and not baseline:
        st.warning(sentence(problem), icon=":material/help:")
    with plain_errors():
        for typed in (*chosen, *filter(None, [baseline])):
            paths.local(typed, "model")
    return chosen, baseline


def choose_rows() -> dict[str, Any]:
    """The options that name the rows of a task; no dataset where quality is switched off."""
    if not st.toggle(
        "Quality on held-out rows of a task",
        value=True,
        key="evaluate-own",
        persist_state=KEEP,
        help="Perplexity, KL to the original and the score of the task's kind, on rows that no calibration drew.",
    ):
        return {"dataset": None}
    st.session_state.setdefault(f"{DATA}-part", "test")  # rows that calibrations do not use by default
    st.session_state.setdefault(f"{DATA}-split", "test")
    data = choose_data(choose_source(st, DATA), DATA)
    task = open_task(data)
    show_reading(task)
    st.caption(sentence(f"{'about ' if task.stream else ''}{task.rows:,} rows in split {task.split} of {task.source}"))
    return options_of(data)


def choose_settings() -> dict[str, Any]:
    """Ask for rows, lengths and similar settings."""
    with st.expander("Settings", icon=":material/tune:"):
        one, two, three, four = st.columns(4)
        left, right, last = st.columns([2, 1, 1])
        answer = {"place": right, "placeholder": "by the kind of task"}
        positions = {"place": left, "labels": POSITIONS, "radio": True}
        return {
            "samples": ask(EvaluateRequest, "samples", "evaluate-samples", one),
            "max_length": ask(EvaluateRequest, "max_length", "evaluate-length", two),
            "batch_size": ask(EvaluateRequest, "batch_size", "evaluate-batch", three),
            "seed": ask(EvaluateRequest, "seed", "evaluate-seed", four),
            "positions": ask(EvaluateRequest, "positions", "evaluate-positions", **positions),
            "max_new_tokens": ask(EvaluateRequest, "max_new_tokens", "evaluate-answer", **answer),
            "dtype": ask(EvaluateRequest, "dtype", "evaluate-dtype", last),
        }


def choose_tasks() -> tuple[dict[str, Any], bool]:
    """Ask for standard tasks, and return their options and whether they can be run here."""
    with st.expander("Standard tasks", icon=":material/checklist:"):
        one, two, three = st.columns([2, 1, 1])
        text = ask(
            EvaluateRequest,
            "tasks",
            "evaluate-standard",
            one,
            label="Names, or YAML files",
            placeholder="arc_easy, hellaswag, /data/mine.yaml",
            help="Tasks of lm-evaluation-harness, which comes with the `lm-eval` extra. A YAML file may name Python "
            "functions of its own: name only files that you would run as a program.",
        )
        settings = {
            "task_rows": ask(EvaluateRequest, "task_rows", "evaluate-task-rows", two, placeholder="all"),
            "shots": ask(EvaluateRequest, "shots", "evaluate-shots", three, placeholder="the task's own"),
        }
        there = find_spec("lm_eval") is not None
        if not there:
            st.info(
                "These need lm-evaluation-harness, which is not installed here: run `pip install 'slim[lm-eval]'` and "
                "start the app again.",
                icon=":material/extension:",
            )
    tasks = names("").read("tasks", text or "")
    with plain_errors():
        _check_code(tasks)
    return {"tasks": tasks, **settings}, there or not tasks


def _check_code(tasks: Sequence[str]) -> None:
    """Raises InputError for a task that may run Python of its own where others than the server's owner ask for it."""
    file = next((task for task in tasks if task.lower().endswith((".yaml", ".yml"))), None)
    if file is None:
        return
    if login.is_shared():
        raise InputError(
            f"tasks={file!r}: a YAML file may run Python of its own, so a shared dashboard takes none; name a task "
            "that the harness knows, or evaluate it with `slim evaluate` on this machine."
        )
    paths.local(file, "tasks")


def choose_speed() -> dict[str, Any]:
    """Ask for the options of timing; empty where models are not timed. Raises InputError for invalid entries."""
    if not st.toggle(
        EvaluateRequest.option("speed").title,
        key="evaluate-speed",
        persist_state=KEEP,
        help="All models are timed in turn in one run, so that other load on this machine slows all alike.",
    ):
        return {}
    one, two, three, four = st.columns([2, 1, 1, 1])
    option = EvaluateRequest.option("speed_rows")
    sizes = one.multiselect(
        option.title,
        [str(size) for size in BATCH_SIZES],
        [str(size) for size in option.default],
        accept_new_options=True,
        filter_mode="prefix",  # 6 is not 16
        help="Batch sizes; others can be typed.",
        key="evaluate-sizes",
        persist_state=KEEP,
    )
    read = whole_numbers("1,8").read
    return {
        "speed": True,
        "speed_rows": tuple(sorted({size for text in sizes for size in read("speed_rows", text)})),
        "speed_tokens": ask(EvaluateRequest, "speed_tokens", "evaluate-tokens", two),
        "speed_steps": ask(EvaluateRequest, "speed_steps", "evaluate-steps", three),
        "repeats": ask(EvaluateRequest, "repeats", "evaluate-repeats", four),
    }


def request() -> EvaluateRequest | None:
    """Show the form, and return its request; None while no checkpoint or nothing to measure is chosen.

    The page ends with one sentence where a dataset or a setting cannot be used.
    """
    checkpoints, baseline = choose_models()
    rows = choose_rows()
    settings = choose_settings()
    tasks, can_run = choose_tasks()
    with plain_errors():
        speed = choose_speed()
        if not checkpoints or not can_run or not (rows["dataset"] or tasks["tasks"] or speed):
            return None
        return EvaluateRequest.asked(checkpoints=checkpoints, baseline=baseline, **rows, **tasks, **speed, **settings)
