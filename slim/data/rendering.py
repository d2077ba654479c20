"""The exact text of an example: through the chat template where there is one, checked for what the template leaves out.

A template is a program: it may refuse a conversation, and it may write less of it than was given. A second rendering,
with a mark before and behind each text, shows which texts it writes.
"""

import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from slim.core.records import why_invalid
from slim.core.text import without_surrogates
from slim.data.conversation import REASONING, Message
from slim.data.omissions import RowLeftOut
from slim.data.templates import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = 0xF0000
"""The first of the characters for private use that marks are made of."""
_UNCHECKED = ("role", "content", "tool_calls", "type", "id", "tool_call_id")
"""Fields of a message that are written in a way of their own, or that only say what belongs together."""


@dataclass(frozen=True)
class Rendering:
    """The text of an example, its part that asks for the answer, and which parts of the row are in neither."""

    text: str
    asked: str
    templated: bool
    answer: str
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Talk:
    """Messages and tools for one call of a template."""

    messages: list[Message]
    tools: list[dict[str, Any]]

    def written(self, tokenizer: "PreTrainedTokenizerBase", ask: bool = False) -> str:
        """Return the text by the tokenizer's template. Raises RowLeftOut where it does not take the messages."""
        messages = self.messages[:-1] if ask else self.messages
        if not messages:
            return ""
        try:
            tools: list[Any] | None = self.tools or None  # some templates write an introduction to an empty list
            text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # a template is a program: it fails in as many ways
            raise RowLeftOut(f"the model's chat template does not take its turns ({why_invalid(error)})") from error
        return without_surrogates(str(text))


def messages_of(example: Example, answered: bool = True) -> list[Message]:
    """Return the example as a conversation: what was said, and the answer where it is wanted."""
    if example.conversation is not None:
        messages = example.conversation.messages
    else:
        said = example.turns or (("user", example.prompt),)
        messages = [{"role": who, "content": content} for who, content in said]
        messages.append({"role": "assistant", "content": example.answer})
    return messages if answered else messages[:-1]


def render(example: Example, tokenizer: "PreTrainedTokenizerBase") -> Rendering:
    """Return the text of an example as the model reads it.

    Without a chat template a row's texts follow each other line by line. Raises RowLeftOut where the template refuses
    the conversation, or leaves out a turn or a call of a tool.
    """
    if not (example.prompt or example.turns or example.conversation):
        return Rendering(example.answer, "", False, example.answer, example.unread)
    talk = _Talk(messages_of(example), example.conversation.tools if example.conversation else [])
    answer = talk.messages[-1].get("content", "")
    if not tokenizer.chat_template:
        if any(one.get("tool_calls") for one in talk.messages):
            raise RowLeftOut("it calls tools, and the model has no chat template that writes such calls")
        unread = (*example.unread, *(mark.what for mark in _marked(talk)[0] if not mark.needed))
        asked = "".join(f"{one['content']}\n" for one in talk.messages[:-1] if one.get("content"))
        return Rendering(asked + answer, asked, False, answer, tuple(dict.fromkeys(unread)))
    why: RowLeftOut | None = None
    for form in _forms(talk):
        try:
            text, asked = form.written(tokenizer), form.written(tokenizer, ask=True)
            unread = _unwritten(form, text, tokenizer)
        except RowLeftOut as error:
            if why is None or (why.__cause__ and not error.__cause__):  # an error of the template's says less
                why = error
            continue
        return Rendering(_ended(text, answer), asked, True, answer, tuple(dict.fromkeys((*example.unread, *unread))))
    raise why or RuntimeError("a conversation has at least one form")


def _ended(text: str, answer: str) -> str:
    """Return the text without the line breaks that a template writes after the end of the answer."""
    end = text.rfind(answer) + len(answer) if answer and answer in text else 0
    return text[:end] + text[end:].rstrip()


def _forms(talk: _Talk) -> Iterator[_Talk]:
    """Yield the talk as it is, and then as other templates want it.

    They differ in arguments of calls (a mapping, or its JSON), in the content of a message that only calls tools (none,
    or an empty text), in the newer name of the system's role, and in contents (a text, or a list of parts).
    """
    calls = any(one.get("tool_calls") for one in talk.messages)
    empty = any("content" not in one for one in talk.messages)
    newer = any(one["role"] == "developer" for one in talk.messages)
    ways = product((False, True), *((False, True) if there else (False,) for there in (newer, empty, calls)))
    for in_parts, as_system, as_empty, as_json in ways:
        messages = deepcopy(talk.messages)
        for one in messages:
            if as_system and one["role"] == "developer":
                one["role"] = "system"
            if as_empty:
                one.setdefault("content", "")
            for call in one.get("tool_calls", ()) if as_json else ():
                arguments = call["function"]["arguments"]
                if not isinstance(arguments, str):
                    call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
            if in_parts and "content" in one:
                one["content"] = [{"type": "text", "text": one["content"]}]
        yield replace(talk, messages=messages)


@dataclass(frozen=True)
class _Mark:
    """A text of a conversation between two characters that occur nowhere else; `what` says which text it is."""

    before: str
    behind: str
    text: str
    what: str
    needed: bool

    def share_in(self, written: str) -> int:
        """Return how many of the two marks a text holds, as they are or as JSON has them."""
        return sum(mark in written or json.dumps(mark)[1:-1] in written for mark in (self.before, self.behind))

    def is_changed_in(self, written: str) -> bool:
        """Return whether a text that holds both marks has another text between them."""
        start, end = written.find(self.before), written.find(self.behind)
        as_json = (json.dumps(self.text, ensure_ascii=ascii)[1:-1] for ascii in (False, True))
        return start < end and written[start + 1 : end] not in (self.text, *as_json)


def _marked(talk: _Talk) -> tuple[list[_Mark], _Talk]:
    """Return the talk with a mark around every text, and the marks."""
    marks: list[_Mark] = []

    def mark(text: Any, what: str, needed: bool = False) -> Any:
        place = _MARKS + 2 * len(marks)
        if not isinstance(text, str) or not text or place + 1 > sys.maxunicode:
            return text
        marks.append(_Mark(chr(place), chr(place + 1), text, what, needed))
        return f"{chr(place)}{text}{chr(place + 1)}"

    messages, tools = deepcopy(talk.messages), deepcopy(talk.tools)
    for one in messages:
        for name, value in one.items():
            if name == "content":
                what = f"the text of the role {one['role'][:40]!r}"
                one[name] = (
                    [part | {"text": mark(part["text"], what, True)} for part in value]
                    if isinstance(value, list)
                    else mark(value, what, True)
                )
            elif name not in _UNCHECKED:
                one[name] = mark(value, _field(name))
        for call in one.get("tool_calls", ()):
            function = call["function"]
            function["name"] = mark(function["name"], "a call of a tool", True)
            if isinstance(arguments := function["arguments"], dict):
                function["arguments"] = {
                    name: mark(value, "a call of a tool", True) for name, value in arguments.items()
                }
    for tool in tools:
        function = tool["function"] if isinstance(tool.get("function"), dict) else tool
        if "name" in function:
            function["name"] = mark(function["name"], "tools")
    return marks, _Talk(messages, tools)


def _field(name: str) -> str:
    return "reasoning" if name in REASONING else f"the field {name[:40]!r} of its turns"


def _unwritten(talk: _Talk, text: str, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the parts of a conversation that the template does not write as they are.

    Raises RowLeftOut where that is a whole turn or a call of a tool, without which the rest means something else.
    """
    marks, marked = _marked(talk)
    try:
        seen = marked.written(tokenizer)
    except RowLeftOut:  # it takes the texts, but not with marks around them
        seen = None
    unread = []
    for mark in marks:
        share = mark.share_in(seen) if seen is not None else 2 * (mark.text.strip() in text)
        if not share and mark.needed:
            raise RowLeftOut(f"the model's chat template does not write {mark.what}")
        if share < 2:
            unread.append(f"a part of {mark.what}" if mark.needed else mark.what)
        elif mark.needed and seen is not None and mark.is_changed_in(seen):
            unread.append(f"{mark.what}, which the chat template changes")
    return unread
