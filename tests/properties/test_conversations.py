"""Random conversations: every text is in what the model reads, or in the count of what was left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim.core.errors import InputError
from slim.core.text import without_surrogates
from slim.data.omissions import RowLeftOut
from slim.data.rendering import render
from slim.data.tasks import load_task
from tests.data.test_formats import CHATML, PLAIN
from tests.fuzz import TEXTS
from tests.pico import pico_tokenizer

WORDS = st.one_of(TEXTS.map(without_surrogates), st.sampled_from(["", " ", "user", "4", "<eos>", "a\nb", '{"a": 1}']))
PARTS = st.one_of(
    WORDS.map(lambda text: {"type": "text", "text": text}),
    WORDS,
    st.just({"type": "image_url", "image_url": {"url": "data:,"}}),
)
CONTENTS = st.one_of(WORDS, WORDS, st.lists(PARTS, max_size=3), st.none())
CALLS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["count", "look up"]), "arguments": st.dictionaries(st.just("of"), WORDS)}
    ),
    min_size=1,
    max_size=2,
)
TURNS = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": CONTENTS}),
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system"]), "value": WORDS}),
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "tool", "narrator"]), "content": WORDS}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": CONTENTS, "reasoning_content": WORDS}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none(), "tool_calls": CALLS}),
    st.fixed_dictionaries({"role": st.just("user"), "content": WORDS, "name": WORDS}),
)


def texts_of(turn: dict[str, Any]) -> list[tuple[str, str]]:
    """The texts of a turn as it is written in the file, each with the words by which its omission is counted."""
    content = turn.get("content", turn.get("value"))
    parts = content if isinstance(content, list) else [content or ""]
    found = [("the text of the role", part if isinstance(part, str) else part["text"]) for part in parts]
    for call in turn.get("tool_calls", ()):
        found += [("a call", call["name"]), *(("a call", value) for value in call["arguments"].values())]
    return [*found, ("reasoning", turn.get("reasoning_content", "")), ("'name'", turn.get("name", ""))]


@pytest.mark.parametrize("template", [CHATML, PLAIN, None])
def test_no_text_is_lost(tmp_path: Path, template: str | None) -> None:
    """A row that is read holds each of its texts, or says which kind of text it is read without."""
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = template
    file = tmp_path / "rows.jsonl"

    @given(st.lists(TURNS, min_size=1, max_size=5))
    def every(turns: list[dict[str, Any]]) -> None:
        file.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
        try:
            (example,) = load_task(str(file)).examples
            found = render(example, tokenizer)
        except (InputError, RowLeftOut):  # as a whole, which names its reason
            return
        speakers = [turn.get("role", turn.get("from")) for turn in turns]
        last = max(place for place, who in enumerate(speakers) if who in ("assistant", "gpt"))
        assert ("turns after the last answer" in found.unread) == (last + 1 < len(turns))
        for turn in turns[: last + 1]:
            for kind, text in texts_of(turn):
                there = text.strip() in found.text or json.dumps(text, ensure_ascii=False)[1:-1] in found.text
                assert there or any(kind in unread for unread in found.unread)

    every()
