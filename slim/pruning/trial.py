"""A plan tried on the loaded original: what it removes is passed by, nothing is removed or written."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from slim.core.records import Keep
from slim.models.load import Loaded
from slim.models.probe import Probe


@contextmanager
def masked(loaded: Loaded, keep: Keep) -> Iterator[None]:
    """Inside, `loaded` answers as it would pruned to `keep`, with and without a cache. Not for several threads."""
    with Probe(loaded.model, loaded.architecture) as probe:
        probe.gates, probe.deltas = gates_of(loaded, keep)
        yield


def gates_of(loaded: Loaded, keep: Keep) -> tuple[Tensor, Tensor]:
    """Gates and deltas for a Probe that silence what a plan removes.  # (1, L, H), (1, L, 2)"""
    facts = loaded.facts
    gates = torch.zeros(1, facts.layers, facts.heads, dtype=loaded.model.dtype)
    deltas = torch.ones(1, facts.layers, 2, dtype=loaded.model.dtype)
    for layer, heads in enumerate(keep):
        gates[:, layer, list(heads or ())] = 1
        deltas[:, layer, 0] = float(bool(heads))
        deltas[:, layer, 1] = float(heads is not None)
    return gates.to(loaded.model.device), deltas.to(loaded.model.device)
