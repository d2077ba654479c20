"""Formats of task data: for each, the token ids of a file are those of the same conversation given by hand."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from slim.core.errors import InputError
from slim.data.encode import encode, prompt_tokens
from slim.data.tasks import dataset_facts, load_task, reading_of
from tests.pico import pico_tokenizer

CHATML = (
    "{% if tools %}<bos>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<eos>\n{% endif %}"
    "{% for m in messages %}<bos>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}{{ '\n' }}"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>\n{% endif %}"
    "{{ m.content or '' }}{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"
    "<eos>\n{% endfor %}{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)
"""A template that writes tools, calls, names and the reasoning of the last turn."""
PLAIN = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}<bos>{{ m.role }}\n{{ m.content | trim }}"
    "<eos>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)
"""A template of three roles and nothing else, as many models have it: it drops the rest without a word."""


def said(*turns: tuple[str, str], **last: Any) -> list[dict[str, Any]]:
    """Messages of speakers and texts; `last` is put to the last one."""
    messages: list[dict[str, Any]] = [{"role": who, "content": text} for who, text in turns]
    messages[-1] |= last
    return messages


ASKED = said(("user", "How many boats?"), ("assistant", "Four."))
SYSTEM = said(("system", "Be brief."), ("user", "How many boats?"), ("assistant", "Four."))
LONGER = said(("user", "Hi."), ("assistant", "Hello."), ("user", "How many boats?"), ("assistant", "Four."))
CALL = {"type": "function", "function": {"name": "count", "arguments": {"of": "boats", "most": 9}}}
CALLED = [
    {"role": "user", "content": "How many boats?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"boats": 4}'},
    {"role": "assistant", "content": "Four."},
]
TOOL = {"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": {"type": "object"}}}


def without(message: dict[str, Any], **other: Any) -> dict[str, Any]:
    """A message with some fields in another spelling."""
    return {name: value for name, value in (message | other).items() if value is not ...}


def shared(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns as ShareGPT has them."""
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(one["role"], one["role"]), "value": one["content"]} for one in turns]


@dataclass(frozen=True)
class Format:
    """A row of a file, the conversation that it means, and what is not read of it."""

    row: dict[str, Any]
    means: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    unread: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


FORMATS = {
    # OpenAI messages
    "messages": Format({"messages": LONGER}, LONGER),
    "messages as JSON": Format({"messages": json.dumps(LONGER)}, LONGER),
    "a system turn": Format({"messages": SYSTEM}, SYSTEM),
    "a developer": Format(
        {"messages": [without(SYSTEM[0], role="developer"), *ASKED]}, [without(SYSTEM[0], role="developer"), *ASKED]
    ),
    "text parts": Format(
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "How many "}, {"type": "text", "text": "boats?"}],
                },
                ASKED[1],
            ]
        },
        ASKED,
    ),
    "input and output parts": Format(
        {
            "messages": [
                {"role": "user", "content": [{"type": "input_text", "text": "How many boats?"}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "Four."}]},
            ]
        },
        ASKED,
    ),
    "an empty turn": Format(
        {"messages": [LONGER[0], {"role": "assistant", "content": ""}, *ASKED]},
        [LONGER[0], {"role": "assistant", "content": ""}, *ASKED],
    ),
    "spaces of the answer": Format(
        {"messages": said(("user", "Go on: one"), ("assistant", "  two "))},
        said(("user", "Go on: one"), ("assistant", "  two ")),
    ),
    "a turn after the answer": Format(
        {"messages": [*ASKED, {"role": "user", "content": "Thanks."}]}, ASKED, parts=("turns after the last answer",)
    ),
    "calls": Format({"messages": CALLED, "tools": [TOOL]}, CALLED, [TOOL]),
    "calls with null content and JSON arguments": Format(
        {
            "messages": [
                CALLED[0],
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "count", "arguments": '{"of": "boats", "most": 9}'},
                        }
                    ],
                },
                CALLED[2] | {"tool_call_id": "1"},
                CALLED[3],
            ],
            "tools": json.dumps([TOOL]),
        },
        CALLED,
        [TOOL],
    ),
    "the older function_call": Format(
        {
            "messages": [
                CALLED[0],
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "count", "arguments": '{"of": "boats", "most": 9}'},
                },
                {"role": "function", "name": "count", "content": '{"boats": 4}'},
                CALLED[3],
            ],
            "functions": [TOOL["function"]],
        },
        [*CALLED[:2], CALLED[2] | {"name": "count"}, CALLED[3]],
        [TOOL],
    ),
    "a call as the answer": Format({"messages": CALLED[:2]}, CALLED[:2]),
    "a tool's result as an object": Format(
        {"messages": [*CALLED[:2], {"role": "tool", "content": {"boats": 4}}, CALLED[3]]}, CALLED
    ),
    "names": Format({"messages": [ASKED[0] | {"name": "Ann"}, ASKED[1]]}, [ASKED[0] | {"name": "Ann"}, ASKED[1]]),
    "reasoning": Format(
        {"messages": [ASKED[0], ASKED[1] | {"reasoning": "I count."}]},
        [ASKED[0], ASKED[1] | {"reasoning_content": "I count."}],
    ),
    "reasoning as a part": Format(
        {
            "messages": [
                ASKED[0],
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "I count."}, {"type": "text", "text": "Four."}],
                },
            ]
        },
        [ASKED[0], ASKED[1] | {"reasoning_content": "I count."}],
    ),
    "reasoning that the template drops": Format(
        {"messages": [LONGER[0], LONGER[1] | {"reasoning_content": "A greeting."}, *LONGER[2:]]},
        LONGER,
        parts=("without reasoning",),
    ),
    # ShareGPT
    "ShareGPT": Format({"conversations": shared(LONGER)}, LONGER),
    "ShareGPT with a system column": Format(
        {"conversations": shared(ASKED), "system": "Be brief.", "id": 7}, SYSTEM, unread=("id",)
    ),
    "ShareGPT in the other spelling": Format(
        {"conversation": said(("human", "How many boats?"), ("bot", "Four."))}, ASKED
    ),
    "ShareGPT with calls": Format(
        {
            "conversations": [
                {"from": "human", "value": "How many boats?"},
                {"from": "function_call", "value": '{"name": "count", "arguments": {"of": "boats", "most": 9}}'},
                {"from": "observation", "value": '{"boats": 4}'},
                {"from": "gpt", "value": "Four."},
            ],
            "tools": json.dumps([TOOL["function"]]),
        },
        CALLED,
        [TOOL],
    ),
    # Alpaca and its kin
    "Alpaca": Format(
        {"instruction": "How many", "input": "boats?", "output": "Four."},
        said(("user", "How many\n\nboats?"), ("assistant", "Four.")),
    ),
    "Alpaca without an input": Format({"instruction": "How many boats?", "input": "", "output": "Four."}, ASKED),
    "Alpaca with system and history": Format(
        {
            "instruction": "How many boats?",
            "input": "",
            "output": "Four.",
            "system": "Be brief.",
            "history": [["Hi.", "Hello."]],
        },
        [SYSTEM[0], *LONGER],
    ),
    "Dolly": Format(
        {
            "instruction": "How many boats?",
            "context": "Four boats lie here.",
            "response": "Four.",
            "category": "closed_qa",
        },
        said(("user", "How many boats?\n\nFour boats lie here."), ("assistant", "Four.")),
        unread=("category",),
    ),
    "OpenOrca": Format(
        {"id": "t0", "system_prompt": "Be brief.", "question": "How many boats?", "response": "Four."},
        SYSTEM,
        unread=("id",),
    ),
    # TRL
    "TRL prompt and completion": Format({"prompt": "How many boats?", "completion": "Four."}, ASKED),
    "TRL conversational prompt and completion": Format({"prompt": SYSTEM[:2], "completion": SYSTEM[2:]}, SYSTEM),
    "TRL with tools": Format({"prompt": CALLED[:1], "completion": CALLED[1:], "tools": [TOOL]}, CALLED, [TOOL]),
    "TRL preference": Format(
        {"prompt": "How many boats?", "chosen": "Four.", "rejected": "Five."}, ASKED, unread=("rejected",)
    ),
    "TRL conversational preference": Format(
        {"prompt": ASKED[:1], "chosen": ASKED[1:], "rejected": said(("assistant", "Five."))},
        ASKED,
        unread=("rejected",),
    ),
    "TRL preference with the prompt in it": Format(
        {"chosen": LONGER, "rejected": LONGER[:2]}, LONGER, unread=("rejected",)
    ),
    "UltraFeedback": Format(
        {"prompt": "How many boats?", "chosen": ASKED, "rejected": ASKED}, ASKED, unread=("rejected",)
    ),
    "TRL unpaired preference": Format({"prompt": "How many boats?", "completion": "Four.", "label": True}, ASKED),
    "TRL conversational unpaired preference": Format(
        {"prompt": ASKED[:1], "completion": ASKED[1:], "label": True}, ASKED
    ),
    # question and answer
    "question and answer": Format({"question": "How many boats?", "answer": "Four."}, ASKED),
    "several accepted answers": Format(
        {"question": "How many boats?", "answers": {"text": ["Four.", "4"]}},
        ASKED,
        parts=("without further accepted answers",),
    ),
    "choices": Format(
        {"question": "How many boats?", "choices": ["Three.", "Four."], "answer": 1},
        said(("user", "How many boats?\nA. Three.\nB. Four."), ("assistant", "Four.")),
    ),
}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    made = pico_tokenizer()
    made.chat_template = CHATML
    return made


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_reaches_the_model_as_it_is_meant(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Row, prompt and counted tokens are those of `apply_chat_template`; the same row given plainly reads the same."""
    one = FORMATS[name]
    task = load_task(written(tmp_path / "rows.jsonl", [one.row]))
    assert task.layout is not None
    assert task.layout.guessed
    assert task.unread_columns == one.unread
    encoded = encode(task.examples, tokenizer, 999, "answer")
    tools: list[Any] | None = one.tools or None
    by_hand = tokenizer.apply_chat_template(one.means, tools=tools, return_dict=False)
    asked = tokenizer.apply_chat_template(one.means[:-1], tools=tools, add_generation_prompt=True, return_dict=False)
    assert [*encoded.rows[0].tolist(), by_hand[-1]] == by_hand  # all but the line break after the end
    assert prompt_tokens(task.examples[0], tokenizer) == asked == by_hand[: encoded.starts[0]]
    assert tuple(part.reason.removeprefix("without ") for part in encoded.omissions) == tuple(
        part.removeprefix("without ") for part in one.parts
    )
    plain = load_task(written(tmp_path / "plain.jsonl", [{"messages": one.means, "tools": one.tools}]))
    assert encode(plain.examples, tokenizer, 999).rows[0].tolist() == encoded.rows[0].tolist()


@dataclass(frozen=True)
class Odd:
    """A row that cannot be read, the reason, and the template that it depends on."""

    row: dict[str, Any]
    why: str
    template: str | None = CHATML


PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}
STRICT = "{% if messages | length % 2 %}{{ raise_exception('turns must alternate') }}{% endif %}" + PLAIN
ODD = {
    "a picture": Odd(
        {"messages": [{"role": "user", "content": [PICTURE, *("What?",)]}, ASKED[1]]}, "not text (image_url)"
    ),
    "a sound": Odd(
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, ASKED[1]]}, "not text (input_audio)"
    ),
    "a picture beside": Odd({"messages": ASKED, "images": ["a.png"]}, "a picture, sound or film (column 'images')"),
    "a file beside": Odd({"messages": ASKED, "audio": {"path": "a.wav", "bytes": None}}, "(column 'audio')"),
    "a call that is not written": Odd({"messages": CALLED[:2]}, "does not write a call of a tool", PLAIN),
    "a result that is not written": Odd(
        {"messages": [ASKED[0], {"role": "tool", "content": "4"}, ASKED[1]]},
        "does not write the text of the role 'tool'",
        PLAIN,
    ),
    "a call without a template": Odd({"messages": CALLED}, "no chat template that writes such calls", None),
    "a call without a name": Odd(
        {"messages": [ASKED[0], {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "has no name"
    ),
    "a template that refuses": Odd(
        {"messages": ASKED[:1] + LONGER[1:]}, "turns must alternate", STRICT.replace("% 2", "== 4")
    ),
    "an empty answer": Odd(
        {"messages": said(("user", "Hi."), ("assistant", ""))}, "the last turn of the assistant says nothing"
    ),
    "no answer": Odd({"messages": ASKED[:1]}, "no turn of the assistant"),
    "tools that are not schemas": Odd({"messages": ASKED, "tools": "count"}, "tools are not a list of JSON schemas"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_row_is_left_out_and_counted(name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The others are read; the reason and the row's number are in the facts and in a sentence."""
    odd = ODD[name]
    tokenizer.chat_template = odd.template
    good = {"messages": ASKED}
    task = load_task(written(tmp_path / "rows.jsonl", [good, odd.row, good, odd.row]))
    encoded = encode(task.examples, tokenizer, 999)
    assert len(encoded.rows) == 2
    (one,) = dataset_facts(task, encoded).omissions
    assert odd.why in one.reason
    assert (one.rows, one.first, one.whole) == (2, 2, True)
    assert f"2 rows were left out: {one.reason} (the first is row 2)" in reading_of(task, encoded.omissions)
    with pytest.raises(InputError, match=r"no row.* can be read. 1 row was left out: .* \(row 1\)"):
        encode(load_task(written(tmp_path / "odd.jsonl", [odd.row])).examples, tokenizer, 999)


def test_a_bad_answer_is_not_an_answer(tmp_path: Path) -> None:
    """Of TRL's unpaired preferences, those that are labelled as good are read."""
    rows = [{"prompt": "How many?", "completion": str(n), "label": n == 4} for n in range(6)]
    task = load_task(written(tmp_path / "rows.jsonl", rows))
    assert [example.answer for example in task.examples] == ["4"]
    assert "5 rows were left out: its label says that the answer is not a good one" in reading_of(task)[1]


def test_a_developer_is_a_system_to_a_template_that_knows_no_other(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """And arguments are JSON to a template that takes a text."""
    tokenizer.chat_template = PLAIN.replace(
        "{{ m.content | trim }}",
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %}",
    )
    row = {"messages": [SYSTEM[0] | {"role": "developer"}, CALLED[0], CALLED[1] | {"content": ""}]}
    task = load_task(written(tmp_path / "rows.jsonl", [row]))
    by_hand = [
        SYSTEM[0],
        CALLED[0],
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "count", "arguments": '{"of": "boats", "most": 9}'}}],
        },
    ]
    wanted = tokenizer.apply_chat_template(by_hand, return_dict=False)
    assert [*encode(task.examples, tokenizer, 999).rows[0].tolist(), wanted[-1]] == wanted


def test_tables_hold_conversations_too(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """As JSON in CSV; in parquet, whose records all have the fields of each, without those that have no value."""
    frame = pd.DataFrame({"messages": [CALLED, LONGER], "tools": [[TOOL], []]})
    frame.to_parquet(tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["messages", "tools"])
        writer.writerows([[json.dumps(CALLED), json.dumps([TOOL])], [json.dumps(LONGER), ""]])
    plain = load_task(written(tmp_path / "rows.jsonl", [{"messages": CALLED, "tools": [TOOL]}, {"messages": LONGER}]))
    wanted = [row.tolist() for row in encode(plain.examples, tokenizer, 999).rows]
    for name in ("rows.parquet", "rows.csv"):
        found = encode(load_task(str(tmp_path / name)).examples, tokenizer, 999)
        assert [tokenizer.decode(row) for row in found.rows] == [tokenizer.decode(row) for row in wanted]


def test_rows_that_are_cut_are_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """With what was lost, the first of them, and apart from those with nothing of their answer left."""
    rows = [
        {"question": "boats " * (30 if n % 4 == 3 else 1), "answer": "four" * (20 if n % 4 == 1 else 1)}
        for n in range(8)
    ]
    tokenizer.chat_template = None
    task = load_task(written(tmp_path / "rows.jsonl", rows))
    encoded = encode(task.examples, tokenizer, 48, "answer")
    told = reading_of(task, encoded.omissions)[1:]
    lost = 2 * (len("boats \n") + 80 + 1 - 48)  # the end token, too
    assert told == [
        "2 rows were left out: nothing of the answer is within 48 tokens (the first is row 4)",
        f"2 rows were read in part: cut at 48 tokens, {lost} tokens lost (the first is row 2)",
    ]
    assert (encoded.left_out, encoded.truncated_rows, encoded.lost_tokens) == (2, 2, lost)
