"""Examples, and presets of templates: the kinds of task, the columns that usually hold them, and their wording."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

Turn = tuple[str, str]
"""Who speaks (system, user, assistant, tool …) and what; a call of tools as JSON."""


@dataclass(frozen=True)
class Conversation:
    """The messages and tools that a chat template takes, for rows that are more than who said what.

    They are kept as JSON, so that equal conversations are equal and have the same hash.
    """

    text: str

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> Self:
        """Return the conversation of `messages`, the last of which is the answer."""
        return cls(json.dumps([list(messages), list(tools)], ensure_ascii=False, default=str))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """A new list of the messages."""
        return json.loads(self.text)[0]

    @property
    def tools(self) -> list[dict[str, Any]]:
        """A new list of the tools."""
        return json.loads(self.text)[1]


@dataclass(frozen=True)
class Example:
    """A prompt and the answer that is expected.

    `turns` is all that was said before the answer; empty where that is `prompt` alone. `choices` are the answers that
    are offered, where some are. `conversation` is what the chat template takes where turns do not say it all. `row` is
    the number of the row, and `unread` says which parts of it are not in the example.
    """

    prompt: str
    answer: str
    turns: tuple[Turn, ...] = ()
    choices: tuple[str, ...] = ()
    conversation: Conversation | None = None
    row: int = field(default=0, compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Template:
    """A kind of task: its roles with the columns that usually hold them, and the wording that asks for `answer`.

    Besides the roles of the wording the `required` ones must have a column and a value, and the `optional` ones need
    neither.
    """

    name: str
    title: str
    roles: Mapping[str, tuple[str, ...]]
    answer: str
    prompt: str = ""
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


_SYSTEM = {"system": ("system", "system_prompt")}
_TOOLS = {"tools": ("tools", "functions")}
_PRESETS = (
    Template(
        "chat",
        "Chat",
        {"messages": ("messages", "conversations", "conversation"), **_SYSTEM, **_TOOLS},
        "messages",
        optional=frozenset({"system", "tools"}),
    ),
    Template(
        "choices",
        "Multiple choice",
        {
            "question": ("query", "question"),
            "choices": ("choices", "options"),
            "key": ("gold", "answerKey", "answer", "label"),
        },
        "key",
        "{question}\n{choices}",
        required=frozenset({"choices"}),
    ),
    Template(
        "preference",
        "Preference: the chosen answers",
        {"prompt": ("prompt", "question", "instruction", "input"), "chosen": ("chosen",), **_SYSTEM, **_TOOLS},
        "chosen",
        "{prompt}",
        optional=frozenset({"prompt", "system", "tools"}),
    ),
    Template(
        "unpaired",
        "Preference: the answers labelled as good",
        {"prompt": ("prompt",), "completion": ("completion",), "label": ("label",), **_SYSTEM, **_TOOLS},
        "completion",
        "{prompt}",
        required=frozenset({"label"}),
        optional=frozenset({"system", "tools"}),
    ),
    Template(
        "summarisation",
        "Summarisation",
        {"text": ("passage", "article", "document", "dialogue", "text"), "summary": ("summary", "highlights")},
        "summary",
        "Summarise this text in a few sentences.\n\n{text}",
    ),
    Template(
        "classification",
        "Classification",
        {"text": ("message", "text", "sentence", "review"), "label": ("label", "category", "intent")},
        "label",
        "Which label fits this text? Reply with one of these: {labels}.\n\n{text}",
    ),
    Template(
        "reading",
        "Questions on a passage",
        {"passage": ("context", "passage"), "question": ("question",), "answer": ("answer", "answers")},
        "answer",
        "{passage}\n\n{question}",
    ),
    Template(
        "questions",
        "Question answering",
        {"question": ("question", "query"), "answer": ("answer", "answers", "response"), **_SYSTEM},
        "answer",
        "{question}",
        optional=frozenset({"system"}),
    ),
    Template(
        "maths",
        "Maths",
        {"problem": ("problem", "question"), "solution": ("solution", "answer")},
        "solution",
        "Solve this problem step by step.\n\n{problem}",
    ),
    Template(
        "instructions",
        "Instructions",
        {
            "instruction": ("instruction", "prompt", "input"),
            "input": ("input", "context"),
            **_SYSTEM,
            "history": ("history",),
            **_TOOLS,
            "response": ("response", "output", "completion"),
        },
        "response",
        "{instruction}\n\n{input}",
        optional=frozenset({"input", "system", "history", "tools"}),
    ),
    Template("text", "Plain text", {"text": ("text", "content")}, "text"),
)
TEMPLATES = {template.name: template for template in _PRESETS}
"""The presets. The first whose columns a dataset has is the guess; question + answer is maths only when asked for."""
