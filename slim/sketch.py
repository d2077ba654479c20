"""The loss sketch: what removing ANY set of heads will cost, forecast from one gradient per row and draw.

Give every head a gate g = 1 on its output. To second order KL(p ‖ p without the heads in d) is ½ dᵀF d, with F the
Fisher information of the gates. F is sampled: for every predicted position a random vector v on the logits with
covariance diag(p) − ppᵀ (signs √p ε, projected off p) is drawn, and one backward pass gives the row's score vector
s = Σ_t J_tᵀ v_t, whose outer product has expectation F. Drawing v with signs instead of sampling a token has the same
covariance without the heavy tails of rare tokens. Fisher pruning: Theis et al. 2018 (arXiv:1801.05787).
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slim.models import Loaded
from slim.probe import Probe
from slim.records import Forecast
from slim.tasks import Batch

BOOTSTRAP = 400


@dataclass(frozen=True)
class LossSketch:
    """R score rows over the L·H heads, each with the sequence it comes from and its number of predicted positions."""

    scores: NDArray[np.float32]  # (R, L·H)
    tokens: NDArray[np.int64]  # (R,)
    sequence: NDArray[np.int64]  # (R,)

    def single(self) -> NDArray[np.float64]:
        """Forecast KL in nats/token of removing each head alone.  # (L·H,)"""
        return 0.5 * np.square(self.scores, dtype=np.float64).sum(0) / self.tokens.sum()

    def forecast(self, removed: NDArray[np.bool_], seed: int = 0) -> Forecast:
        """Forecast KL(original ‖ without the heads `removed` (L, H)), 95% interval by bootstrap over sequences."""
        energy = 0.5 * np.square(self.scores @ removed.reshape(-1).astype(np.float32), dtype=np.float64)  # (R,)
        names, place = np.unique(self.sequence, return_inverse=True)
        cost, length = np.bincount(place, energy), np.bincount(place, self.tokens)
        picks = np.random.default_rng(seed).integers(len(names), size=(BOOTSTRAP, len(names)))
        low, high = np.quantile(cost[picks].sum(1) / length[picks].sum(1), (0.025, 0.975))
        return Forecast(
            nats_per_token=cost.sum() / length.sum(), low=float(low), high=float(high), sequences=len(names)
        )

    def fold(self, which: int) -> "LossSketch":
        """Every other sequence: choose on one fold, forecast on the other, or the forecast flatters the choice."""
        names = np.unique(self.sequence)
        if len(names) < 2:
            return self
        rows = np.isin(self.sequence, names[which::2])
        return LossSketch(self.scores[rows], self.tokens[rows], self.sequence[rows])


def score_rows(loaded: Loaded, batch: Batch, draws: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The score vectors (draws, B, L·H) of a batch and the predicted positions (B,) of its rows."""
    facts, device = loaded.facts, loaded.model.device
    predicted = batch.predicted.to(device)
    gates = torch.ones(len(batch.rows), facts.layers, facts.heads, device=device, requires_grad=True)
    with Probe(loaded.model, loaded.architecture) as probe, torch.enable_grad():
        probe.gates = gates
        logits = loaded.model(**batch.inputs(device), use_cache=False).logits[:, :-1]  # (B, T-1, V)
        root = logits.detach().float().softmax(-1).sqrt_()
        scores = []
        for draw in range(draws):
            direction = _direction(root, predicted, batch.rows, draw, seed)
            (score,) = torch.autograd.grad(logits, gates, direction.to(logits.dtype), retain_graph=draw < draws - 1)
            scores.append(score.flatten(1))
    return torch.stack(scores).float().cpu().numpy(), predicted.sum(1).cpu().numpy()


def _direction(root: Tensor, predicted: Tensor, rows: Iterable[int], draw: int, seed: int) -> Tensor:
    """√p ε − p (√p·ε) at each predicted position, from a seed of its own per row and draw.  # (B, T-1, V)"""
    direction = torch.zeros_like(root)
    for place, row in enumerate(rows):
        chosen = root[place][predicted[place]]  # (n, V)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{row}/{draw}".encode()))
        signs = torch.randint(0, 2, chosen.shape, generator=generator, dtype=torch.int8).to(root.device)
        drawn = torch.where(signs.bool(), chosen, -chosen)
        drawn -= chosen * chosen * drawn.sum(-1, keepdim=True)
        direction[place, predicted[place]] = drawn
    return direction
