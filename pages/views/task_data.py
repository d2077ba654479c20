"""The task data on a page: which dataset, an upload, which column is what, and the exact text the model will read."""

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pages.views.frame import escaped, plain_errors, sentence
from slim.calibration.facts import CalibrationSettings
from slim.calibration.resources import workload
from slim.core import paths
from slim.core.errors import InputError, SlimError
from slim.core.records import ModelFacts
from slim.data import tasks, uploads
from slim.data.columns import fit_mapping, suggest_mapping
from slim.data.sources import FORMATS, is_hub_id
from slim.data.tasks import TEMPLATES, Example, Positions, Task
from slim.models.load import resolve_device, resolve_dtype
from slim.models.tokenizer import facts_at_hand, load_tokenizer

SHOWN = 3
"""Rows whose text is shown."""
COUNTED = 256
"""Rows whose tokens are counted on the page; of more, the first that are drawn."""
WHOLE = 2**31
"""More tokens than any row has."""
KEEP = "session"
TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:.875rem;max-height:22rem;overflow-y:auto"


def choose_source(place: Any, key: str) -> str:
    """A select box over the bundled datasets and earlier uploads that takes any other name as well."""
    kept = [str(path) for path in uploads.kept_uploads()]
    return place.selectbox(
        "Task data",
        [*(f"bundled:{name}" for name in (*tasks.BUNDLED, tasks.GENERAL)), *kept],
        format_func=lambda source: Path(source).name if source in kept else source,
        accept_new_options=True,
        help="A bundled dataset, a .jsonl, .csv, .parquet or .txt file, or a Hub id. The box below takes an upload.",
        key=key,
        persist_state=KEEP,
    )


def choose_data(source: str, key: str) -> dict[str, Any]:
    """The arguments of `tasks.load_task`: everything about the data, guessed and open to change in an expander.

    `key` is that of the select box of `choose_source`. Ends the page with one sentence where the data cannot be used.
    """
    data: dict[str, Any] = dict.fromkeys(("config", "split", "revision", "template", "columns", "prompt"))
    data["source"] = source
    details = st.expander("Your own file, columns and prompt", icon=":material/table_rows:")
    with details:
        left, right = st.columns(2)
        left.file_uploader(
            "Upload rows",
            [ending.removeprefix(".") for ending in FORMATS],
            key=f"{key}-upload",
            on_change=_keep_upload,
            args=(key,),
            help="It is kept in the workspace. For a file beyond the limit type its path as task data instead.",
        )
        with right, plain_errors():
            data |= _where(source, key)
    if problem := st.session_state.pop(f"{key}-problem", None):
        st.error(sentence(problem), icon=":material/error:")
    where = {name: data[name] for name in ("source", "config", "split", "revision")}
    with plain_errors():
        names = _columns(**where, written=_written(source))
    with details:
        data |= _mapping(where, names, f"{key}-{source}")
    return data


def _keep_upload(key: str) -> None:
    uploaded = st.session_state[f"{key}-upload"]
    if uploaded is None:
        return
    try:
        st.session_state[key] = str(uploads.keep_upload(uploaded.name, uploaded.getbuffer()))
    except SlimError as error:
        st.session_state[f"{key}-problem"] = str(error)


def _where(source: str, key: str) -> dict[str, str | None]:
    """What else a source needs: a bundled dataset its split, one of the Hub also its configuration and revision."""
    path = paths.local(source, "dataset")
    if path.is_file():
        size = path.stat().st_size
        st.caption(f"{escaped(path.name)}, " + (f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"))
        return {}
    if source.startswith("bundled:"):
        return {"split": st.selectbox("Split", tasks.SPLITS, key=f"{key}-part", persist_state=KEEP)}
    if not is_hub_id(source):
        return {}
    fields = {"config": "Configuration", "split": "Split", "revision": "Revision"}
    hints = {"config": "where there are several", "split": "train", "revision": "the newest"}
    return {
        name: st.text_input(title, key=f"{key}-{name}", persist_state=KEEP, placeholder=hints[name]) or None
        for name, title in fields.items()
    }


def _mapping(where: dict[str, Any], names: tuple[str, ...], key: str) -> dict[str, Any]:
    """The template, which column is what, and the wording; the guess is chosen already."""
    try:
        guess: str | None = fit_mapping(names).template.name
    except InputError:
        guess = None
    options = list(TEMPLATES)
    name = st.selectbox(
        "Template",
        options,
        index=None if guess is None else options.index(guess),
        format_func=lambda option: TEMPLATES[option].title,
        placeholder="Choose what the rows are",
        key=f"{key}-template",
        persist_state=KEEP,
    )
    if name is None:
        return {}
    template, key = TEMPLATES[name], f"{key}-{name}"
    likely = suggest_mapping(template, names).columns
    columns = {
        role: place.selectbox(
            f"Column: {role}",
            names,
            index=names.index(likely[role]) if role in likely else None,
            placeholder="Choose a column",
            key=f"{key}-{role}",
            persist_state=KEEP,
        )
        for place, role in zip(st.columns(max(2, len(template.roles))), template.roles, strict=False)
    }
    found = {"template": name, "columns": {role: column for role, column in columns.items() if column}}
    if name == "chat":
        return found
    placeholders = [*template.roles, *(["labels"] if "label" in template.roles else []), *names]
    prompt = st.text_area(
        "Prompt",
        tasks.wording(where["source"], template),
        key=f"{key}-prompt",
        persist_state=KEEP,
        placeholder="None: the text alone",
        help="In braces a role or a column: "
        + ", ".join(escaped(f"{{{name}}}") for name in dict.fromkeys(placeholders)),
    )
    return found | {"prompt": prompt}


def open_task(data: dict[str, Any]) -> Task:
    """The task, kept in memory while few others are. Ends the page with one sentence where it cannot be had."""
    with plain_errors():
        columns = None if data["columns"] is None else tuple(sorted(data["columns"].items()))
        return _task(**(data | {"columns": columns}), written=_written(data["source"]))


def _written(source: str) -> int:
    """When a file was last changed, so that what is kept of it is not used after that."""
    path = paths.local(source, "dataset")
    return path.stat().st_mtime_ns if path.is_file() else 0


@st.cache_data(max_entries=8, show_spinner="Reading the dataset")
def _columns(source: str, config: str | None, split: str | None, revision: str | None, written: int) -> tuple[str, ...]:
    return tasks.columns_of(source, config, split, revision)


@st.cache_resource(max_entries=2, show_spinner="Reading the dataset")
def _task(columns: tuple[tuple[str, str], ...] | None, written: int, **data: Any) -> Task:
    return tasks.load_task(columns=None if columns is None else dict(columns), **data)


@st.cache_resource(max_entries=2, show_spinner="Reading the tokenizer")
def _tokenizer(model: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(model)


@dataclass(frozen=True)
class Reading:
    """What decides how the rows look to the model."""

    model: str
    samples: int
    max_length: int
    seed: int
    positions: Positions


def show_counts(task: Task, data: dict[str, Any], reading: Reading, settings: CalibrationSettings) -> None:
    """One line: how many rows and tokens, what is cut, and what the calibration will take."""
    with plain_errors():
        counts = _counts(task, _key(data), reading)
    of = f"about {task.rows:,}" if task.stream else f"{task.rows:,}"
    words = [f"{min(reading.samples, task.rows):,} of {of} rows"]
    if task.stream or counts.looked_at < min(reading.samples, task.rows):
        words.append(f"by the first {counts.looked_at:,}")
    words.append(f"{sum(counts.lengths):,} tokens")
    words.append(
        f"{counts.truncated:,} rows are cut, {counts.lost:,} tokens lost" if counts.truncated else "none is cut"
    )
    if counts.left_out:
        words.append(f"{counts.left_out:,} predict nothing and are left out")
    with plain_errors():
        facts = _facts(reading.model)
    if facts is None:
        words.append("what it takes is known once the model is unpacked")
    else:
        repeated = -(-min(reading.samples, task.rows) // max(1, len(counts.lengths)))
        device, dtype = resolve_device(settings.device), resolve_dtype(settings.dtype)
        work = workload(facts, counts.lengths * repeated, settings, device, dtype)
        words.append(f"about {work.time()}, {work.memory / 1e9:.1f} GB of memory")
        if work.too_much:
            st.warning(work.too_much, icon=":material/memory:")
    st.caption(" · ".join(words))


@st.cache_resource(max_entries=4, show_spinner=False)
def _facts(model: str) -> ModelFacts | None:
    return facts_at_hand(model)


@dataclass(frozen=True)
class Counts:
    """The drawn rows as tokens."""

    looked_at: int
    lengths: tuple[int, ...]
    truncated: int
    lost: int
    left_out: int


@st.cache_data(max_entries=32, show_spinner=False)
def _counts(_task: Task, data: str, reading: Reading) -> Counts:
    drawn = _drawn(_task, reading)
    encoded = tasks.encode(drawn, _tokenizer(reading.model), reading.max_length, reading.positions)
    return Counts(len(drawn), encoded.lengths, encoded.truncated_rows, encoded.lost_tokens, encoded.left_out)


def _drawn(task: Task, reading: Reading) -> list[Example]:
    """The rows that a calibration would take, the first of them where they are many or the source is large."""
    if task.stream:
        return list(task.examples[: min(reading.samples, COUNTED)])
    return tasks.choose(task, reading.samples, reading.seed)[:COUNTED]


def show_text(task: Task, reading: Reading) -> None:
    """The exact text of the first drawn rows, chat template and special tokens included."""
    with plain_errors():
        tokenizer = _tokenizer(reading.model)
        whole = tasks.encode(_drawn(task, reading)[:SHOWN], tokenizer, WHOLE, reading.positions)
    st.caption(
        f"The first rows {'of the file' if task.stream else 'drawn'}, special tokens included. "
        "Pale tokens do not count for loss and KL; what is struck out lies beyond the longest row."
    )
    for index, row in enumerate(whole.rows):
        start, end = whole.start(index), min(reading.max_length, len(row))
        parts = (
            ("opacity:.55", row[: min(start, end)]),
            ("", row[start:end]),
            ("opacity:.4;text-decoration:line-through", row[end:]),
        )
        with st.container(border=True):
            st.html(
                f"<div style='{TEXT}'>"
                + "".join(f"<span style='{style}'>{_decoded(tokenizer, ids)}</span>" for style, ids in parts)
                + "</div>"
            )
            st.caption(f"{len(row):,} tokens" + (f", {len(row) - end:,} of them cut" if len(row) > end else ""))


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> str:
    return html.escape(str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)))


def _key(data: dict[str, Any]) -> str:
    return json.dumps([data, _written(data["source"])])
