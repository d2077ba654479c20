"""How a row becomes an example: one reader for each kind of format, in a table by the template's name.

A column that holds a list of turns is read as a conversation wherever a template would take its text, as TRL's
conversational formats have it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from slim.data.columns import LABELS, ColumnMapping, Values, as_text
from slim.data.conversation import (
    Message,
    conversation_example,
    is_conversation,
    read_messages,
    read_tools,
)
from slim.data.omissions import RowLeftOut
from slim.data.templates import Example, Turn

Reader = Callable[[ColumnMapping, Values, str], Example]
"""Mapping, row and the labels of all rows to the example."""
MEDIA = frozenset(
    f"{name}{many}" for name in ("image", "picture", "photo", "audio", "sound", "speech", "video") for many in ("", "s")
)
"""Columns of pictures, sounds and films, which a language model does not read."""
GOOD, BAD = frozenset({"true", "1", "1.0", "yes"}), frozenset({"false", "0", "0.0", "no", "-1"})
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_row(mapping: ColumnMapping, row: Values, number: int = 0, labels: str = "") -> Example:
    """Return the row `number` as an example. Raises RowLeftOut where it cannot be one, with the reason."""
    for name in MEDIA & row.keys():
        if _holds_media(mapping, row[name]):
            raise RowLeftOut(f"it comes with a picture, sound or film (column {name!r})")
    for column in mapping.needed:
        if _is_blank(row.get(column)):
            raise RowLeftOut(f"the column {column!r} is empty")
    example = READERS.get(mapping.template.name, _worded)(mapping, row, labels)
    return replace(example, row=number)


def needed_of(mapping: ColumnMapping, row: Values) -> dict[str, Any]:
    """Return what of a row its reading needs: the columns that are read, and whether there are pictures or sounds."""
    values = {name: row[name] for name in mapping.read if name in row}
    return values | {name: True for name in MEDIA & row.keys() - values.keys() if _holds_media(mapping, row[name])}


def _holds_media(mapping: ColumnMapping, value: Any) -> bool:
    """Return whether a value is a picture, sound or film: its bytes, a file, or anything beside a conversation."""
    if isinstance(value, list | tuple):
        return any(_holds_media(mapping, one) for one in value)
    if isinstance(value, Mapping):
        return bool(value.keys() & {"bytes", "path", "array", "url"})
    return value is True or isinstance(value, bytes) or (mapping.template.name == "chat" and not _is_blank(value))


def _is_blank(value: Any) -> bool:
    return value is None or value in ([], {}, ()) or (isinstance(value, str) and not value.strip())


def _chat(mapping: ColumnMapping, row: Values, labels: str) -> Example:
    """The turns up to the last one of the assistant, which is the answer."""
    column = mapping.columns["messages"]
    return conversation_example(read_messages(row[column], column), *_beside(mapping, row))


def _beside(mapping: ColumnMapping, row: Values) -> tuple[list[dict[str, Any]], str]:
    """The tools and the system prompt that have columns of their own."""
    return read_tools(_of(mapping, row, "tools")), as_text(_of(mapping, row, "system"))


def _of(mapping: ColumnMapping, row: Values, role: str) -> Any:
    """The value of a role; None where it has no column."""
    return row.get(mapping.columns[role]) if role in mapping.columns else None


def _worded(mapping: ColumnMapping, row: Values, labels: str, **made: str) -> Example:
    """The prompt that the wording makes, after a system prompt and earlier turns, and the answer."""
    answer, unread = made.pop("answer", None), ()
    if answer is None:
        accepted = _of(mapping, row, mapping.template.answer)
        answer = as_text(accepted, first=True).strip()
        if _others(accepted, answer):
            unread = ("further accepted answers",)
    said = {role: as_text(row.get(column)) for role, column in mapping.columns.items()}
    prompt = mapping.worded(row, said | {mapping.template.answer: answer, LABELS: labels} | made)
    tools, system = _beside(mapping, row)
    before = [*([("system", system)] if system.strip() else []), *_history(_of(mapping, row, "history"))]
    if tools:
        messages = [{"role": who, "content": text} for who, text in (*before, ("user", prompt), ("assistant", answer))]
        return conversation_example(messages, tools)
    return Example(prompt, answer, (*before, ("user", prompt)) if before else (), unread=unread)


def _others(accepted: Any, answer: str) -> bool:
    """Return whether there are accepted answers that differ from the one that is read."""
    if isinstance(accepted, Mapping):
        accepted = next((accepted[key] for key in ("text", "value") if accepted.get(key) is not None), None)
    return isinstance(accepted, list) and any(as_text(one, first=True).strip() != answer for one in accepted[1:])


def _history(value: Any) -> list[Turn]:
    """Earlier turns: pairs of what was asked and answered."""
    if _is_blank(value):
        return []
    turns: list[Turn] = []
    for pair in value if isinstance(value, list) else [value]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowLeftOut("its history is not a list of pairs, of a question and its answer")
        turns += [("user", as_text(pair[0])), ("assistant", as_text(pair[1]))]
    return turns


def _completed(mapping: ColumnMapping, row: Values, labels: str) -> Example:
    """A prompt and its completion, either as text or as turns."""
    asks = next(role for role in mapping.template.roles if role in ("prompt", "instruction"))
    asked, answer = _of(mapping, row, asks), _of(mapping, row, mapping.template.answer)
    if not is_conversation(asked) and not is_conversation(answer):
        if mapping.template.name == "preference" and asks not in mapping.columns:
            return Example(mapping.worded(row, {}), as_text(answer))  # the prompt is the beginning of the text
        return _worded(mapping, row, labels)
    after = read_messages(answer, "") if is_conversation(answer) else [_message("assistant", as_text(answer))]
    if is_conversation(asked):
        before = read_messages(asked, "")
    elif _is_blank(asked) or after[0]["role"] != "assistant":
        before = []  # as in UltraFeedback, whose prompt is the first turn once more
    else:
        before = [_message("user", _worded(mapping, row, labels, answer="").prompt)]
    return conversation_example([*before, *after], *_beside(mapping, row))


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _unpaired(mapping: ColumnMapping, row: Values, labels: str) -> Example:
    """A completion whose label says that it is a good one."""
    label = as_text(row[mapping.columns["label"]]).strip().lower()
    if label in BAD:
        raise RowLeftOut("its label says that the answer is not a good one")
    if label not in GOOD:
        raise RowLeftOut("its label is neither true nor false")
    return _completed(mapping, row, labels)


def _choices(mapping: ColumnMapping, row: Values, labels: str) -> Example:
    """A question with choices as a list of letters, and the right one as the answer."""
    choices, chosen = _choice(mapping, row)
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(_LETTERS, choices, strict=False))
    example = _worded(mapping, row, labels, answer=chosen.strip(), choices=listed, key=chosen)
    return replace(example, choices=tuple(choice.strip() for choice in choices))


def _choice(mapping: ColumnMapping, row: Values) -> tuple[list[str], str]:
    """The choices as text and the one that the key names, by place, letter or label."""
    choices, key = row[mapping.columns["choices"]], row[mapping.columns["key"]]
    texts, marks = choices, list(_LETTERS)
    if isinstance(choices, Mapping):
        texts, marks = choices.get("text"), [str(mark) for mark in choices.get("label", ())]
    if not isinstance(texts, list) or not texts:
        raise RowLeftOut(f"{mapping.columns['choices']!r} is not a list of choices")
    texts = [as_text(text) for text in texts]
    if str(key) in marks[: len(texts)]:
        return texts, texts[marks.index(str(key))]
    try:
        place = int(key)
        if place != float(key) or place < 0:
            raise ValueError
        return texts, texts[place]
    except (ValueError, TypeError, IndexError, OverflowError):
        raise RowLeftOut(f"{mapping.columns['key']!r} is not the place of one of the choices") from None


READERS: dict[str, Reader] = {
    "chat": _chat,
    "choices": _choices,
    "preference": _completed,
    "unpaired": _unpaired,
    "instructions": _completed,
}
"""The readers by the names of templates; every other template words a prompt from its columns."""
