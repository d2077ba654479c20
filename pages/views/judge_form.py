"""What a person asks of a judge: which two models, on what rows, who judges, and what that will take."""

import json
import os
from typing import Any

import streamlit as st

from pages.views.checkpoints import checkpoint_names, cut_from
from pages.views.frame import plain_errors, sentence
from pages.views.task_data import choose_data, choose_source, open_task
from slim.core import paths
from slim.data.tasks import Example, Task
from slim.evaluation.answers import AnswerSettings
from slim.judging.cost import estimate
from slim.judging.endpoint import KEYS, UNNAMED, Endpoint, base_url
from slim.judging.prompt import RUBRIC
from slim.judging.reference import ReferenceMeasure, referee
from slim.models import bundled
from slim.pruning import held_out

KEEP = "session"
DATA = "judge-data"
REFERENCE, ENDPOINT, LOCAL = "The dataset's own answers", "An endpoint", "A local model, started for you"
MEASURES: dict[ReferenceMeasure, str] = {
    "auto": "As the data asks for",
    "rouge-l": "ROUGE-L",
    "exact": "Exact match",
}


def request() -> tuple[dict[str, Any], bool]:
    """The form: the arguments of `judge` as a job takes them, and whether they are enough to start.

    The page ends with one sentence where a dataset or a setting cannot be used.
    """
    original, pruned = _models()
    st.session_state.setdefault(f"{DATA}-part", "test")  # rows that calibrations do not take by themselves
    st.session_state.setdefault(f"{DATA}-split", "test")
    data = choose_data(choose_source(st, DATA), DATA)
    samples, settings = _answers()
    with plain_errors():
        asked, enough = _judge()
    asked["min_coverage"] = _coverage()
    with plain_errors():
        _tell(open_task(data), data, (original, pruned), samples, settings, asked)
    arguments = {"original": original, "pruned": pruned, "dataset": data.pop("source"), **data, "samples": samples}
    arguments |= {"settings": settings.model_dump(), **asked}
    return arguments, enough and bool(original and pruned)


def _models() -> tuple[str | None, str | None]:
    """The original and the pruned model, as far as they are known."""
    names = checkpoint_names()
    left, right = st.columns(2)
    pruned = right.selectbox(
        "Pruned model",
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
        "Original",
        [bundled.NAME],
        index=None,
        accept_new_options=True,
        placeholder=f"What it was cut from{f': {source}' if source else ''}",
        key="judge-original",
        persist_state=KEEP,
    )
    if problem and not original:
        st.warning(sentence(problem.replace("baseline: ", "", 1)), icon=":material/help:")
    with plain_errors():
        for typed in filter(None, (original, pruned)):
            paths.local(typed, "model")
    return original or source, pruned


def _answers() -> tuple[int, AnswerSettings]:
    """How many rows are answered, and how."""
    one, two, three, four, five = st.columns(5, vertical_alignment="bottom")
    samples = one.number_input(
        "Rows", 1, 100_000, 50, key="judge-samples", persist_state=KEEP, help="More rows, shorter intervals."
    )
    length = two.number_input("Longest answer, tokens", 1, 32_768, 128, key="judge-length", persist_state=KEEP)
    batch = three.number_input("Answered at a time", 1, 1024, 16, key="judge-batch", persist_state=KEEP)
    temperature = four.number_input(
        "Temperature", 0.0, 5.0, 0.0, 0.1, key="judge-temperature", persist_state=KEEP, help="0: greedy."
    )
    seed = five.number_input("Seed", 0, 2**31 - 1, 0, key="judge-seed", persist_state=KEEP)
    return samples, AnswerSettings(max_new_tokens=length, batch_size=batch, temperature=temperature, seed=seed)


def _judge() -> tuple[dict[str, Any], bool]:
    """Who judges and how it is asked, as arguments of `judge`, and whether that is enough."""
    who = st.segmented_control(
        "Judge", [REFERENCE, ENDPOINT, LOCAL], default=REFERENCE, required=True, key="judge-who", persist_state=KEEP
    )
    if who == REFERENCE:
        measure = st.selectbox(
            "Closer to the dataset's own answer by",
            list(MEASURES),
            format_func=MEASURES.__getitem__,
            help="Exact match for labels, choices and results, else ROUGE-L, which counts shared words.",
            key="judge-measure",
            persist_state=KEEP,
            width=320,
        )
        return {"measure": measure}, True
    asked = _endpoint() if who == ENDPOINT else _local()
    chosen = asked.get("endpoint") or asked.get("local_judge")
    asked["asking"] = _asking(who == LOCAL)
    rubric = st.text_area(
        "Criteria",
        RUBRIC,
        height=160,
        help="What the judge goes by. Left empty, these are used again.",
        key="judge-rubric",
        persist_state=KEEP,
    ).strip()
    asked["rubric"] = None if rubric in ("", RUBRIC) else rubric
    return asked, bool(chosen)


def _endpoint() -> dict[str, Any]:
    """Where the endpoint is, its model's name and its prices. Never its key."""
    one, two, three, four = st.columns([3, 2, 1, 1], vertical_alignment="bottom")
    url = one.text_input(
        "Endpoint",
        placeholder="https://host/v1",
        help="OpenAI-compatible: its base URL, or with /chat/completions.",
        key="judge-url",
        persist_state=KEEP,
    ).strip()
    model = two.text_input(
        "Judge model", placeholder="the endpoint's only one", key="judge-model", persist_state=KEEP
    ).strip()
    help_of_prices = "Of a million tokens, in any currency. Left empty, no price is told."
    prices = [
        place.number_input(title, 0.0, None, None, key=key, persist_state=KEEP, help=help_of_prices)
        for place, title, key in ((three, "Price in", "judge-price-in"), (four, "Price out", "judge-price-out"))
    ]
    held = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
    state = f"`{held}` is set" if held else "neither is set, which will do for an endpoint on this machine"
    st.caption(
        f"The key is read from `{KEYS[0]}` or `{KEYS[1]}` of the environment that this app was started in: {state}. "
        "It is kept in no file and shown nowhere."
    )
    asked: dict[str, Any] = {"endpoint": base_url(url) if url else None, "judge_model": model or None}
    if any(price is not None for price in prices):
        asked["prices"] = [price or 0.0 for price in prices]
    return asked


def _local() -> dict[str, Any]:
    """The model that is served on this machine while the job runs."""
    model = st.selectbox(
        "Judge model",
        [bundled.NAME],
        index=None,
        accept_new_options=True,
        placeholder="A folder or a Hub id",
        help="It is served on this machine while the job runs, and stopped with it. No key is needed.",
        key="judge-local",
        persist_state=KEEP,
    )
    if model == bundled.NAME:
        st.caption("The bundled model is too small to judge: it mostly prefers a place. Take it for trying this out.")
    if model:
        paths.local(model, "local_judge")
    return {"local_judge": model}


def _asking(local: bool) -> dict[str, Any]:
    """How the judge is asked; what is left to its kind is left out."""
    one, two, three, four = st.columns(4, vertical_alignment="bottom")
    given = {
        "concurrency": one.number_input(
            "Calls at a time",
            1,
            1000,
            None,
            placeholder="1" if local else "16",
            key="judge-concurrency",
            persist_state=KEEP,
        ),
        "timeout": two.number_input(
            "Timeout, seconds",
            0.1,
            86_400.0,
            None,
            placeholder="600" if local else "60",
            key="judge-timeout",
            persist_state=KEEP,
        ),
        "retries": three.number_input("Retries", 0, 100, 5, key="judge-retries", persist_state=KEEP),
        "max_tokens": four.number_input(
            "Longest verdict, tokens", 1, 32_768, 512, key="judge-max-tokens", persist_state=KEEP
        ),
    }
    return {name: value for name, value in given.items() if value is not None}


def _coverage() -> float:
    percent = st.slider(
        "A winner is named where at least so many pairs were judged, percent",
        0,
        100,
        80,
        5,
        key="judge-coverage",
        persist_state=KEEP,
        width=420,
    )
    return percent / 100


def _tell(
    task: Task,
    data: dict[str, Any],
    models: tuple[str | None, str | None],
    samples: int,
    settings: AnswerSettings,
    asked: dict[str, Any],
) -> None:
    """In one line what it will take, as the command says it."""
    sources = [source for source in models if source]
    if task.stream:
        rows, why = task.examples[:samples], f"about, by the first rows; split {task.split}"
    else:
        rows, why = _drawn(task, json.dumps([data, task.rows]), samples, settings.seed, tuple(reversed(sources)))
    words = f"{len(rows):,} pairs, "
    if "measure" in asked:
        judge = referee(task.kind, [example.answer for example in task.examples], asked["measure"])
        words += f"no calls: {judge.name}."
    else:
        judge = Endpoint.checked(url=asked.get("endpoint") or "", model=UNNAMED, **asked["asking"])
        words += estimate(rows, settings, judge, asked["rubric"] or RUBRIC, asked.get("prices")).sentence()
    st.caption(f"{sentence(words)} {sentence(f'rows: {why}')}.", help="Upper bounds: nothing is asked twice.")


@st.cache_data(max_entries=8, show_spinner=False)
def _drawn(_task: Task, data: str, samples: int, seed: int, sources: tuple[str, ...]) -> tuple[list[Example], str]:
    return held_out.draw(_task, samples, seed, sources)
