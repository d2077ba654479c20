"""The form of a judgement: two models, the rows they answer, the judge, and a dry-run estimate."""

import os
from typing import Any

import streamlit as st

from pages.views.checkpoints import checkpoint_names, cut_from
from pages.views.fields import KEEP, ask
from pages.views.frame import plain_errors, sentence
from pages.views.task_data import choose_data, choose_source, open_task, options_of
from pages.views.task_rows import show_reading
from slim.core import paths
from slim.data.tasks import Example, Task
from slim.evaluation.settings import AnswerSettings
from slim.judging.address import KEYS
from slim.judging.cost import estimate
from slim.judging.endpoint import UNNAMED, Endpoint
from slim.judging.prompt import RUBRIC
from slim.judging.reference import ReferenceMeasure, referee
from slim.judging.request import JudgeRequest
from slim.models import bundled
from slim.pruning import held_out

DATA = "judge-data"
REFERENCE, ENDPOINT, LOCAL = "The dataset's own answers", "An endpoint", "A local model, started for you"
MEASURES: dict[ReferenceMeasure, str] = {
    "auto": "As the data asks for",
    "rouge-l": "ROUGE-L",
    "exact": "Exact match",
}


def request() -> JudgeRequest | None:
    """Show the form, and return its request; None while a model or the judge is not chosen.

    The page ends with one sentence where a dataset or a setting cannot be used.
    """
    original, pruned = _models()
    st.session_state.setdefault(f"{DATA}-part", "test")  # rows that calibrations do not use by default
    st.session_state.setdefault(f"{DATA}-split", "test")
    data = choose_data(choose_source(st, DATA), DATA)
    answers = _answers()
    with plain_errors():
        judge, chosen = _judge()
    models = {"original": original, "pruned": pruned or ""}  # without a name it is only estimated
    with plain_errors():
        asked = JudgeRequest.asked(**models, **options_of(data), **answers, **judge, min_coverage=_coverage())
        task = open_task(data)
        show_reading(task)
        _show_estimate(asked, task, [name for name in (pruned, original) if name], "measure" in judge)
    return asked if chosen and original and pruned else None


def _models() -> tuple[str | None, str | None]:
    """Ask for the original and the pruned model; None where one is not chosen."""
    names = checkpoint_names()
    left, right = st.columns(2)
    pruned = right.selectbox(
        JudgeRequest.option("pruned").title,
        list(names),
        index=0 if names else None,
        format_func=lambda source: names.get(source) or str(source),
        accept_new_options=True,
        placeholder="Prune a model first, or type a folder or a Hub id",
        help="A checkpoint of the workspace, or any other model: a folder, a .gguf file or a Hub id.",
        key="judge-pruned",
        persist_state=KEEP,
    )
    source, problem = cut_from([pruned] if pruned else [])
    original = left.selectbox(
        JudgeRequest.option("original").title,
        [bundled.NAME],
        index=None,
        accept_new_options=True,
        placeholder=f"The model it was cut from{f': {source}' if source else ''}",
        key="judge-original",
        persist_state=KEEP,
    )
    if problem and not original:
        st.warning(sentence(problem.replace("baseline: ", "", 1)), icon=":material/help:")
    with plain_errors():
        for typed in filter(None, (original, pruned)):
            paths.local(typed, "model")
    return original or source, pruned


def _answers() -> dict[str, Any]:
    """Ask for the rows and the settings of answers."""
    columns = st.columns(6, vertical_alignment="bottom")
    keys = {
        "samples": "judge-samples",
        "max_new_tokens": "judge-length",
        "batch_size": "judge-batch",
        "temperature": "judge-temperature",
        "repetition_penalty": "judge-penalty",
        "seed": "judge-seed",
    }
    return {name: ask(JudgeRequest, name, key, place) for place, (name, key) in zip(columns, keys.items(), strict=True)}


def _judge() -> tuple[dict[str, Any], bool]:
    """Ask for the judge; return its options and whether one is chosen. Raises InputError for a forbidden path."""
    who = st.segmented_control(
        "Judge", [REFERENCE, ENDPOINT, LOCAL], default=REFERENCE, required=True, key="judge-who", persist_state=KEEP
    )
    if who == REFERENCE:
        help_of_measure = "Exact match for labels, choices and results, else ROUGE-L, which counts shared words."
        measure = ask(JudgeRequest, "measure", "judge-measure", labels=MEASURES, help=help_of_measure, width=320)
        return {"measure": measure}, True
    asked = _endpoint() if who == ENDPOINT else _local()
    chosen = bool(asked.get("endpoint") or asked.get("local_judge"))
    asked |= _asking(who == LOCAL)
    rubric = st.text_area(
        JudgeRequest.option("rubric").title,
        RUBRIC,
        height=160,
        help="The judge applies them. Left empty, these defaults are used.",
        key="judge-rubric",
        persist_state=KEEP,
    ).strip()
    return asked | {"rubric": None if rubric in ("", RUBRIC) else rubric}, chosen


def _endpoint() -> dict[str, Any]:
    """Ask for the endpoint's address, its model's name and its prices, never for its key."""
    one, two, three, four = st.columns([3, 2, 1, 1], vertical_alignment="bottom")
    asked = {
        "endpoint": ask(JudgeRequest, "endpoint", "judge-url", one, placeholder="https://host/v1"),
        "judge_model": ask(JudgeRequest, "judge_model", "judge-model", two, placeholder="the endpoint's only one"),
        "price_in": ask(JudgeRequest, "price_in", "judge-price-in", three),
        "price_out": ask(JudgeRequest, "price_out", "judge-price-out", four),
    }
    held = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
    state = f"`{held}` is set" if held else "neither is set, which is enough for an endpoint on this machine"
    st.caption(
        f"The key is read from `{KEYS[0]}` or `{KEYS[1]}` of the environment that this app was started in: {state}. "
        "It is never saved or shown."
    )
    return asked


def _local() -> dict[str, Any]:
    """Ask for the model that is served on this machine while the job runs."""
    model = st.selectbox(
        JudgeRequest.option("local_judge").title,
        [bundled.NAME],
        index=None,
        accept_new_options=True,
        placeholder="A folder or a Hub id",
        help="It is served on this machine while the job runs, and stopped with it. No key is needed.",
        key="judge-local",
        persist_state=KEEP,
    )
    if model == bundled.NAME:
        st.caption(
            "The bundled model is too small to judge: it mostly prefers a position. Use it only to try this out."
        )
    if model:
        paths.local(model, "local_judge")
    return {"local_judge": model}


def _asking(local: bool) -> dict[str, Any]:
    """Ask for the settings of calls; empty ones have the defaults of the judge's kind."""
    one, two, three, four = st.columns(4, vertical_alignment="bottom")
    calls, seconds = ("1", "600") if local else ("16", "60")
    return {
        "concurrency": ask(JudgeRequest, "concurrency", "judge-concurrency", one, placeholder=calls),
        "timeout": ask(JudgeRequest, "timeout", "judge-timeout", two, placeholder=seconds),
        "retries": ask(JudgeRequest, "retries", "judge-retries", three),
        "max_tokens": ask(JudgeRequest, "max_tokens", "judge-max-tokens", four),
    }


def _coverage() -> float:
    percent = st.slider(
        "A winner is named where at least so many pairs were judged, percent",
        0,
        100,
        round(100 * JudgeRequest.option("min_coverage").default),
        5,
        key="judge-coverage",
        persist_state=KEEP,
        width=420,
    )
    return percent / 100


def _show_estimate(asked: JudgeRequest, task: Task, sources: list[str], by_reference: bool) -> None:
    """Show the dry-run estimate in one line, in the words of the command."""
    if task.stream:
        rows, why = task.examples[: asked.samples], f"about, by the first rows; split {task.split}"
    else:
        data = f"{asked.data.model_dump_json()}/{task.rows}"
        rows, why = _drawn(task, data, asked.samples, asked.seed, tuple(sources))
    words = f"{len(rows):,} pairs, "
    if by_reference:
        judge = referee(task.kind, [example.answer for example in task.examples], asked.measure)
        words += f"no calls: {judge.name}."
    else:
        judge = Endpoint.checked(url=asked.endpoint or "", model=UNNAMED, **asked.asking)
        settings = asked.part(AnswerSettings)
        words += estimate(rows, settings, judge, asked.rubric or RUBRIC, asked.prices).sentence()
    st.caption(f"{sentence(words)} {sentence(f'rows: {why}')}.", help="Upper bounds: nothing is asked twice.")


@st.cache_data(max_entries=8, show_spinner=False)
def _drawn(_task: Task, data: str, samples: int, seed: int, sources: tuple[str, ...]) -> tuple[list[Example], str]:
    return held_out.draw(_task, samples, seed, sources)
