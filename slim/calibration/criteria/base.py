"""The interface of a criterion, and the sums per row that all of them are made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from slim.models.units import UnitName

if TYPE_CHECKING:
    from torch import Tensor

    from slim.models.load import Loaded
    from slim.models.probe import LayerView

Scores = dict[UnitName, NDArray[np.float64]]
"""Per level the figures: head (L, H), group (L, K), block (L,)."""
Sums = Mapping[str, NDArray]
"""A metric's sums per row, by name; every array has the rows first. They are cached, as a row alone decides them."""
Shares = dict[UnitName, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Per level `parts` (R, L, units) or (R, L) and `weights` (R, L): the figure is Σ parts / Σ weights over the rows."""


class Meter(Protocol):
    """Watches the blocks of a forward, in order."""

    def update(self, view: "LayerView") -> None: ...

    def take(self) -> Sums:
        """Return the sums of the rows that were forwarded since the last call."""
        ...


@dataclass(frozen=True)
class Criterion:
    """A metric by name: watched in plain forwards (`meter`, `shares`), of the weights alone (`of_weights`), or neither.

    `version` goes up when the code gives other figures than before: kept results of older code are not used then.
    """

    name: str
    title: str
    unit: str
    high_is_prunable: bool
    levels: tuple[UnitName, ...]
    method: str
    meter: "Callable[[Loaded], Meter] | None" = None
    shares: "Callable[[Sums, Loaded], Shares] | None" = None
    of_weights: "Callable[[Loaded], Scores] | None" = None
    version: int = 1


class PerLayer:
    """Collects one tensor per layer and name; `take` gives them as (B, L, …) and starts anew."""

    def __init__(self, loaded: "Loaded") -> None:
        self.layers = loaded.facts.layers
        self._found: dict[str, Tensor] = {}

    def keep(self, layer: int, **sums: "Tensor") -> None:
        """A layer's sums, rows first. The first layer starts anew, should a forward not have come to its end."""
        for name, tensor in sums.items():
            if layer == 0 or name not in self._found:
                # room for all layers at once: small tensors that outlive the large ones around them would scatter over
                # the heap, which then grows to several times what is in use
                self._found[name] = tensor.new_zeros(len(tensor), self.layers, *tensor.shape[1:])
            self._found[name][:, layer] = tensor

    def take(self) -> Sums:
        taken = {name: tensor.cpu().numpy() for name, tensor in self._found.items()}
        self._found = {}
        return taken


def row_sums(values: "Tensor", where: "Tensor") -> "Tensor":
    """Σ over the tokens `where` (B, T) of `values` (B, T, …), rows kept apart, in float64.  # (B, …)"""
    import torch

    where = where.reshape(*where.shape, *[1] * (values.ndim - where.ndim))
    return values.where(where, 0).sum(1, dtype=torch.float64)


def exact(tensor: "Tensor") -> "Tensor":
    """In float32 or more, in which statistics are computed whatever the model's dtype."""
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def head_shares(sums: Sums, loaded: "Loaded") -> Shares:
    """The mean of one number per head, `total` (R, L, H) over `count` (R, L); a group or block averages its heads."""
    total, count = sums["total"], sums["count"]
    grouped = total.reshape(*total.shape[:2], loaded.facts.kv_heads, -1)
    return {"head": (total, count), "group": (grouped.mean(-1), count), "block": (total.mean(-1), count)}
