"""What a person asks of an evaluation: which checkpoints beside which model, on what, and whether they are timed."""

from importlib.util import find_spec
from typing import Any

import streamlit as st

from pages.views import login
from pages.views.checkpoints import checkpoint_names, cut_from
from pages.views.frame import plain_errors, sentence
from pages.views.task_data import choose_data, choose_source, open_task
from slim.core import paths
from slim.core.errors import InputError
from slim.data.tasks import Positions
from slim.evaluation.record import EvaluationSettings

KEEP = "session"
POSITIONS: dict[Positions, str] = {"all": "Every token", "answer": "The answer only"}
BATCH_SIZES = (1, 2, 4, 8, 16)
DATA = "evaluate-data"


def choose_models() -> tuple[list[str], str | None]:
    """The checkpoints, and the model to compare them with; None: the one they were cut from, if that is known."""
    names = checkpoint_names()
    left, right = st.columns(2)
    chosen = left.multiselect(
        "Checkpoints",
        list(names),
        format_func=lambda source: names.get(source) or str(source),
        accept_new_options=True,
        placeholder="Choose them, or type a folder or a Hub id",
        help="Any number, side by side. Any model can be typed: a folder, a .gguf file or a Hub id.",
        key="evaluate-checkpoints",
        persist_state=KEEP,
    )
    original, problem = cut_from(chosen)
    baseline = right.text_input(
        "Compare with",
        placeholder=f"The model they were cut from{f': {original}' if original else ''}",
        help="The baseline of all differences and ratios: the bundled model, a folder, a .gguf file or a Hub id.",
        key="evaluate-baseline",
        persist_state=KEEP,
    ).strip()
    if problem and not baseline:
        st.warning(sentence(problem), icon=":material/help:")
    with plain_errors():
        for typed in (*chosen, *filter(None, [baseline])):
            paths.local(typed, "model")
    return chosen, baseline or None


def choose_rows() -> dict[str, Any]:
    """The arguments of `evaluate` that say which rows of which task are read; none where it is switched off."""
    if not st.toggle(
        "Quality on held-out rows of a task",
        value=True,
        key="evaluate-own",
        persist_state=KEEP,
        help="Perplexity, KL to the original and the score of the task's kind, on rows that no calibration drew.",
    ):
        return {"dataset": None}
    st.session_state.setdefault(f"{DATA}-part", "test")  # rows that calibrations do not take by themselves
    st.session_state.setdefault(f"{DATA}-split", "test")
    data = choose_data(choose_source(st, DATA), DATA)
    task = open_task(data)
    st.caption(sentence(f"{'about ' if task.stream else ''}{task.rows:,} rows in split {task.split} of {task.source}"))
    return {"dataset": data.pop("source"), **data}


def choose_settings() -> dict[str, Any]:
    """Rows, lengths and the like."""
    with st.expander("Settings", icon=":material/tune:"):
        one, two, three, four = st.columns(4)
        left, right, last = st.columns([2, 1, 1])
        return {
            "samples": one.number_input(
                "Rows", 1, 100_000, 64, key="evaluate-samples", persist_state=KEEP, help="More rows, shorter intervals."
            ),
            "max_length": two.number_input(
                "Longest row, tokens", 2, 32_768, 512, key="evaluate-length", persist_state=KEEP
            ),
            "batch_size": three.number_input("Rows per forward", 1, 256, 4, key="evaluate-batch", persist_state=KEEP),
            "seed": four.number_input("Seed", 0, 2**31 - 1, 0, key="evaluate-seed", persist_state=KEEP),
            "positions": left.radio(
                "Perplexity and KL count",
                list(POSITIONS),
                format_func=POSITIONS.__getitem__,
                horizontal=True,
                key="evaluate-positions",
                persist_state=KEEP,
            ),
            "max_new_tokens": right.number_input(
                "Longest answer, tokens",
                1,
                32_768,
                None,
                placeholder="by the kind of task",
                key="evaluate-answer",
                persist_state=KEEP,
            ),
            "dtype": last.selectbox(
                "Number format",
                ["auto", "float32", "bfloat16"],
                key="evaluate-dtype",
                persist_state=KEEP,
                help="auto: as it is stored on a GPU, float32 on a CPU.",
            ),
        }


def choose_standard() -> tuple[list[str], dict[str, Any], bool]:
    """Standard tasks by name or file, their settings, and whether they can be run here."""
    with st.expander("Standard tasks", icon=":material/checklist:"):
        one, two, three = st.columns([2, 1, 1])
        text = one.text_input(
            "Names, or YAML files",
            key="evaluate-standard",
            persist_state=KEEP,
            placeholder="arc_easy, hellaswag, /data/mine.yaml",
            help="Tasks of lm-evaluation-harness, which comes with the `lm-eval` extra. A YAML file may name Python "
            "functions of its own: give only files you would run as a program.",
        )
        settings = {
            "task_rows": two.number_input(
                "Rows of each", 1, 1_000_000, None, placeholder="all", key="evaluate-task-rows", persist_state=KEEP
            ),
            "shots": three.number_input(
                "Solved examples", 0, 64, None, placeholder="the task's own", key="evaluate-shots", persist_state=KEEP
            ),
        }
        there = find_spec("lm_eval") is not None
        if not there:
            st.info(
                "These need lm-evaluation-harness, which is not installed here: run `pip install 'slim[lm-eval]'` and "
                "start the app again.",
                icon=":material/extension:",
            )
    names = [name.strip() for name in text.split(",") if name.strip()]
    with plain_errors():
        _check_code(names)
    return names, settings, there or not names


def _check_code(tasks: list[str]) -> None:
    """Raises InputError for a task that may run Python of its own where others than the server's owner ask for it."""
    file = next((task for task in tasks if task.lower().endswith((".yaml", ".yml"))), None)
    if file is None:
        return
    if login.is_shared():
        raise InputError(
            f"task {file!r}: a YAML file may run Python of its own, so a shared dashboard takes none: name a task that "
            "the harness knows, or evaluate it with `slim evaluate` on this machine."
        )
    paths.local(file, "task")


def choose_speed() -> dict[str, Any] | None:
    """The settings of the timing; None where models are not timed."""
    if not st.toggle(
        "Speed and memory",
        key="evaluate-speed",
        persist_state=KEEP,
        help="All models are timed in turn in one run, so that whatever else this machine does slows all alike.",
    ):
        return None
    one, two, three, four = st.columns([2, 1, 1, 1])
    sizes = one.multiselect(
        "Rows at a time",
        [str(size) for size in BATCH_SIZES],
        ["1"],
        accept_new_options=True,
        filter_mode="prefix",  # 6 is not 16
        help="Batch sizes; others can be typed.",
        key="evaluate-sizes",
        persist_state=KEEP,
    )
    if not all(size.strip().isdecimal() for size in sizes):
        wrong = next(size for size in sizes if not size.strip().isdecimal())
        raise InputError(f"rows at a time: {wrong!r} is no whole number: write 8.")
    return {
        "batch_sizes": sorted({int(size) for size in sizes}),
        "tokens": two.number_input("Prompt, tokens", 1, 32_768, 256, key="evaluate-tokens", persist_state=KEEP),
        "steps": three.number_input("Decoded, tokens", 1, 4096, 32, key="evaluate-steps", persist_state=KEEP),
        "repeats": four.number_input("Timed runs", 1, 100, 5, key="evaluate-repeats", persist_state=KEEP),
    }


def request() -> tuple[dict[str, Any], bool]:
    """The form: the arguments of `evaluate` as a job takes them, and whether they are enough to start.

    The page ends with one sentence where a dataset or a setting cannot be used.
    """
    checkpoints, baseline = choose_models()
    rows = choose_rows()
    settings = choose_settings()
    standard, of_standard, can_run = choose_standard()
    with plain_errors():
        speed = choose_speed()
        checked = EvaluationSettings.checked(**settings, **of_standard, **({"pace": speed} if speed else {}))
    arguments = {
        "checkpoints": checkpoints,
        "baseline": baseline,
        **rows,
        "standard": standard,
        "speed": speed is not None,
        "settings": checked.model_dump(mode="json"),
    }
    measured = bool(rows["dataset"] or standard or speed)
    return arguments, bool(checkpoints) and measured and can_run
