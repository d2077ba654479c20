"""What a criterion is, and the running mean that most of them share."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slim.models import Loaded
from slim.probe import LayerView

Level = Literal["head", "group", "block"]
Scores = dict[Level, NDArray[np.float64]]
"""Per level the figures: head (L, H), group (L, K), block (L,)."""


class Meter(Protocol):
    """Watches the forwards of a calibration and gives the figures at the end."""

    @property
    def positions(self) -> int:
        """Token positions the figures are means over."""
        ...

    def update(self, view: LayerView) -> None: ...

    def scores(self) -> Scores: ...


class MakeMeter(Protocol):
    def __call__(self, loaded: Loaded) -> Meter: ...


@dataclass(frozen=True)
class Criterion:
    """A metric by name. `meter` is None where it does not come from watching plain forwards."""

    name: str
    title: str
    unit: str
    high_is_prunable: bool
    levels: tuple[Level, ...]
    method: str
    meter: MakeMeter | None


class HeadMean:
    """Mean over valid positions of one number per head; a group or a block is the mean of its heads."""

    def __init__(self, loaded: Loaded) -> None:
        self.facts = loaded.facts
        self.total = torch.zeros(self.facts.layers, self.facts.heads, dtype=torch.float64)
        self.count = torch.zeros(self.facts.layers, dtype=torch.float64)

    def add(self, layer: int, values: Tensor, where: Tensor) -> None:
        """`values` (B, T, H) count at the positions `where` (B, T)."""
        self.total[layer] += values[where].double().sum(0).cpu()
        self.count[layer] += int(where.sum())

    @property
    def positions(self) -> int:
        return max(1, int(self.count[0]))

    def scores(self) -> Scores:
        heads = (self.total / self.count.clamp_min(1)[:, None]).numpy()
        grouped = heads.reshape(self.facts.layers, self.facts.kv_heads, self.facts.group)
        return {"head": heads, "group": grouped.mean(-1), "block": heads.mean(-1)}
