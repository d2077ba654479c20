"""Soft targets: the original's likeliest tokens at every counted position of rows, computed once and cached."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diskcache import Cache
from torch import Tensor

from slim.calibration.criteria.base import exact
from slim.core.cache import Arrays
from slim.core.errors import InputError
from slim.core.reporter import Step, uncounted
from slim.data import tasks
from slim.data.batch_runner import no_numbers, run_batches
from slim.models.identity import row_cache
from slim.models.load import Loaded
from slim.models.predictions import counted_logits, parts_in_cache

VERSION = 1
"""Version of the cached targets: raise it when the code gives other ones."""
TOP = 64
"""Likeliest tokens of a position in its soft targets; all others count as one."""


@dataclass(frozen=True)
class SoftTargets:
    """The original's distribution at n positions: its k likeliest tokens, and all others as one."""

    ids: Tensor  # (n, k)
    logs: Tensor  # (n, k), ln p of these
    rest: Tensor  # (n,), ln p of all others together

    def __getitem__(self, part: slice) -> "SoftTargets":
        return SoftTargets(self.ids[part], self.logs[part], self.rest[part])

    def divergence(
        self, logits: Tensor, temperature: float = 1.0, slope: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        """KL(original ‖ model) in nats at each position, from the model's logits (n, V) there.  # (n,)

        Tokens beyond the k likeliest count as one, so this is at most the KL over the whole vocabulary. `temperature`
        must be that of the soft targets. The slope by the logits, times `weight`, is added to `slope` (n, V).
        """
        nats = torch.empty_like(self.rest)
        for part in parts_in_cache(logits):
            nats[part] = self[part]._divergence(
                logits[part], temperature, None if slope is None else slope[part], weight
            )
        return nats

    def _divergence(self, logits: Tensor, temperature: float, slope: Tensor | None, weight: float) -> Tensor:
        """The same of so few positions that their logits stay in a core's cache.

        With m the model's probabilities of the likeliest tokens and of the rest, and t the soft targets, the slope by
        the logit of one of these tokens is Σt · m − t, and that of the rest is shared out among all others as the model
        does.
        """
        scaled = exact(logits) / temperature
        mine = scaled.gather(1, self.ids)  # (n, k)
        others = scaled.scatter_(1, self.ids, -torch.inf)
        most = others.amax(-1, keepdim=True)
        others = others.sub_(most).exp_()  # (n, V), 0 where the likeliest tokens are
        total = others.sum(-1)
        beyond = most[:, 0] + total.log()
        normalizer = torch.cat([mine, beyond[:, None]], 1).logsumexp(-1)
        mine, beyond = mine - normalizer[:, None], beyond - normalizer
        wanted, wanted_rest = self.logs.exp(), self.rest.exp()
        if slope is not None:
            whole = wanted.sum(-1) + wanted_rest
            share = (whole * beyond.exp() - wanted_rest) / total
            others.mul_(share[:, None]).scatter_(1, self.ids, whole[:, None] * mine.exp() - wanted)
            slope.add_(others, alpha=weight / temperature)
        return (wanted * (self.logs - mine)).sum(-1) + wanted_rest * (self.rest - beyond)


def stacked_targets(arrays: Sequence[Arrays], device: torch.device) -> SoftTargets:
    """Return the soft targets of rows, their positions concatenated."""
    ids, logs, rest = (
        torch.cat([torch.from_numpy(row[name]) for row in arrays]).to(device) for name in ("ids", "logs", "rest")
    )
    return SoftTargets(ids.long(), logs, rest)


def soft_targets(logits: Tensor, temperature: float = 1.0, top: int = TOP) -> SoftTargets:
    """Return the soft targets of logits (n, V) at `temperature`."""
    scaled = exact(logits) / temperature
    normalizer = scaled.logsumexp(-1)
    values, ids = scaled.topk(min(top, scaled.shape[1] - 1))
    rest = scaled.scatter(1, ids, -torch.inf).logsumexp(-1) - normalizer
    return SoftTargets(ids, values - normalizer[:, None], rest)


def targets_of_rows(
    original: Loaded,
    encoded: tasks.Encoded,
    temperature: float = 1.0,
    *,
    batch_size: int = 8,
    cache: Cache | None = None,
    step: Step | None = None,
) -> list[Arrays]:
    """Return the original's soft targets at the counted positions of each row: `ids`, `logs` and `rest`.

    Cached rows are not computed again. Raises SlimError where the original gives NaN or infinite numbers.
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

    cached = row_cache(cache, original, teacher=VERSION, temperature=temperature, top=TOP)
    every = range(len(encoded.rows))
    return run_batches(encoded, every, compute, cached, batch_size, "right", step or uncounted())


def check_vocabulary(original: Loaded, model: Loaded) -> None:
    """Raise InputError where two models do not have the same tokens."""
    if original.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise InputError(
            f"original={original.facts.source!r}: its tokenizer is not that of {model.facts.source!r}; name the model "
            "that the checkpoint was cut from."
        )
    ours, theirs = (one.model.config.vocab_size for one in (model, original))
    if ours != theirs:
        raise InputError(
            f"original={original.facts.source!r}: it predicts {theirs:,} tokens and {model.facts.source!r} {ours:,}; "
            "name the model that the checkpoint was cut from."
        )
