"""Examples, and presets of templates: the kinds of task, the columns that usually hold them, and their wording."""

from collections.abc import Mapping
from dataclasses import dataclass

Turn = tuple[str, str]
"""Who speaks (system, user, assistant) and what."""


@dataclass(frozen=True)
class Example:
    """A prompt and the answer that is expected.

    `turns` is all that was said before the answer; empty where that is `prompt` alone. `choices` are the answers that
    are offered, where some are.
    """

    prompt: str
    answer: str
    turns: tuple[Turn, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Template:
    """A kind of task: its roles with the columns that usually hold them, and the wording that asks for `answer`."""

    name: str
    title: str
    roles: Mapping[str, tuple[str, ...]]
    answer: str
    prompt: str = ""


_PRESETS = (
    Template("chat", "Chat", {"messages": ("messages", "conversations", "conversation")}, "messages"),
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
        {"question": ("question", "query"), "answer": ("answer", "answers", "response")},
        "answer",
        "{question}",
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
        {"instruction": ("instruction", "prompt"), "response": ("response", "output", "completion")},
        "response",
        "{instruction}",
    ),
    Template("text", "Plain text", {"text": ("text", "content")}, "text"),
)
TEMPLATES = {template.name: template for template in _PRESETS}
"""The presets. The first whose columns a dataset has is the guess; question + answer is maths only when asked for."""
