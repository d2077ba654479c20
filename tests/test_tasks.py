"""From rows to tokens: files of every kind, what is refused, templates, truncation and batches."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from slim.errors import InputError
from slim.tasks import Encoded, Example, batches, choose, encode, load_task, messages_of, text_of
from tests.pico import pico_tokenizer, random_rows

ROWS = [{"question": "2 + 2?", "answer": "4"}, {"question": "Größe?", "answer": "30 €\n(ca.)"}]
CHAT = "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}<eos>\n{% endfor %}"


def write_jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    """One row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def as_csv(path: Path) -> None:
    """Through pandas."""
    pd.DataFrame(ROWS).to_csv(path, index=False)


def as_parquet(path: Path) -> None:
    """Through pandas."""
    pd.DataFrame(ROWS).to_parquet(path)


def as_jsonl(path: Path) -> None:
    """One row a line."""
    write_jsonl(path, ROWS)


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", as_jsonl), ("a.csv", as_csv), ("a.parquet", as_parquet)])
def test_files_load(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    """Every kind of file gives the same task."""
    write(tmp_path / name)
    task = load_task(str(tmp_path / name))
    assert task.kind == "questions"
    assert task.split == "train"
    assert task.examples == tuple(Example(row["question"], row["answer"]) for row in ROWS)


def test_text_files_load_line_by_line(tmp_path: Path) -> None:
    """A line is a row without a question; empty lines are none."""
    (tmp_path / "a.txt").write_text("First line.\n\n  \nSecond line.\n", encoding="utf-8")
    task = load_task(str(tmp_path / "a.txt"))
    assert task.kind == "text"
    assert task.examples == (Example("", "First line."), Example("", "Second line."))


@pytest.mark.parametrize(
    ("row", "kind", "prompt", "answer"),
    [
        ({"article": "A.", "highlights": "B."}, "summarisation", "A.", "B."),
        ({"passage": "A.", "summary": "B."}, "summarisation", "A.", "B."),
        ({"message": "Late!", "label": "delivery"}, "classification", "Late!", "delivery"),
        ({"query": "Which?", "choices": ["x", "y"], "gold": 1}, "choices", "Which?\nA. x\nB. y", "y"),
        ({"prompt": "Do.", "response": "Done."}, "instructions", "Do.", "Done."),
        ({"instruction": "Do.", "output": "Done.", "id": 3}, "instructions", "Do.", "Done."),
    ],
)
def test_columns_choose_the_template(
    tmp_path: Path, row: dict[str, object], kind: str, prompt: str, answer: str
) -> None:
    """The names of the columns say what the task is."""
    task = load_task(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert task.kind == kind
    assert task.examples[0].prompt.endswith(prompt)
    assert task.examples[0].answer == answer


def test_rows_without_an_answer_are_left_out(tmp_path: Path) -> None:
    """Null or blank."""
    rows: list[Mapping[str, object]] = [{"question": "a", "answer": None}, {"question": "b", "answer": "  "}, *ROWS]
    assert len(load_task(write_jsonl(tmp_path / "a.jsonl", rows)).examples) == 2


@pytest.mark.parametrize(
    ("source", "split", "words"),
    [
        ("bundled:poems", None, "'bundled:poems'"),
        ("bundled:briefs", "dev", "'dev'"),
        ("nowhere/nothing.jsonl", None, "'nowhere/nothing.jsonl'"),
        ("not a name", None, "'not a name'"),
        ("nobody/nothing", None, "'nobody/nothing'"),
        ("nobody/nothing", "dev", "'dev'"),
    ],
)
def test_sources_that_are_not_there(source: str, split: str | None, words: str) -> None:
    """The message repeats the value."""
    with pytest.raises(InputError, match=words):
        load_task(source, split=split)


@pytest.mark.parametrize(
    ("name", "content", "split", "words"),
    [
        ("a.jsonl", b'{"foo": 1, "bar": 2}\n', None, r"\['bar', 'foo'\]"),
        ("a.csv", b"question,reply\nx,y\n", None, r"\['question', 'reply'\]"),
        ("a.jsonl", b"", None, "a.jsonl' is an empty file"),
        ("a.txt", b"\n\n  \n", None, "a.txt'.*empty"),
        ("a.csv", b"question,answer\n", None, "a.csv' could not be read as csv.*no data"),
        ("a.txt", b"caf\xe9 \xff\xfe", None, "a.txt' could not be read as text"),
        ("a.jsonl", b'{"question": "x", "answer": ""}\n' * 3, None, "a.jsonl'.*empty in question . answer"),
        ("a.jsonl", b'{"question": "x", "answer": null}\n' * 3, None, "a.jsonl'.*empty in question . answer"),
        ("a.jsonl", b'{"question": "x", "ans', None, "a.jsonl' could not be read as json"),
        ("a.jsonl", b"\xff\xfe\x00\x01", None, "a.jsonl' could not be read as json"),
        ("a.parquet", b"no parquet at all", None, "a.parquet' could not be read as parquet"),
        ("a.csv", b"question,answer\nx,y\n", "test", "split 'test'.*a.csv"),
        ("a.xlsx", b"PK", None, "'.xlsx'"),
        ("a", b"question", None, "ending ''"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, split: str | None, words: str) -> None:
    """The message names the file and what is wrong with it."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        load_task(str(tmp_path / name), split=split)


def test_a_folder_is_no_dataset(tmp_path: Path) -> None:
    """The message repeats the value."""
    with pytest.raises(InputError, match=str(tmp_path)):
        load_task(str(tmp_path))


@pytest.mark.parametrize("samples", [0, -3])
def test_at_least_one_row_is_asked_for(samples: int) -> None:
    """The message repeats the value."""
    with pytest.raises(InputError, match=f"samples={samples}"):
        choose(load_task("bundled:triage"), samples, 0)


def test_rows_are_drawn_without_replacement_by_the_seed() -> None:
    """The same seed the same rows, no row twice, all where more are asked for."""
    task = load_task("bundled:triage", split="validation")
    assert choose(task, 10, 3) == choose(task, 10, 3) != choose(task, 10, 4)
    assert len(set(choose(task, 30, 0))) == 30
    assert sorted(choose(task, 999, 0), key=repr) == sorted(task.examples, key=repr)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte a token."""
    return pico_tokenizer()


def test_rows_are_cut_at_the_limit_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    """Longer than the limit counts, as long as it does not; rows of one token are left out."""
    examples = [Example("", text) for text in ("abcdefgh", "abcdefg", "abcdef", "abc", "a")]
    encoded = encode(examples, tokenizer, 6)
    assert [len(row) for row in encoded.rows] == [6, 6, 6, 3]
    assert encoded.truncated_rows == 2
    assert encoded.tokens == 21
    assert tokenizer.decode(encoded.rows[0]) == "abcdef"
    with pytest.raises(InputError, match="shorter than two tokens"):
        encode(examples[-1:], tokenizer, 6)


def test_without_a_chat_template_the_answer_follows_the_question(tokenizer: PreTrainedTokenizerFast) -> None:
    """On the next line; a row that asks nothing is its text."""
    example = Example("Why?", "So.")
    assert text_of(example, tokenizer) == "Why?\nSo."
    (row,) = encode([example], tokenizer, 99).rows
    assert row.tolist() == tokenizer("Why?\nSo.")["input_ids"]
    assert text_of(Example("", "So."), tokenizer) == "So."


def test_the_chat_template_is_applied_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    """Special tokens once and as such, the model's own text between them, the last line break not learned."""
    tokenizer.chat_template = CHAT
    example = Example("Why?", "So.")
    expected = "<bos>user: Why?<eos>\n<bos>assistant: So.<eos>"
    assert text_of(example, tokenizer) == expected
    (row,) = encode([example], tokenizer, 99).rows
    ids = row.tolist()
    whole = tokenizer.apply_chat_template(messages_of(example), tokenize=True, return_dict=False)
    assert [*ids, whole[-1]] == whole
    assert [ids.count(special) for special in (1, 2)] == [2, 2]
    assert ids[0] == 1
    assert tokenizer.decode(row) == expected
    assert text_of(Example("", "So."), tokenizer) == "So."


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_batches_hold_every_row_once(size: int, side: str) -> None:
    """Sorted by length, padded to the longest, and told which positions are real and predicted."""
    rows = random_rows((4, 9, 2, 5, 5))
    found = list(batches(Encoded(rows, 0), size, side))
    assert [row for batch in found for row in batch.rows] == [2, 0, 3, 4, 1]
    for batch in found:
        assert len(batch.rows) <= size
        assert batch.ids.shape == batch.valid.shape == (len(batch.rows), max(len(rows[row]) for row in batch.rows))
        assert batch.predicted.sum(1).tolist() == [len(rows[row]) - 1 for row in batch.rows]
        inputs = batch.inputs()
        for place, row in enumerate(batch.rows):
            assert torch.equal(batch.ids[place][batch.valid[place]], rows[row])
            if side == "left":
                assert bool(batch.valid[place, -1])
                positions = inputs["position_ids"][place][batch.valid[place]]
                assert positions.tolist() == list(range(len(rows[row])))
                assert inputs["attention_mask"][place].bool().equal(batch.valid[place])
            else:
                assert bool(batch.valid[place, 0])
