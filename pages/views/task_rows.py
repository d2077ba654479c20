"""The rows of a task as the model reads them, on a page: their counts, what of them is not read, and the exact text."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from pages.views.fields import KEEP
from pages.views.frame import plain_errors, sentence
from pages.views.task_data import modified
from slim.calibration.request import CalibrateRequest
from slim.calibration.resources import workload
from slim.core.errors import InputError
from slim.core.markdown import escaped
from slim.core.records import ModelFacts, Omission
from slim.data import tasks
from slim.data.columns import as_text
from slim.data.encode import SHORT
from slim.data.omissions import RowLeftOut
from slim.data.tasks import Example, Task
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
LONGEST_VALUE = 200
"""Characters of a value that is not read."""


@st.cache_resource(max_entries=2, show_spinner="Reading the tokenizer")
def _tokenizer(model: str) -> "PreTrainedTokenizerBase":
    return load_tokenizer(model)


def show_counts(task: Task, request: CalibrateRequest) -> None:
    """Show in one line the rows and tokens, the truncation, and the dry-run estimate of the calibration."""
    with plain_errors():
        counts = _counts(task, request.model_dump_json(), modified(task.source), request)
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
