"""From examples to the exact tokens the model sees: chat template, truncation, and which positions count."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from slim.core.errors import InputError
from slim.core.fields import Positions
from slim.core.records import Omission
from slim.data.omissions import RowLeftOut, Tally, merged, omitted
from slim.data.rendering import Rendering, messages_of, render
from slim.data.templates import Example
from slim.data.turn_end import end_to_add

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["Batch", "Encoded", "batches", "encode", "messages_of", "prompt_tokens", "readable", "text_of"]
SHORT = "it has no two tokens, so nothing is predicted"
REMEDY = "name other rows, another model, a larger max_length, or positions='all'"


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids, each at most `max_length` long.

    `starts[i]` is the place of the first token of row i whose prediction counts; without any, that is 1 everywhere.
    `lost_tokens` were cut off the `truncated_rows`; `left_out` rows are not among `rows`. `places` says which of the
    given examples each row is of, and `omissions` counts by reason what is not read.
    """

    rows: "tuple[Tensor, ...]"
    truncated_rows: int
    starts: tuple[int, ...] = ()
    lost_tokens: int = 0
    left_out: int = 0
    places: tuple[int, ...] = ()
    omissions: tuple[Omission, ...] = ()

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


def text_of(example: Example, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The exact text that is tokenised. Raises RowLeftOut where the chat template does not write the row."""
    return render(example, tokenizer).text


def prompt_tokens(example: Example, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The token ids that ask for the example's answer: those of its row up to where the answer starts.

    Raises RowLeftOut where the chat template does not write the row.
    """
    found = render(example, tokenizer)
    ids = _ids(found.asked, found, tokenizer)
    ended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not found.templated
    return ids[:-1] if ended else ids  # a tokenizer may end every text, and the answer would follow that end


def readable(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[Example], tuple[Omission, ...]]:
    """Return the examples that the tokenizer's chat template writes, and the others by reason.

    Raises InputError where no example remains.
    """
    found, tally = [], Tally()
    for example in examples:
        try:
            render(example, tokenizer)
        except RowLeftOut as error:
            tally.add(str(error), example.row)
        else:
            found.append(example)
    if not found:
        raise InputError(f"dataset: no row can be read. {'. '.join(omitted(tally.omissions))}: {REMEDY}.")
    return found, tally.omissions


def encode(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    positions: Positions = "all",
    ended: bool = True,
) -> Encoded:
    """Token ids of each example, cut at `max_length`, and where its counted `positions` start.

    An answer to something ends with the template's turn end or the tokenizer's end token, unless `ended` is false.
    Rows that the chat template does not write are left out, and those that predict nothing: shorter than two tokens,
    or for "answer" with their answer cut away. They are counted by reason, and so are rows that are cut or of which a
    part is not read. Raises InputError when no row remains.
    """
    import torch

    rows: list[Tensor] = []
    starts: list[int] = []
    places: list[int] = []
    cut, others = Tally(), Tally()
    truncated = lost = 0
    ends = {templated: end_to_add(tokenizer, templated) if ended else None for templated in (False, True)}
    for place, example in enumerate(examples):
        try:
            found = render(example, tokenizer)
        except RowLeftOut as error:
            others.add(str(error), example.row)
            continue
        ids = _ids(found.text, found, tokenizer)
        start = 1 if positions == "all" else _answer_start(found, ids, tokenizer)
        end = ends[found.templated] if found.templated or found.asked else None
        if end is not None and ids[-1:] != [end]:
            ids = [*ids, end]
        row = torch.tensor(ids[:max_length], dtype=torch.long)
        if len(row) <= start:
            short = positions == "all" or len(ids) <= start
            others.add(SHORT if short else f"nothing of the answer is within {max_length:,} tokens", example.row)
            continue
        rows.append(row)
        starts.append(start)
        places.append(place)
        for part in found.unread:
            others.add(f"without {part}", example.row, whole=False)
        if len(ids) > max_length:
            cut.add("", example.row, whole=False)
            truncated += 1
            lost += len(ids) - max_length
    if not rows:
        raise InputError(f"dataset: no row can be read. {'. '.join(omitted(others.omissions))}: {REMEDY}.")
    beyond = f"cut at {max_length:,} tokens, {lost:,} tokens lost"
    omissions = merged(others.omissions, (one.model_copy(update={"reason": beyond}) for one in cut.omissions))
    return Encoded(
        tuple(rows), truncated, tuple(starts), lost, len(examples) - len(rows), tuple(places), tuple(omissions)
    )


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


def _ids(text: str, found: Rendering, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """A chat template writes its special tokens itself."""
    ids: Any = tokenizer(text, add_special_tokens=not found.templated)["input_ids"]  # a list, for one text
    return ids


def _answer_start(found: Rendering, ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> int:
    """The place of the first token that holds a part of the answer."""
    asked, text = found.asked, found.text
    if not asked:
        return 1
    asked_ids = _ids(asked, found, tokenizer)
    pairs = enumerate(zip(asked_ids, ids, strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), min(len(asked_ids), len(ids)))
    if shared < len(asked_ids) and tokenizer.is_fast:
        # A token reaches over the border, or the template words a conversation without its answer in another way.
        spans = tokenizer(text, add_special_tokens=not found.templated, return_offsets_mapping=True)["offset_mapping"]
        at = len(asked) if text.startswith(asked) else text.rfind(found.answer) if found.answer else -1
        if at >= 0:
            shared = next((place for place, (_, end) in enumerate(spans) if end > at), shared)  # type: ignore[misc]
    return max(1, shared)
