"""From examples to the exact tokens the model sees: chat template, truncation, and which positions count."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slim.core.errors import InputError
from slim.core.fields import Positions
from slim.core.records import why_invalid
from slim.core.text import without_surrogates
from slim.data.templates import Example
from slim.data.turn_end import end_to_add

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids, each at most `max_length` long.

    `starts[i]` is the place of the first token of row i whose prediction counts; without any, that is 1 everywhere.
    `lost_tokens` were cut off the `truncated_rows`; `left_out` rows predict nothing and are not among `rows`. `places`
    says which of the given examples each row is of.
    """

    rows: "tuple[Tensor, ...]"
    truncated_rows: int
    starts: tuple[int, ...] = ()
    lost_tokens: int = 0
    left_out: int = 0
    places: tuple[int, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return tuple(map(len, self.rows))

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def start(self, index: int) -> int:
        """The place of the first token of row `index` whose prediction counts."""
        return self.starts[index] if self.starts else 1


@dataclass(frozen=True)
class Batch:
    """Rows of like length side by side."""

    rows: tuple[int, ...]
    ids: "Tensor"  # (B, T)
    valid: "Tensor"  # (B, T), false on padding
    padding_side: str
    starts: tuple[int, ...] = ()

    def inputs(self, device: "torch.device | str" = "cpu") -> "dict[str, Tensor]":
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
    def predicted(self) -> "Tensor":
        """Positions whose next token is a real one and counts.  # (B, T-1)"""
        import torch

        real = self.valid[:, 1:] & self.valid[:, :-1]
        if not self.starts:
            return real
        places = self.valid.cumsum(-1) - 1  # (B, T), of each token in its row
        return real & (places[:, 1:] >= torch.tensor(self.starts, device=places.device)[:, None])

    def repeated(self, times: int) -> "Batch":
        """Return the batch with all rows so many times, one whole batch after the other."""
        ids, valid = (part.repeat(times, 1) for part in (self.ids, self.valid))
        return replace(self, rows=self.rows * times, ids=ids, valid=valid, starts=self.starts * times)


def messages_of(example: Example, answered: bool = True) -> list[dict[str, str]]:
    """The example as a conversation: what was said, and the answer where it is wanted."""
    said = example.turns or (("user", example.prompt),)
    turns = [{"role": who, "content": content} for who, content in said]
    return [*turns, {"role": "assistant", "content": example.answer}] if answered else turns


def text_of(example: Example, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The exact text that is tokenised: the chat template's where there is one and the row asks something."""
    if _templated(example, tokenizer):
        return _rendered(messages_of(example), tokenizer, False).strip()
    return _asked(example, tokenizer) + example.answer


def prompt_tokens(example: Example, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The token ids that ask for the example's answer: those of its row up to where the answer starts."""
    ids = _ids(_asked(example, tokenizer), example, tokenizer)
    ended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not _templated(example, tokenizer)
    return ids[:-1] if ended else ids  # a tokenizer may end every text, and the answer would follow that end


def encode(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    positions: Positions = "all",
    ended: bool = True,
) -> Encoded:
    """Token ids of each example, cut at `max_length`, and where its counted `positions` start.

    An answer to something ends with the template's turn end or the tokenizer's end token, unless `ended` is false.
    Rows that predict nothing are left out: those shorter than two tokens, and for "answer" those whose answer is cut
    away. Raises InputError when no row remains.
    """
    import torch

    rows: list[Tensor] = []
    starts: list[int] = []
    places: list[int] = []
    truncated = lost = 0
    ends = {templated: end_to_add(tokenizer, templated) if ended else None for templated in (False, True)}
    for place, example in enumerate(examples):
        text = text_of(example, tokenizer)
        ids = _ids(text, example, tokenizer)
        start = 1 if positions == "all" else _answer_start(example, text, ids, tokenizer)
        end = ends[_templated(example, tokenizer)] if example.prompt or example.turns else None
        if end is not None and ids[-1:] != [end]:
            ids = [*ids, end]
        row = torch.tensor(ids[:max_length], dtype=torch.long)
        if len(row) <= start:
            continue
        rows.append(row)
        starts.append(start)
        places.append(place)
        truncated += len(ids) > max_length
        lost += max(0, len(ids) - max_length)
    if not rows and positions == "all":
        raise InputError(
            "dataset: every chosen row is shorter than two tokens, so nothing is predicted: choose other rows."
        )
    if not rows:
        raise InputError(
            f"positions='answer': the first {max_length:,} tokens of no chosen row reach its answer: "
            "choose a larger max_length, or positions='all'."
        )
    return Encoded(tuple(rows), truncated, tuple(starts), lost, len(examples) - len(rows), tuple(places))


def batches(encoded: Encoded, size: int, padding_side: str = "right") -> Iterator[Batch]:
    """The rows sorted by length, so that most batches need little padding, and padded to their batch's longest."""
    import torch

    order = sorted(range(len(encoded.rows)), key=lambda index: (len(encoded.rows[index]), index))
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        width = max(len(encoded.rows[index]) for index in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        valid = torch.zeros(len(chosen), width, dtype=torch.bool)
        for place, index in enumerate(chosen):
            row = encoded.rows[index]
            span = slice(width - len(row), width) if padding_side == "left" else slice(0, len(row))
            ids[place, span], valid[place, span] = row, True
        starts = tuple(encoded.starts[index] for index in chosen) if encoded.starts else ()
        yield Batch(tuple(chosen), ids, valid, padding_side, starts)


def _templated(example: Example, tokenizer: "PreTrainedTokenizerBase") -> bool:
    return bool((example.prompt or example.turns) and tokenizer.chat_template)


def _asked(example: Example, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text up to where the answer starts."""
    said = messages_of(example, answered=False)
    if _templated(example, tokenizer):
        return _rendered(said, tokenizer, True).lstrip()
    return "".join(f"{turn['content']}\n" for turn in said if turn["content"])


def _rendered(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", ask: bool) -> str:
    try:
        return without_surrogates(
            str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
        )
    except Exception as error:  # a template is a program: it fails in as many ways
        raise InputError(
            f"dataset: the model's chat template does not take the turns {[turn['role'] for turn in messages]} "
            f"({why_invalid(error)}): choose other rows or another model."
        ) from error


def _ids(text: str, example: Example, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """A chat template writes its special tokens itself."""
    return tokenizer(text, add_special_tokens=not _templated(example, tokenizer))["input_ids"]  # type: ignore[return-value]


def _answer_start(example: Example, text: str, ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> int:
    """The place of the first token that holds a part of the answer."""
    asked = _asked(example, tokenizer)
    if not asked:
        return 1
    asked_ids = _ids(asked, example, tokenizer)
    pairs = enumerate(zip(asked_ids, ids, strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), min(len(asked_ids), len(ids)))
    if shared < len(asked_ids) and tokenizer.is_fast:
        # A token reaches over the border, or the template words a conversation without its answer in another way.
        special = not _templated(example, tokenizer)
        spans = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)["offset_mapping"]
        at = len(asked) if text.startswith(asked) else text.rfind(example.answer)
        if at >= 0:
            shared = next((place for place, (_, end) in enumerate(spans) if end > at), shared)  # type: ignore[misc]
    return max(1, shared)
