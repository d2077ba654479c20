"""What the original says of training rows: its likeliest tokens at every counted position, computed once and kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diskcache import Cache
from torch import Tensor, nn

from slim.calibration.criteria.base import exact
from slim.core.cache import Arrays, RowCache
from slim.core.errors import InputError
from slim.data import tasks
from slim.data.batch_runner import no_numbers, run_batches
from slim.models.load import Loaded

VERSION = 1
"""Goes up when the code gives other figures than before: kept results of older code are not used then."""
TOP = 64
"""Likeliest tokens that are kept of a position; all others are counted as one."""


@dataclass(frozen=True)
class SoftTargets:
    """The original's distribution at n positions: its k likeliest tokens, and all others as one."""

    ids: Tensor  # (n, k)
    logs: Tensor  # (n, k), ln p of these
    rest: Tensor  # (n,), ln p of all others together

    def divergence(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(original ‖ model) in nats at each position, from the model's logits (n, V) there.  # (n,)

        Tokens beyond the k likeliest count as one, so this is at most the KL over the whole vocabulary. `temperature`
        must be the one that the lesson was taken at.
        """
        scaled = exact(logits) / temperature
        normaliser = scaled.logsumexp(-1)
        mine = scaled.gather(1, self.ids) - normaliser[:, None]
        others = scaled.scatter(1, self.ids, -torch.inf).logsumexp(-1) - normaliser
        return (self.logs.exp() * (self.logs - mine)).sum(-1) + self.rest.exp() * (self.rest - others)


def stacked_targets(arrays: Sequence[Arrays], device: torch.device) -> SoftTargets:
    """The positions of rows one after another."""
    ids, logs, rest = (
        torch.cat([torch.from_numpy(row[name]) for row in arrays]).to(device) for name in ("ids", "logs", "rest")
    )
    return SoftTargets(ids.long(), logs, rest)


def soft_targets(logits: Tensor, temperature: float = 1.0, top: int = TOP) -> SoftTargets:
    """What logits (n, V) say at `temperature`."""
    scaled = exact(logits) / temperature
    normaliser = scaled.logsumexp(-1)
    values, ids = scaled.topk(min(top, scaled.shape[1] - 1))
    rest = scaled.scatter(1, ids, -torch.inf).logsumexp(-1) - normaliser
    return SoftTargets(ids, values - normaliser[:, None], rest)


def counted_logits(model: Any, batch: tasks.Batch) -> tuple[Tensor, Tensor]:
    """Logits (n, V) and next tokens (n,) of a batch's counted positions alone, row after row.

    The output head never sees the other positions, so their logits are not computed.
    """
    predicted = batch.predicted

    def only(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:, :-1][predicted.to(args[0].device)], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(only)
    try:
        logits = model(**batch.inputs(model.device), use_cache=False).logits
    finally:
        handle.remove()
    return logits, batch.ids[:, 1:][predicted].to(logits.device)


def targets_of_rows(
    original: Loaded,
    encoded: tasks.Encoded,
    temperature: float = 1.0,
    *,
    batch_size: int = 8,
    cache: Cache | None = None,
    advance: Callable[[int, bool], None] = lambda tokens, known: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Arrays]:
    """Of each row the original's `Lesson` at its counted positions: `ids`, `logs` and `rest`.

    What `cache` knows is not computed again. Raises SlimError where the original gives no numbers.
    """

    @torch.inference_mode()
    def compute(batch: tasks.Batch) -> list[Arrays]:
        logits, _ = counted_logits(original.model, batch)
        counts = batch.predicted.sum(1).tolist()
        found = soft_targets(logits, temperature, TOP)
        fine = torch.stack([part.isfinite().all() for part in found.logs.split(counts)])
        if not fine.all():
            raise no_numbers("its predictions", batch, fine.cpu())
        parts = zip(*(part.cpu().split(counts) for part in (found.ids.int(), found.logs, found.rest)), strict=True)
        return [{"ids": i.numpy(), "logs": p.float().numpy(), "rest": r.float().numpy()} for i, p, r in parts]

    kept = RowCache(
        cache if original.facts.fingerprint else None,
        teacher=VERSION,
        model=[original.facts.fingerprint, original.model.config.to_json_string(use_diff=False)],
        dtype=str(original.model.dtype),
        device=original.model.device.type,
        temperature=temperature,
        top=TOP,
    )
    return run_batches(encoded, range(len(encoded.rows)), compute, kept, batch_size, "right", advance, note)


def check_vocabulary(original: Loaded, model: Loaded) -> None:
    """Raises InputError where two models do not read the same tokens."""
    if original.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise InputError(
            f"original {original.facts.source!r}: its tokenizer is not that of {model.facts.source!r}, so it cannot "
            "teach it: name the model that the checkpoint was cut from."
        )
    ours, theirs = (one.model.config.vocab_size for one in (model, original))
    if ours != theirs:
        raise InputError(
            f"original {original.facts.source!r} predicts {theirs:,} tokens and {model.facts.source!r} {ours:,}, so it "
            "cannot teach it: name the model that the checkpoint was cut from."
        )
