"""Ablation: the predictions of a model without a head, a KV group or a block, beside those of the whole model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim.calibration.criteria.base import exact
from slim.core.records import ModelFacts
from slim.data.batch_runner import out_of_memory
from slim.data.tasks import Batch
from slim.models.architectures import decoder_layers
from slim.models.columns import unit_columns
from slim.models.layerwise import started_at
from slim.models.load import Loaded
from slim.models.precision import products
from slim.models.predictions import counted_states, counted_tokens, logits_of
from slim.models.probe import Probe
from slim.models.units import UNITS, UnitName

TOKENS_AT_ONCE = 1536
"""Tokens of ablated variants in one forward: enough to keep the processor busy, few enough for their logits."""


def kl_divergence(full: Tensor, other: Tensor) -> Tensor:
    """KL(full ‖ other) in nats at each position, from logits (n, V)."""
    full, other = exact(full), exact(other)
    normaliser = full.logsumexp(-1)
    return _kl(full, normaliser, (full - normaliser[..., None]).exp(), other.clone(), other.logsumexp(-1))


def _kl(full: Tensor, normaliser: Tensor, p: Tensor, other: Tensor, other_normaliser: Tensor) -> Tensor:
    """Σ_v p (ln p − ln q) from the difference of the logits. Overwrites `other`.

    A sum adds pairwise; a matrix product adds one after the other, which loses three digits over a vocabulary.
    """
    return other_normaliser - normaliser - other.sub_(full).mul_(p).sum(-1)


class Baseline:
    """The full model's predictions at n positions, to hold many others against."""

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        self.logits, self.targets = exact(logits), targets[:, None]  # (n, V), (n, 1)
        self.normaliser = self.logits.logsumexp(-1)
        self.p = (self.logits - self.normaliser[:, None]).exp_()

    @property
    def surprise(self) -> Tensor:
        """Negative log likelihood of the targets in nats.  # (n,)"""
        return self.normaliser - self.logits.gather(1, self.targets)[:, 0]

    def compare(self, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return the KL to `other` (n, V), which is overwritten, and its negative log likelihood.  # (n,) twice"""
        other = exact(other)
        normaliser = other.logsumexp(-1)
        surprise = normaliser - other.gather(1, self.targets)[:, 0]
        return _kl(self.logits, self.normaliser, self.p, other, normaliser), surprise


def total(nats: Tensor) -> float:
    """Return the sum over positions (n,)."""
    return float(nats.double().sum())


@dataclass(frozen=True)
class Ablation:
    """One unit ablated in a layer, and the columns that go with it (slim.models.units)."""

    level: UnitName
    columns: tuple[int, ...]


def ablations(facts: ModelFacts, levels: Sequence[UnitName]) -> tuple[Ablation, ...]:
    """Every unit of these levels that a layer has, one after another: what is ablated alone."""
    return tuple(
        Ablation(level, tuple(map(int, np.flatnonzero(columns))))
        for level in levels
        for columns in unit_columns(UNITS[level], facts)
    )


@torch.no_grad()
def ablate(
    loaded: Loaded, batch: Batch, chosen: Sequence[Sequence[Ablation]], precision: str = "float32"
) -> Iterator[NDArray[np.float64]]:
    """Per layer the summed KL in nats of each row without each of its `chosen`, one at a time.  # (B, variants)

    A layer's input does not depend on what is left out of it or after it: it is computed once, each ablation starts at
    its own layer, and variants of a layer share forwards. The output head is never shared, which bounds the gain; it
    reads counted positions alone. Matrix products of the layers are in `precision`, those of the head in float32.
    """
    facts = loaded.facts
    with Full(loaded, batch, keep_inputs=True, precision=precision) as full:
        for layer, ablations_here in enumerate(chosen):
            removed = np.zeros((len(ablations_here), facts.layers, facts.heads + 2), dtype=bool)
            for index, ablation in enumerate(ablations_here):
                removed[index, layer, list(ablation.columns)] = True
            costs = np.zeros((len(batch.rows), len(removed)))
            for part in full.parts(removed):
                costs[:, part], _ = full.compare(removed[part], layer)
            yield costs


@torch.no_grad()
def without(
    loaded: Loaded, batch: Batch, removed: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Measure the loss of joint removals on each row, summed over its predicted positions, in nats.

    `removed` (S, L, H+2) says which heads, attention block and MLP of each layer are left out. Gives the KL to the full
    model (B, S), the negative log likelihood of the row's own tokens (B, S), and that of the full model (B,).
    """
    costs, surprise = np.zeros((2, len(batch.rows), len(removed)))
    with Full(loaded, batch) as full:
        for part in full.parts(removed):
            costs[:, part], surprise[:, part] = full.compare(removed[part])
        return costs, surprise, full.surprise()


class Full:
    """A batch's predictions by the full model, and those of variants of it, all in one open probe."""

    def __init__(self, loaded: Loaded, batch: Batch, keep_inputs: bool = False, precision: str = "float32") -> None:
        self.loaded, self.batch, self.model, self.precision = loaded, batch, loaded.model, precision
        self.reached: list[Tensor] = []
        self.layers = decoder_layers(self.model, loaded.architecture)
        watched = self.layers if keep_inputs else ()
        handles = [layer.register_forward_pre_hook(partial(_keep, self.reached), with_kwargs=True) for layer in watched]
        try:
            logits = self._logits(batch)
        finally:
            for handle in handles:
                handle.remove()
        self.counts = batch.predicted.sum(1).tolist()
        targets = counted_tokens(batch).to(logits.device).split(self.counts)
        self.baselines = [Baseline(*part) for part in zip(logits.split(self.counts), targets, strict=True)]

    def __enter__(self) -> "Full":
        self._probe = Probe(self.model, self.loaded.architecture).__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._probe.__exit__(*exception)

    def parts(self, removed: NDArray[np.bool_]) -> Iterator[slice]:
        """The variants that go through the model together."""
        step = max(1, TOKENS_AT_ONCE // self.batch.ids.numel())
        return (slice(start, min(start + step, len(removed))) for start in range(0, len(removed), step))

    def compare(self, removed: NDArray[np.bool_], start: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """KL and negative log likelihood of each row and variant, computed from layer `start` on.  # (B, S) twice

        Variants that do not fit in memory together are halved.
        """
        try:
            return self._compare(removed, start)
        except (RuntimeError, MemoryError) as error:
            if len(removed) < 2 or not out_of_memory(error):
                raise
        half = len(removed) // 2
        one, other = (self.compare(part, start) for part in (removed[:half], removed[half:]))
        return np.concatenate((one[0], other[0]), 1), np.concatenate((one[1], other[1]), 1)

    def _compare(self, removed: NDArray[np.bool_], start: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows, variants = len(self.counts), len(removed)
        kept = torch.from_numpy(~removed).to(self.model.device, self.model.dtype).repeat_interleave(rows, 0)
        self._probe.gates = kept
        hidden = self.reached[start].repeat(variants, 1, 1) if start else None
        with started_at(self.layers, start, hidden):
            logits = self._logits(self.batch.repeated(variants))
        found = np.zeros((2, rows, variants))
        for place, part in enumerate(logits.split(self.counts * variants)):
            variant, row = divmod(place, rows)
            nats, negative = self.baselines[row].compare(part)
            found[:, row, variant] = max(0.0, total(nats)), total(negative)
        return found[0], found[1]

    def _logits(self, batch: Batch) -> Tensor:
        """Return the logits of a batch's counted positions, row after row.  # (n, V)"""
        with products(self.precision, self.model):
            states = counted_states(self.loaded, batch)
        return logits_of(self.loaded, states)

    def surprise(self) -> NDArray[np.float64]:
        """Negative log likelihood of each row under the full model.  # (B,)"""
        return np.array([total(baseline.surprise) for baseline in self.baselines])


def _keep(reached: list[Tensor], layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    reached.append(args[0] if args else kwargs["hidden_states"])
