"""Ablation: the predictions of a model without a head, a KV group or a block, beside those of the whole model."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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
from slim.models.precision import products, rounded
from slim.models.predictions import counted_states, counted_tokens, logits_are_linear, logits_of, parts_in_cache
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
        self.normaliser = self.logits.new_empty(len(targets))
        self.p = torch.empty_like(self.logits)
        for part in parts_in_cache(self.logits):
            self.normaliser[part] = self.logits[part].logsumexp(-1)
            self.p[part] = (self.logits[part] - self.normaliser[part, None]).exp_()

    @property
    def surprise(self) -> Tensor:
        """Negative log likelihood of the targets in nats.  # (n,)"""
        return self.normaliser - self.logits.gather(1, self.targets)[:, 0]

    def compare(self, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return the KL to `other` (n, V), which is overwritten, and its negative log likelihood.  # (n,) twice"""
        nats, surprise = torch.empty_like(self.normaliser), torch.empty_like(self.normaliser)
        for part in parts_in_cache(self.logits):
            there = exact(other[part])
            normaliser = there.logsumexp(-1)
            surprise[part] = normaliser - there.gather(1, self.targets[part])[:, 0]
            nats[part] = _kl(self.logits[part], self.normaliser[part], self.p[part], there, normaliser)
        return nats, surprise

    def compare_change(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same of logits that differ by `change` (n, V).  # (n,) twice

        With p the probabilities and d the change, KL is ln Σ p eᵈ − Σ p d.
        """
        mean, rise = torch.empty_like(self.normaliser), torch.empty_like(self.normaliser)
        for part in parts_in_cache(self.logits):
            moved = exact(change[part])
            mean[part] = (self.p[part] * moved).sum(-1)
            rise[part] = moved.exp().mul_(self.p[part]).sum(-1).log()
        if not bool(rise.isfinite().all()):  # e to a change so large is beyond the format's range
            return self.compare(self.logits + change)
        return rise - mean, self.surprise + rise - exact(change.gather(1, self.targets)[:, 0])


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
    reads counted positions alone. Matrix products are in `precision`.
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
        self.counts = batch.predicted.sum(1).tolist()
        try:
            states = self._states(batch)
        finally:
            for handle in handles:
                handle.remove()
        targets = counted_tokens(batch).to(self.model.device).split(self.counts)
        logits = logits_of(loaded, states).split(self.counts)
        self.states = states.split(self.counts)
        self.baselines = [Baseline(*part) for part in zip(logits, targets, strict=True)]
        head: Any = self.model.get_output_embeddings()
        by_change = precision == "bfloat16" and logits_are_linear(loaded)
        self.rounded_head = head.weight.to(torch.bfloat16) if by_change else None  # (V, E)

    def __enter__(self) -> "Full":
        with ExitStack() as stack:
            self._probe = stack.enter_context(Probe(self.model, self.loaded.architecture))
            stack.enter_context(rounded(self.precision, self.layers))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

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
            states = self._states(self.batch.repeated(variants))
        found = np.zeros((2, rows, variants))
        for place, (nats, negative) in enumerate(self._compared(states, variants)):
            variant, row = divmod(place, rows)
            found[:, row, variant] = max(0.0, total(nats)), total(negative)
        return found[0], found[1]

    def _states(self, batch: Batch) -> Tensor:
        """Return what the output head reads at a batch's counted positions, row after row.  # (n, E)"""
        with products(self.precision, self.model):
            return counted_states(self.loaded, batch)

    def _compared(self, states: Tensor, variants: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield KL and negative log-likelihood of each variant's `states`, of one row after another.  # (n,) twice

        Rounded logits would be off by as much as a small block changes them. Their change is rounded in proportion to
        itself, so where the head is linear its product in bfloat16 is of the change.
        """
        counts = self.counts * variants
        if self.rounded_head is None:
            for place, logits in enumerate(logits_of(self.loaded, states).split(counts)):
                yield self.baselines[place % len(self.counts)].compare(logits)
            return
        for place, part in enumerate(states.split(counts)):
            row = place % len(self.counts)
            change = (part - self.states[row]).to(torch.bfloat16)
            yield self.baselines[row].compare_change(nn.functional.linear(change, self.rounded_head))

    def surprise(self) -> NDArray[np.float64]:
        """Negative log likelihood of each row under the full model.  # (B,)"""
        return np.array([total(baseline.surprise) for baseline in self.baselines])


def _keep(reached: list[Tensor], layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    reached.append(args[0] if args else kwargs["hidden_states"])
