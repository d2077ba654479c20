"""Conversations of any spelling as the messages and tools that chat templates take.

transformers documents what those are (its pages on chat templates and on tool use): `role`, `content`, `tool_calls`
whose arguments are mappings, `reasoning_content`, and tools as JSON schemas. Read into them are messages of the OpenAI
API, with content in parts and the older `function_call`, and of ShareGPT (`from`, `value`) with its speakers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from slim.core.text import parsed
from slim.data.omissions import RowLeftOut
from slim.data.templates import Conversation, Example

Message = dict[str, Any]
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""The speakers of ShareGPT and of older APIs as the roles of chat templates; every other one stays as it is."""
CALLS = ("function_call", "tool_call", "tool_calls")
"""Speakers whose turn is a call of a tool, as JSON."""
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("thinking", "reasoning")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""The names that transformers takes for the reasoning of a message."""


def is_conversation(value: Any) -> bool:
    """Return whether a value is a list of turns, each with a speaker, or its JSON."""
    return bool(_turns(value))


def read_messages(value: Any, column: str) -> list[Message]:
    """Return the messages of a list of turns, or of its JSON. Raises RowLeftOut for what a message cannot hold."""
    turns = _turns(value)
    if not turns:
        raise RowLeftOut(f"{column!r} is not a list of turns with role and content")
    return [_message(turn) for turn in turns]


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Return the tools of a list of JSON schemas, or of its JSON. Raises RowLeftOut for anything else."""
    value = _decoded(value)
    if value is None or value in ("", [], {}):
        return []
    tools = [value] if isinstance(value, Mapping) else value
    if not isinstance(tools, list):
        raise RowLeftOut("its tools are not a list of JSON schemas")
    decoded = [_decoded(tool) for tool in tools]
    if not all(isinstance(tool, Mapping) for tool in decoded):
        raise RowLeftOut("its tools are not a list of JSON schemas")
    return [
        dict(tool) if "function" in tool or "name" not in tool else {"type": "function", "function": tool}
        for tool in decoded
    ]


def conversation_example(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), system: str = ""
) -> Example:
    """Return the example whose answer is the last turn of the assistant.

    Raises RowLeftOut where there is no such turn, or nothing in it.
    """
    said = list(messages)
    if system and not any(one["role"] == "system" and one.get("content") == system for one in said[:1]):
        said.insert(0, {"role": "system", "content": system})
    last = next((place for place in reversed(range(len(said))) if said[place]["role"] == "assistant"), None)
    if last is None:
        raise RowLeftOut("no turn of the assistant is there to be the answer")
    unread = ("turns after the last answer",) if last + 1 < len(said) else ()
    said = said[: last + 1]
    answer = said_in(said[-1]).strip()
    if not answer:
        raise RowLeftOut("the last turn of the assistant says nothing")
    turns = tuple((one["role"], said_in(one)) for one in said[:-1])
    asked = next((text for who, text in reversed(turns) if who == "user"), "")
    plain = not tools and said[-1].get("content") == answer and all(_is_plain(one) for one in said)
    return Example(asked, answer, turns, conversation=None if plain else Conversation.of(said, tools), unread=unread)


def said_in(message: Message) -> str:
    """Return the text of a message; where it is only a call of tools, that as JSON, or else the reasoning alone."""
    if content := message.get("content"):
        return content
    if calls := message.get("tool_calls"):
        return json.dumps([call.get("function", call) for call in calls], ensure_ascii=False)
    return next((message[name] for name in REASONING if isinstance(message.get(name), str)), "")


def _is_plain(message: Message) -> bool:
    return message.keys() == {"role", "content"}


def _turns(value: Any) -> list[Mapping[str, Any]]:
    """Return the turns of a conversation; an empty list for anything else."""
    value = _decoded(value)
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list | tuple):
        return []
    return list(turns) if all(isinstance(one, Mapping) and isinstance(_speaker(one), str) for one in turns) else []


def _speaker(turn: Mapping[str, Any]) -> Any:
    return turn.get("role", turn.get("from"))


def _decoded(value: Any) -> Any:
    """Return what the JSON of a list or object holds; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return parsed(value)
    except (ValueError, RecursionError):
        return value


def _message(turn: Mapping[str, Any]) -> Message:
    """Return a turn as a message: the role first, its content as one text, and what else it holds."""
    speaker = str(_speaker(turn))
    role = SPEAKERS.get(speaker.lower(), speaker.lower())
    others = {
        name: value
        for name, value in turn.items()
        if name not in ("role", "from", "content", "value", "function_call", "tool_calls") and value is not None
    }
    content = turn.get("content", turn.get("value"))
    if role in CALLS:
        return {"role": "assistant", "content": "", "tool_calls": _calls(_decoded(content)), **others}
    calls = turn.get("tool_calls")
    if not calls and turn.get("function_call"):
        calls = [turn["function_call"]]
    if calls:
        others["tool_calls"] = _calls(_decoded(calls))
    text, reasoning = _content(content)
    if reasoning and not any(others.get(name) for name in REASONING):
        others["reasoning_content"] = reasoning
    if text is None and not calls:
        text = ""
    return {"role": role, **({} if text is None else {"content": text}), **others}


def _content(value: Any) -> tuple[str | None, str]:
    """Return the text of a content and the reasoning among its parts; None for the text where there is no content."""
    if value is None or isinstance(value, str):
        return value, ""
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, default=str), ""
    texts, reasoning = [], []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        name = kind if kind in REASONING_PARTS else "text"
        text = part.get(name) if isinstance(part, Mapping) else None
        if kind not in (*TEXT_PARTS, *REASONING_PARTS) or not isinstance(text, str):
            raise RowLeftOut(f"a turn holds a part that is not text ({_named(kind)})")
        (reasoning if kind in REASONING_PARTS else texts).append(text)
    return "".join(texts), "".join(reasoning)


def _named(kind: Any) -> str:
    return kind[:40] if isinstance(kind, str) and kind else "of no kind"


def _calls(value: Any) -> list[dict[str, Any]]:
    """Return calls of tools, each with its function's name and arguments, which are a mapping where they are one."""
    calls = []
    for given in value if isinstance(value, list) else [value]:
        call = _decoded(given)
        function = _decoded(call.get("function", call)) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowLeftOut("a call of a tool has no name")
        arguments = _decoded(function.get("arguments", function.get("parameters")))
        made = {"name": function["name"], "arguments": {} if arguments in (None, "") else arguments}
        others = {name: part for name, part in call.items() if name not in ("function", "name", "arguments")}
        if function is not call:
            made |= {name: part for name, part in function.items() if name not in ("name", "arguments")}
        others.pop("parameters", None)
        calls.append({"type": "function", **{k: v for k, v in others.items() if v is not None}, "function": made})
    return calls
