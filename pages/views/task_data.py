"""The task data on a page: the dataset or an upload, the column mapping, and the exact text that the model reads."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.views.fields import KEEP
from pages.views.frame import plain_errors, sentence
from slim.calibration.request import CalibrateRequest
from slim.calibration.resources import workload
from slim.core import paths
from slim.core.errors import InputError, SlimError
from slim.core.markdown import escaped
from slim.core.records import ModelFacts, Omission
from slim.data import tasks, uploads
from slim.data.columns import BESIDE, as_text, fit_mapping, suggest_mapping
from slim.data.encode import SHORT
from slim.data.omissions import RowLeftOut
from slim.data.request import DataSource
from slim.data.sources import FORMATS, is_hub_id
from slim.data.tasks import TEMPLATES, Example, Task
from slim.models.tokenizer import facts_at_hand, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

SHOWN = 3
"""Rows whose text is shown where none is asked for."""
COUNTED = 256
"""Most rows whose tokens are counted on the page; of more rows, the first that are drawn."""
WHOLE = 2**31
"""A token count that no row reaches."""
TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:.875rem;max-height:22rem;overflow-y:auto"
COUNTED_STYLE = "background:rgba(15,148,136,.16);border-bottom:2px solid #0f9488"
CUT_STYLE = "opacity:.65;text-decoration:line-through"
IN_A_LINE = 3
"""Select boxes of columns side by side."""
NO_COLUMN = "None of them"
LONGEST_VALUE = 200
"""Characters of a value that is not read."""


def choose_source(place: Any, key: str) -> str:
    """Ask for a bundled dataset, an earlier upload, or any other name."""
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
    """Ask for the fields of a `DataSource`, which are guessed and can be changed in an expander.

    `key` is that of the select box of `choose_source`. Ends the page with one sentence where the data cannot be used.
    """
    data = DataSource(source=source).model_dump()
    details = st.expander("Your own file, columns and prompt", icon=":material/table_rows:")
    with details:
        left, right = st.columns(2)
        left.file_uploader(
            "Upload rows",
            [ending.removeprefix(".") for ending in FORMATS],
            key=f"{key}-upload",
            on_change=_keep_upload,
            args=(key,),
            help="It is saved in the workspace. For a file beyond the limit, enter its path as task data instead.",
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


def options_of(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `DataSource` as a request names them."""
    return {"dataset" if name == "source" else name: value for name, value in data.items()}


def _keep_upload(key: str) -> None:
    uploaded = st.session_state[f"{key}-upload"]
    if uploaded is None:
        return
    try:
        st.session_state[key] = str(uploads.keep_upload(uploaded.name, uploaded.getbuffer()))
    except SlimError as error:
        st.session_state[f"{key}-problem"] = str(error)


def _where(source: str, key: str) -> dict[str, str | None]:
    """Ask for the split of a bundled dataset, and for a Hub dataset's configuration and revision as well."""
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
    """Ask for the template, the column mapping and the wording; the guess is the initial value."""
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
    layout = suggest_mapping(template, names)
    likely = layout.columns
    places = [place for _ in range(0, len(template.roles), IN_A_LINE) for place in st.columns(IN_A_LINE)]
    columns = {
        role: _choose_column(place, role, names, likely.get(role), role in template.optional, f"{key}-{role}")
        for place, role in zip(places, template.roles, strict=False)
    }
    found = {"template": name, "columns": {role: column for role, column in columns.items() if column}}
    if name == "chat":
        return found
    placeholders = [
        *(role for role in template.roles if role not in BESIDE),
        *(["labels"] if "label" in template.roles else []),
        *names,
    ]
    prompt = st.text_area(
        "Prompt",
        tasks.wording(where["source"], layout),
        key=f"{key}-prompt",
        persist_state=KEEP,
        placeholder="None: the text alone",
        help="In braces a role or a column: "
        + ", ".join(escaped(f"{{{name}}}") for name in dict.fromkeys(placeholders)),
    )
    return found | {"prompt": prompt}


def _choose_column(
    place: Any, role: str, names: tuple[str, ...], likely: str | None, optional: bool, key: str
) -> str | None:
    """Ask for the column of a role; an optional role need not have one."""
    options = ["", *names] if optional else list(names)
    first = options.index(likely) if likely in options else 0 if optional else None
    return place.selectbox(
        f"Column: {role}",
        options,
        index=first,
        format_func=lambda name: name or NO_COLUMN,
        placeholder="Choose a column",
        key=key,
        persist_state=KEEP,
    )


def open_task(data: dict[str, Any]) -> Task:
    """The task, from a small cache in memory. Ends the page with one sentence where it cannot be read."""
    with plain_errors():
        return _task(data, _written(data["source"]))


def _written(source: str) -> int:
    """The modification time of a file, as a part of cache keys."""
    path = paths.local(source, "dataset")
    return path.stat().st_mtime_ns if path.is_file() else 0


@st.cache_data(max_entries=8, show_spinner="Reading the dataset")
def _columns(source: str, config: str | None, split: str | None, revision: str | None, written: int) -> tuple[str, ...]:
    return tasks.columns_of(source, config, split, revision)


@st.cache_resource(max_entries=2, show_spinner="Reading the dataset")
def _task(data: dict[str, Any], written: int) -> Task:
    return tasks.load_task(DataSource.checked(**data))


@st.cache_resource(max_entries=2, show_spinner="Reading the tokenizer")
def _tokenizer(model: str) -> "PreTrainedTokenizerBase":
    return load_tokenizer(model)


def show_counts(task: Task, request: CalibrateRequest) -> None:
    """Show in one line the rows and tokens, the truncation, and the dry-run estimate of the calibration."""
    with plain_errors():
        counts = _counts(task, request.model_dump_json(), _written(task.source), request)
    of = f"about {task.rows:,}" if task.stream else f"{task.rows:,}"
    words = [f"{min(request.samples, task.rows):,} of {of} rows"]
    if task.stream or counts.looked_at < min(request.samples, task.rows):
        words.append(f"by the first {counts.looked_at:,}")
    words.append(f"{sum(counts.lengths):,} tokens")
    words.append(
        f"{counts.truncated:,} rows are cut, {counts.lost:,} tokens lost" if counts.truncated else "none is cut"
    )
    with plain_errors():
        facts = _facts(str(request.model))
    if facts is None:
        words.append("the estimate follows once the model is unpacked")
    else:
        from slim.models.load import resolve_device, resolve_dtype

        repeated = -(-min(request.samples, task.rows) // max(1, len(counts.lengths)))
        device, dtype = resolve_device(request.device), resolve_dtype(request.dtype)
        work = workload(facts, counts.lengths * repeated, request, device, dtype)
        words.append(f"about {work.time()}, {work.memory / 1e9:.1f} GB of memory")
        if work.too_much:
            st.warning(work.too_much, icon=":material/memory:")
    st.caption(" · ".join(words))
    show_reading(task, counts.omissions)


def show_reading(task: Task, omissions: Sequence[Omission] = ()) -> None:
    """Show how the columns were read, and which rows and parts of them are not; `omissions` are of the drawn rows."""
    st.caption(" ".join(f"{escaped(said)}." for said in tasks.reading_of(task, omissions)))


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
    omissions: tuple[Omission, ...]


@st.cache_data(max_entries=32, show_spinner=False)
def _counts(_task: Task, asked: str, written: int, _request: CalibrateRequest) -> Counts:
    drawn = _drawn(_task, _request)
    encoded = tasks.encode(drawn, _tokenizer(str(_request.model)), _request.max_length, _request.positions)
    return Counts(len(drawn), encoded.lengths, encoded.truncated_rows, encoded.lost_tokens, encoded.omissions)


def _drawn(task: Task, request: CalibrateRequest) -> list[Example]:
    """The rows that a calibration would use, the first of them where they are many or the source is large."""
    if task.stream:
        return list(task.examples[: min(request.samples, COUNTED)])
    return tasks.choose(task, request.samples, request.seed)[:COUNTED]


def show_text(task: Task, request: CalibrateRequest) -> None:
    """Show the exact text of a row, chat template and special tokens included, and what of it is not read.

    Any row can be asked for by its number; the first drawn rows are shown otherwise.
    """
    with plain_errors():
        tokenizer = _tokenizer(str(request.model))
    number = st.number_input(
        "Row",
        min_value=1,
        value=None,
        placeholder="The first rows drawn",
        help="The number of any row; in a text file that of its line.",
        key="cal-row",
        persist_state=KEEP,
        width=220,
    )
    st.caption(
        "Special tokens included. Underlined tokens count for loss and KL; struck-out ones are beyond the longest row."
    )
    if number is None:
        for example in _drawn(task, request)[:SHOWN]:
            _show_example(example, tokenizer, request)
        return
    with plain_errors():
        row = tasks.row_at(task, int(number))
        if isinstance(row.example, Example):
            _show_example(row.example, tokenizer, request)
        else:
            st.warning(f"Row {number:,} is left out: {escaped(row.example)}.", icon=":material/block:")
    for name, value in row.unread.items():
        text = as_text(value)
        short = text[:LONGEST_VALUE] + ("…" if len(text) > LONGEST_VALUE else "")
        st.caption(f"Not read, column {escaped(repr(name))}: {escaped(short) or 'empty'}")


def _show_example(example: Example, tokenizer: "PreTrainedTokenizerBase", request: CalibrateRequest) -> None:
    """Show the tokens of one row in three parts: those that do not count, those that do, and those that are cut."""
    try:
        whole = tasks.encode([example], tokenizer, WHOLE, request.positions)
    except InputError:
        st.warning(f"Row {example.row:,} is left out: {escaped(_why(example, tokenizer))}.", icon=":material/block:")
        return
    row, start = whole.rows[0], whole.start(0)
    end = min(request.max_length, len(row))
    parts = (("", row[: min(start, end)]), (COUNTED_STYLE, row[start:end]), (CUT_STYLE, row[end:]))
    with st.container(border=True):
        st.html(
            f"<div style='{TEXT}'>"
            + "".join(f"<span style='{style}'>{_decoded(tokenizer, ids)}</span>" for style, ids in parts)
            + "</div>"
        )
        words = [f"row {example.row:,}", f"{len(row):,} tokens"]
        if len(row) > end:
            words.append(f"{len(row) - end:,} of them cut")
        if start >= end:
            words.append("left out: no token that counts remains")
        words += [one.reason for one in whole.omissions]
        st.caption(escaped(sentence(", ".join(words))))


def _why(example: Example, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the reason why a row that has no tokens to predict is left out."""
    try:
        tasks.text_of(example, tokenizer)
    except RowLeftOut as error:
        return str(error)
    return SHORT


def _decoded(tokenizer: "PreTrainedTokenizerBase", ids: "Tensor") -> str:
    return html.escape(str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)))
