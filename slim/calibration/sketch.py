"""The loss sketch: what removing ANY heads, blocks or MLPs will cost, forecast from one gradient per row and draw.

Give every head, attention block and MLP a gate g = 1 on what it adds. To second order KL(p ‖ p without what is in d) is
½ dᵀF d, with F the Fisher information of the gates (Fisher pruning, Theis et al. 2018, arXiv:1801.05787). F is sampled:
at every predicted position draw a vector v on the logits with covariance diag(p) − ppᵀ; one backward pass then gives a
score vector s = Σ_t J_tᵀ v_t whose outer product has expectation F.

Two things make few draws enough. v is the signed mean of many sampled tokens, Σ ±(e_y − p)/√m: the same covariance as
one token's without its heavy tails, and sparse, so that the way back through the output head is a few rows of its
weight. And a row's tokens are cut into segments with gates of their own: s falls apart into one score vector per
segment, and summing their squares keeps what a head does within a stretch of text while leaving out cross terms that
are almost all noise.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from slim.data.batch_runner import no_numbers
from slim.data.tasks import Batch
from slim.models.load import Loaded
from slim.models.precision import products
from slim.models.probe import Observer, Probe

VERSION = 1
"""Goes up when the code gives other scores than before: kept results of older code are not used then."""
SEGMENT = 16
"""Tokens whose gates are one."""
SAMPLED = 16
"""Tokens drawn per position and draw."""


def score_rows(
    loaded: Loaded,
    batch: Batch,
    draws: int,
    seed: int,
    observers: Sequence[Observer] = (),
    forward: str = "float32",
    backward: str = "float32",
) -> list[NDArray[np.float32]]:
    """The score vectors of each row of a batch, draw after draw.  # B of (draws · segments, L, H+2)

    `observers` see the blocks of the forward. With bfloat16 the matrix products of the layers are so, in the `forward`
    or the `backward`. Each costs a score about a thousandth of itself; a forward in bfloat16 also draws other tokens,
    by predictions that are a little off, so its scores are those of another seed.
    """
    facts, device, dtype = loaded.facts, loaded.model.device, loaded.model.dtype
    rows, length = batch.ids.shape
    segments = -(-length // SEGMENT)
    gates = torch.ones(rows, segments, facts.layers, facts.heads + 2, device=device, requires_grad=True)
    with Probe(loaded.model, loaded.architecture, observers) as probe, torch.enable_grad():
        probe.valid = batch.valid.to(device)
        places = (batch.valid.cumsum(1) - 1).clamp_min(0).to(device) // SEGMENT  # (B, T), by the row's own tokens
        per_token = gates.to(dtype)[torch.arange(rows, device=device)[:, None], places]  # (B, T, L, H+2)
        probe.gates = per_token
        with HeadInput(loaded.model) as head, products(forward, loaded.model):
            logits = loaded.model(**batch.inputs(device), use_cache=False).logits
        directions = Directions(head, logits, batch, draws, seed)
        del logits
        found: list[list[Tensor]] = [[] for _ in range(rows)]
        for draw in range(draws):
            with products(backward, loaded.model):
                (score,) = torch.autograd.grad(
                    head.hidden, gates, directions.of(draw), retain_graph=draw < draws - 1
                )  # (B, S, L, H+2)
            for row, tokens in enumerate(batch.valid.sum(1).tolist()):
                found[row].append(score[row, : -(-tokens // SEGMENT)])
    return [torch.cat(parts).float().cpu().numpy() for parts in found]


class HeadInput:
    """Keeps what goes into the output head and what comes out of it, before anything is done to the logits."""

    hidden: Tensor  # (B, T, E)
    raw: Tensor  # (B, T, V)

    def __init__(self, model: Any) -> None:
        self.head = model.get_output_embeddings()

    def __enter__(self) -> "HeadInput":
        self._handle = self.head.register_forward_hook(self._keep)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _keep(self, head: Any, args: tuple[Tensor], output: Tensor) -> None:
        self.hidden, self.raw = args[0], output


class Directions:
    """Cotangents of the output head's input: v pulled back through the head, one draw after the other."""

    def __init__(self, head: HeadInput, logits: Tensor, batch: Batch, draws: int, seed: int) -> None:
        self.weight, self.hidden = head.head.weight, head.hidden  # (V, E), (B, T, E)
        self.rows: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        slope = None if logits is head.raw else torch.autograd.grad(logits.sum(), head.raw, retain_graph=True)[0]
        with torch.no_grad():
            for row, chosen in enumerate(batch.predicted.to(logits.device)):
                places = chosen.nonzero()[:, 0]
                if not len(places):
                    continue
                p = logits[row, places].to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)  # (n, V)
                if not bool(p.sum().isfinite()):
                    raise no_numbers("its predictions", batch, torch.arange(len(batch.ids)) != row)
                generator = torch.Generator(p.device).manual_seed(_seed(batch.ids[row][batch.valid[row]], seed))
                count = SAMPLED * draws
                tokens = torch.multinomial(p, count, replacement=True, generator=generator)  # (n, count)
                signs = torch.randint(0, 2, tokens.shape, generator=generator, device=p.device) * 2.0 - 1
                factors = signs.to(self.weight.dtype)
                if slope is not None:
                    p = p * slope[row, places]
                    factors = factors * slope[row, places].gather(1, tokens).to(factors.dtype)
                mean = p.to(self.weight.dtype) @ self.weight  # (n, E)
                self.rows[row] = (places, tokens, torch.stack((factors, signs.to(factors.dtype))), mean)

    def of(self, draw: int) -> Tensor:
        """Σ ±(c_y W_y − Σ_v p_v c_v W_v)/√m at the predicted positions, with c the slope of the logits.  # (B, T, E)"""
        drawn = slice(draw * SAMPLED, (draw + 1) * SAMPLED)
        direction = torch.zeros_like(self.hidden)
        for row, (places, tokens, (factors, signs), mean) in self.rows.items():
            picked = embedding_bag(
                tokens[:, drawn], self.weight, per_sample_weights=factors[:, drawn].contiguous(), mode="sum"
            )  # (n, E)
            pulled = picked - signs[:, drawn].sum(1, keepdim=True) * mean
            direction[row, places] = pulled / math.sqrt(SAMPLED)
        return direction


def _seed(ids: Tensor, seed: int) -> int:
    """A seed of a row's own, so that its draws do not depend on the rows beside it."""
    return zlib.crc32(ids.numpy().tobytes(), seed)
