"""A model's predictions apart from its layers: the states that its output head reads, and logits from such states.

Logits of a whole batch take more memory than anything else in a forward pass, so they are made a few positions at a
time, and only of positions that count.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from slim.data.tasks import Batch
from slim.models.architectures import decoder_layers
from slim.models.layerwise import Enough, Passed, replaced
from slim.models.load import Loaded

LOGITS = {"cpu": 2**23}
"""Logits in memory at once, by device: so few stay in a CPU's caches."""
MANY_LOGITS = 2**28
"""The same on any other device."""
IN_CACHE = 2**18
"""Logits that stay in the cache of a CPU's core from one operation to the next."""


def counted_states(loaded: Loaded, batch: Batch) -> Tensor:
    """Return the states that the output head reads at a batch's counted positions, row after row.  # (n, E)"""
    found: list[Tensor] = []

    def note(states: Tensor) -> Tensor:
        found.append(_counted(states, batch))
        raise Enough

    with _head_reads(loaded.model, note), suppress(Enough):
        loaded.model(**batch.inputs(loaded.model.device), use_cache=False)
    return found[0]


def counted_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits (n, V) and next tokens (n,) of a batch's counted positions alone, row after row."""
    with _head_reads(model, lambda states: _counted(states, batch)):
        logits = model(**batch.inputs(model.device), use_cache=False).logits
    return logits, counted_tokens(batch).to(logits.device)


def counted_tokens(batch: Batch) -> Tensor:
    """Return the next tokens of a batch's counted positions, row after row.  # (n,)"""
    return batch.ids[:, 1:][batch.predicted]


def logits_of(loaded: Loaded, states: Tensor) -> Tensor:
    """Return the logits (n, V) that the model makes of `states` (n, E), as `counted_states` gives them.

    The whole model runs, on one token and without its layers: what it does to logits after its head is its own matter.
    """
    model = loaded.model
    layers = decoder_layers(model, loaded.architecture)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    skipped = {place: Passed() for place in range(len(layers))}
    with _head_reads(model, states[None].to), replaced(layers, skipped):
        return model(input_ids=token, use_cache=False).logits[0]


def logits_are_linear(loaded: Loaded) -> bool:
    """Whether the model does nothing to the logits that its output head gives."""
    head: Any = loaded.model.get_output_embeddings()
    raw: list[Tensor] = []
    handle = head.register_forward_hook(lambda module, args, output: raw.append(output))
    try:
        width = head.weight.shape[1]
        logits = logits_of(loaded, torch.zeros(1, width, device=loaded.model.device, dtype=loaded.model.dtype))
    finally:
        handle.remove()
    return bool(logits.data_ptr() == raw[0].data_ptr())


def positions_at_once(vocabulary: int, device: torch.device) -> int:
    """Return how many positions' logits are made together."""
    return max(1, LOGITS.get(device.type, MANY_LOGITS) // vocabulary)


def parts_in_cache(logits: Tensor) -> Iterator[slice]:
    """Yield the positions of logits (n, V) that are worked on together, where many operations follow one another."""
    count, vocabulary = logits.shape
    size = max(1, IN_CACHE // vocabulary) if logits.device.type == "cpu" else max(1, count)
    return (slice(start, start + size) for start in range(0, count, size))


def _counted(states: Tensor, batch: Batch) -> Tensor:
    return states[:, :-1][batch.predicted.to(states.device)]


@contextmanager
def _head_reads(model: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the output head reads what `change` makes of its input."""

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(args[0]), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
