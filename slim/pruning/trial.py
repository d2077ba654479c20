"""A masked trial of a plan on the loaded original: gates switch off what it removes; no weight changes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from slim.models.columns import removed_columns
from slim.models.load import Loaded
from slim.models.probe import Probe
from slim.models.units import Keep


@contextmanager
def masked(loaded: Loaded, keep: Keep) -> Iterator[None]:
    """Make `loaded` compute inside the block what it would pruned to `keep`, with and without a cache.

    Only one thread may use the model meanwhile.
    """
    with Probe(loaded.model, loaded.architecture) as probe:
        probe.gates = gates_of(loaded, keep)
        yield


def gates_of(loaded: Loaded, keep: Keep) -> Tensor:
    """Return the gates of a Probe that switch off what a plan removes.  # (1, L, H+2)"""
    kept = torch.from_numpy(~removed_columns(keep, loaded.facts.heads))
    return kept[None].to(loaded.model.device, loaded.model.dtype)
