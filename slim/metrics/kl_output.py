"""What the model's predictions lose without a head (from the loss sketch) or without a block (measured)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slim.architectures import decoder_layers
from slim.metrics.base import Criterion
from slim.models import Loaded
from slim.probe import Probe
from slim.tasks import Batch

CRITERION = Criterion(
    name="kl_output",
    title="KL of the output",
    unit="nats/token",
    high_is_prunable=False,
    levels=("head", "group", "block"),
    method="KL(full ‖ without it), heads and groups by the sketch of every other row, blocks measured; low = removable",
    meter=None,
)


def kl_divergence(full: Tensor, other: Tensor) -> Tensor:
    """KL(full ‖ other) in nats at each position, from logits (…, V)."""
    log_p = full.float().log_softmax(-1)
    return _kl_from(log_p, log_p.exp(), other)


def _kl_from(log_p: Tensor, p: Tensor, other: Tensor) -> Tensor:
    other = other.float()
    return (p * (log_p - other)).sum(-1) + other.logsumexp(-1)


class _Given(nn.Module):
    """A layer that hands on a hidden state computed before, or what it gets."""

    def __init__(self, hidden: Tensor | None = None) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states if self.hidden is None else self.hidden


@contextmanager
def started_at(layers: nn.ModuleList, start: int, hidden: Tensor) -> Iterator[None]:
    """The model runs from layer `start` on with `hidden` (B, T, E) as its input; the layers before it are skipped."""
    original = list(layers)
    try:
        for index in range(start):
            layers[index] = _Given(hidden if index == start - 1 else None)
        yield
    finally:
        for index, layer in enumerate(original):
            layers[index] = layer


@torch.no_grad()
def block_costs(loaded: Loaded, batch: Batch) -> Iterator[tuple[int, float]]:
    """Per layer the summed KL in nats of this batch without the layer's attention block, everything else in place.

    A layer's input does not depend on what follows, so each ablation starts at its own layer.
    """
    model, layers = loaded.model, decoder_layers(loaded.model, loaded.architecture)
    inputs = batch.inputs(model.device)
    predicted = batch.predicted.to(model.device)
    reached: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(partial(_keep, reached), with_kwargs=True) for layer in layers]
    try:
        full = model(**inputs, use_cache=False).logits[:, :-1][predicted]
    finally:
        for handle in handles:
            handle.remove()
    log_p = full.float().log_softmax(-1)
    p = log_p.exp()
    with Probe(model, loaded.architecture) as probe:
        for layer in range(len(reached)):
            probe.removed = frozenset({layer})
            with started_at(layers, layer, reached[layer]):
                ablated = model(**inputs, use_cache=False).logits[:, :-1][predicted]
            yield layer, float(_kl_from(log_p, p, ablated).double().sum().clamp_min(0))


def _keep(reached: list[Tensor], layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    reached.append(args[0] if args else kwargs["hidden_states"])
