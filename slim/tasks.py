"""Task data: rows from a bundled dataset, a local file or the Hub, turned into the exact tokens the model sees."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from slim import workspace
from slim.errors import InputError

BUNDLED = ("briefs", "triage")
SPLITS = ("train", "validation", "test")
DATA = Path(__file__).parent / "data"
FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
LABELS = ("access", "billing", "cancellation", "delivery", "fault", "question")


@dataclass(frozen=True)
class Template:
    """How a row's columns become a prompt and the answer that is expected."""

    kind: str
    columns: tuple[str, ...]
    prompt: Callable[[dict[str, Any]], str]
    answer: Callable[[dict[str, Any]], str]


def _choices(row: dict[str, Any]) -> str:
    letters = "ABCDEFGHIJ"
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, row["choices"], strict=False))
    return f"{row['query']}\n{listed}"


def _chosen(row: dict[str, Any]) -> str:
    try:
        key = int(row["gold"])
        if key != float(row["gold"]) or key < 0:
            raise ValueError
        return str(row["choices"][key])
    except (ValueError, TypeError, IndexError):
        raise InputError(
            f"dataset: gold={row['gold']!r} is not the place of one of the choices {row['choices']}."
        ) from None


TEMPLATES: tuple[Template, ...] = (
    Template(
        "summarisation",
        ("passage", "summary"),
        lambda row: f"Summarise this passage in one or two sentences.\n\n{row['passage']}",
        lambda row: row["summary"],
    ),
    Template(
        "classification",
        ("message", "label"),
        lambda row: (
            f"Which desk should answer this customer's message? Reply with one word: {', '.join(LABELS[:-1])} "
            f"or {LABELS[-1]}.\n\n{row['message']}"
        ),
        lambda row: row["label"],
    ),
    Template(
        "summarisation",
        ("article", "highlights"),
        lambda row: f"Summarise this article in a few sentences.\n\n{row['article']}",
        lambda row: row["highlights"],
    ),
    Template("questions", ("question", "answer"), lambda row: row["question"], lambda row: row["answer"]),
    Template("choices", ("query", "choices", "gold"), _choices, _chosen),
    Template("instructions", ("prompt", "response"), lambda row: row["prompt"], lambda row: row["response"]),
    Template("instructions", ("instruction", "output"), lambda row: row["instruction"], lambda row: row["output"]),
    Template("text", ("text",), lambda _: "", lambda row: row["text"]),
)
"""The first template whose columns a dataset has is used."""


@dataclass(frozen=True)
class Example:
    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """The rows of one split of a dataset and what they ask for."""

    source: str
    config: str | None
    split: str
    kind: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids, each at most `max_length` long."""

    rows: tuple[Tensor, ...]
    truncated_rows: int

    @property
    def tokens(self) -> int:
        return sum(len(row) for row in self.rows)


@dataclass(frozen=True)
class Batch:
    """Rows of like length side by side."""

    rows: tuple[int, ...]
    ids: Tensor  # (B, T)
    valid: Tensor  # (B, T), false on padding
    padding_side: str

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Keyword arguments for the forward of a model on `device`.

        Padding on the right lies in the future of every real token, so a causal model needs no mask for it and the
        attention kernel keeps its fast path.
        """
        if self.padding_side == "right":
            return {"input_ids": self.ids.to(device)}
        valid = self.valid.to(device).long()
        positions = (valid.cumsum(-1) - 1).clamp_min(0)
        return {"input_ids": self.ids.to(device), "attention_mask": valid, "position_ids": positions}

    @property
    def predicted(self) -> Tensor:
        """Positions whose next token is a real one.  # (B, T-1)"""
        return self.valid[:, 1:] & self.valid[:, :-1]


def load_task(source: str = "bundled:briefs", config: str | None = None, split: str | None = None) -> Task:
    """The rows of `source`: `bundled:NAME`, a .jsonl/.csv/.parquet/.txt file, or a Hub id.

    Raises InputError for an unknown dataset or split, columns that no template fits, or no rows at all.
    """
    records, name = _records(source, config, split)
    columns = set(records[0]) if records else set()
    if not records:
        raise InputError(f"dataset {source!r} has no rows in split {name!r}: name one that has some.")
    template = next((t for t in TEMPLATES if columns >= set(t.columns)), None)
    if template is None:
        wanted = "; ".join(" + ".join(t.columns) for t in TEMPLATES)
        raise InputError(
            f"dataset {source!r} has the columns {sorted(columns)}, and none of these sets is among them: {wanted}. "
            "Rename its columns to one of them."
        )
    examples = tuple(
        Example(str(template.prompt(row)), str(template.answer(row)).strip())
        for row in records
        if all(row.get(column) is not None for column in template.columns)
    )
    examples = tuple(example for example in examples if example.answer)
    if not examples:
        raise InputError(f"dataset {source!r}: every row of split {name!r} is empty in {' + '.join(template.columns)}.")
    return Task(source, config, name, template.kind, examples)


def _records(source: str, config: str | None, split: str | None) -> tuple[Sequence[dict[str, Any]], str]:
    if source.startswith("bundled:"):
        name, split = source.removeprefix("bundled:"), split or "train"
        if name not in BUNDLED:
            raise InputError(f"dataset {source!r} is not bundled: choose bundled:briefs or bundled:triage.")
        if split not in SPLITS:
            raise InputError(f"split {split!r} of {source!r} does not exist: choose {', '.join(SPLITS)}.")
        return _read("json", DATA / name / f"{split}.jsonl", source), split
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in FORMATS:
            raise InputError(f"dataset {source!r} has the ending {path.suffix!r}: name a {', '.join(FORMATS)} file.")
        if split not in (None, "train"):
            raise InputError(f"split {split!r}: a single file such as {source!r} has only the split 'train'.")
        if path.stat().st_size == 0:
            raise InputError(f"dataset {source!r} is an empty file: name one with rows.")
        return _read(FORMATS[path.suffix], path, source), "train"
    if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or path.suffix in FORMATS:
        raise InputError(
            f"dataset {source!r} was not found: name bundled:briefs, bundled:triage, a {', '.join(FORMATS)} file "
            "or a Hub id."
        )
    return _read_hub(source, config, split or "train"), split or "train"


def _read(builder: str, path: Path, source: str) -> Sequence[dict[str, Any]]:
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()

    cache = str(workspace.subfolder("datasets"))
    try:
        return list(load_dataset(builder, data_files=str(path), split="train", cache_dir=cache))  # type: ignore[arg-type]
    except (DatasetGenerationError, ValueError, TypeError, UnicodeDecodeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"dataset {source!r} could not be read as {builder}: {reason}") from error


def _read_hub(source: str, config: str | None, split: str) -> Sequence[dict[str, Any]]:
    from datasets import load_dataset

    try:
        return list(load_dataset(source, config, split=split))  # type: ignore[arg-type]
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"dataset {source!r} (config {config!r}, split {split!r}) could not be loaded from the Hub: "
            f"check the name, the config and the connection ({reason})."
        ) from error


def choose(task: Task, samples: int, seed: int) -> list[Example]:
    """`samples` rows drawn without replacement, all of them when there are fewer."""
    if samples < 1:
        raise InputError(f"samples={samples}: at least 1 row is needed.")
    count = min(samples, len(task.examples))
    return random.Random(seed).sample(task.examples, count)


def messages_of(example: Example, answered: bool = True) -> list[dict[str, str]]:
    """The example as a conversation: the question, and the answer where it is wanted."""
    turns = [{"role": "user", "content": example.prompt}]
    return [*turns, {"role": "assistant", "content": example.answer}] if answered else turns


def text_of(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The exact text that is tokenised: the chat template's where there is one and the row asks something."""
    if not example.prompt:
        return example.answer
    if not tokenizer.chat_template:
        return f"{example.prompt}\n{example.answer}"
    return str(tokenizer.apply_chat_template(messages_of(example), tokenize=False)).strip()


def encode(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Token ids of each example, cut at `max_length`. Rows shorter than two tokens predict nothing and are left out."""
    rows, truncated = [], 0
    for example in examples:
        templated = bool(example.prompt and tokenizer.chat_template)
        ids = tokenizer(text_of(example, tokenizer), add_special_tokens=not templated)["input_ids"]
        truncated += len(ids) > max_length  # type: ignore[arg-type]
        rows.append(torch.tensor(ids[:max_length], dtype=torch.long))  # type: ignore[index]
    rows = tuple(row for row in rows if len(row) > 1)
    if not rows:
        raise InputError(
            "dataset: every chosen row is shorter than two tokens, so nothing is predicted: choose other rows."
        )
    return Encoded(rows, truncated)


def batches(encoded: Encoded, size: int, padding_side: str = "right") -> Iterator[Batch]:
    """The rows sorted by length and padded to their batch's longest."""
    order = sorted(range(len(encoded.rows)), key=lambda index: (len(encoded.rows[index]), index))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        width = max(len(encoded.rows[index]) for index in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        valid = torch.zeros(len(chosen), width, dtype=torch.bool)
        for place, index in enumerate(chosen):
            row = encoded.rows[index]
            span = slice(width - len(row), width) if padding_side == "left" else slice(0, len(row))
            ids[place, span], valid[place, span] = row, True
        yield Batch(tuple(chosen), ids, valid, padding_side)
