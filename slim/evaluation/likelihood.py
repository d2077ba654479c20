"""Likelihood of held-out rows: negative log-likelihood, KL to the original, and which choice is ranked first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from diskcache import Cache
from torch import Tensor

from slim.calibration.ablation import Baseline
from slim.core.cache import Arrays
from slim.core.errors import SlimError
from slim.core.reporter import Step, uncounted
from slim.data import tasks
from slim.data.batch_runner import run_batches
from slim.evaluation.metrics import Columns
from slim.models.identity import row_cache
from slim.models.load import Loaded
from slim.models.predictions import counted_states, counted_tokens, logits_of, positions_at_once

VERSION = 1
"""Version of the cached figures: raise it when the code gives other ones."""
ANY_LENGTH = 2**30
"""Tokens of a row without a limit."""


@dataclass
class Passes:
    """Forward passes over rows: `step` counts their tokens, and `cache` holds the figures of earlier passes."""

    batch_size: int = 4
    cache: Cache | None = None
    step: Step = field(default_factory=uncounted)
    padding_side: str = "right"
    states: dict[bytes, Tensor] | None = None
    """The original's states of rows in memory, by the rows' tokens, to compare it with several models."""

    def states_of(self, original: Loaded, batch: tasks.Batch) -> Tensor:
        """Return the original's counted states of a batch, from memory where they are there.  # (n, E)"""
        keys = [ids[valid].numpy().tobytes() for ids, valid in zip(batch.ids, batch.valid, strict=True)]
        if self.states is not None and all(key in self.states for key in keys):
            return torch.cat([self.states[key] for key in keys])
        found = counted_states(original, batch)
        if self.states is not None:
            self.states |= zip(keys, found.split(batch.predicted.sum(1).tolist()), strict=True)
        return found

    def rows(
        self, encoded: tasks.Encoded, models: Sequence[Loaded], compute: Callable[[tasks.Batch], list[Arrays]]
    ) -> Columns:
        """Return the columns that `compute` gives for each row, which depend on row and `models` alone.  # (R,) each"""
        cached = row_cache(self.cache, *models, likelihood=VERSION)
        every = range(len(encoded.rows))
        found = run_batches(encoded, every, compute, cached, self.batch_size, self.padding_side, self.step)
        return {name: np.array([float(row[name]) for row in found]) for name in found[0]}


def against(original: Loaded, other: Loaded, encoded: tasks.Encoded, passes: Passes) -> tuple[Columns, Columns]:
    """Return columns of both models: `surprise`, the summed negative log-likelihood of each row's counted tokens in
    nats, `predicted`, the number of these tokens, and for the other model `kl`, Σ KL(original ‖ other).  # (R,) each

    Raises SlimError where a model gives NaN or infinite numbers.
    """

    @torch.inference_mode()
    def compute(batch: tasks.Batch) -> list[Arrays]:
        known, states = passes.states_of(original, batch), counted_states(other, batch)
        return _by_row(batch, _compared(original, known, other, states, counted_tokens(batch)))

    found = passes.rows(encoded, (original, other), compute)
    for loaded, name in ((original, "original"), (other, "surprise"), (other, "kl")):
        _check(loaded, found[name])
    mine = {name: found[name] for name in ("surprise", "predicted", "kl")}
    return {"surprise": found["original"], "predicted": found["predicted"]}, mine


def _compared(original: Loaded, known: Tensor, other: Loaded, states: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Return negative log-likelihoods of `tokens` (n,) by both models from their states (n, E), and KL.  # (n,) each"""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in _parts(original, tokens):
        baseline = Baseline(logits_of(original, known[part]), tokens[part].to(known.device))
        kl, surprise = baseline.compare(logits_of(other, states[part]).to(known.device))
        found.append((baseline.surprise, surprise, kl))
    return dict(zip(("original", "surprise", "kl"), map(torch.cat, zip(*found, strict=True)), strict=True))


def _parts(loaded: Loaded, tokens: Tensor) -> Iterator[slice]:
    size = positions_at_once(loaded.model.config.vocab_size, loaded.model.device)
    return (slice(start, start + size) for start in range(0, len(tokens), size))


def ranked(loaded: Loaded, examples: Sequence[tasks.Example], max_length: int, passes: Passes) -> Columns:
    """Return whether the right choice of each example is the likeliest, per character (`ranked`) and as a whole
    (`ranked_whole`), the place of the likeliest per character (`ranked_place`), and how often a guess is right
    (`chance`, 0..1); the first of a tie counts.  # (R,) each

    NaN where a choice does not fit into `max_length` tokens.
    """
    sets = [_encoded(example, loaded, max_length) for example in examples]
    rows = [row for one in sets if one for row in one.rows]
    starts = [start for one in sets if one for start in one.starts]
    result = {name: np.full(len(examples), np.nan) for name in ("ranked", "ranked_whole", "ranked_place", "chance")}
    if not rows:
        return result

    @torch.inference_mode()
    def compute(batch: tasks.Batch) -> list[Arrays]:
        states, tokens = counted_states(loaded, batch), counted_tokens(batch)
        parts = [
            Baseline(logits_of(loaded, states[part]), tokens[part].to(states.device)).surprise
            for part in _parts(loaded, tokens)
        ]
        return _by_row(batch, {"surprise": torch.cat(parts)})

    surprise = passes.rows(tasks.Encoded(tuple(rows), 0, tuple(starts)), (loaded,), compute)["surprise"]
    _check(loaded, surprise)
    done = 0
    for place, (example, one) in enumerate(zip(examples, sets, strict=True)):
        if one is None:
            continue
        whole = -surprise[done : done + len(example.choices)]
        done += len(example.choices)
        said = int((whole / [len(choice) for choice in example.choices]).argmax())
        result["ranked_place"][place] = said
        result["chance"][place] = 1 / len(example.choices)
        result["ranked"][place] = example.choices[said] == example.answer
        result["ranked_whole"][place] = example.choices[int(whole.argmax())] == example.answer
    return result


def _encoded(example: tasks.Example, loaded: Loaded, max_length: int) -> tasks.Encoded | None:
    """Return a row for each choice; None where not all of them can be compared."""
    if len(example.choices) < 2 or not all(choice.strip() for choice in example.choices):
        return None
    asked = [replace(example, answer=choice) for choice in example.choices]
    encoded = tasks.encode(asked, loaded.tokenizer, ANY_LENGTH, "answer", ended=False)
    return encoded if not encoded.left_out and max(encoded.lengths) <= max_length else None


def _by_row(batch: tasks.Batch, columns: Mapping[str, Tensor]) -> list[Arrays]:
    """Return sums over the counted positions of each row, from columns (n,)."""
    counts = batch.predicted.sum(1).tolist()
    split = {name: column.double().cpu().split(counts) for name, column in columns.items()}
    rows = [{name: np.float64(parts[row].sum()) for name, parts in split.items()} for row in range(len(counts))]
    return [
        {name: np.asarray(max(value, 0.0) if name == "kl" else value) for name, value in row.items()}
        | {"predicted": np.asarray(float(count))}
        for row, count in zip(rows, counts, strict=True)
    ]


def _check(loaded: Loaded, values: np.ndarray) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise SlimError(
            f"model={loaded.facts.source!r}: it gives NaN or infinite numbers on row {int(wrong.argmax())}, as its "
            "weights are damaged or its dtype is too narrow; try dtype float32."
        )
