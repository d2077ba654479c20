"""How far an attention block turns the residual stream it is added to."""

import torch

from slim.metrics.base import Criterion, PerLayer, Shares, Sums, row_sums
from slim.models import Loaded
from slim.probe import LayerView


class BlockInfluence(PerLayer):
    """Mean over positions of 1 − cos(x, x + Δ) (ShortGPT, Men et al. 2024; for attention blocks, He et al. 2024)."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()

    def update(self, view: LayerView) -> None:
        before, delta = view.residual.float(), view.delta.float()
        influence = (1 - torch.cosine_similarity(before, before + delta, dim=-1)).clamp_min(0)  # (B, T)
        self.keep(total=row_sums(influence, view.valid), count=view.valid.sum(1))


def shares(sums: Sums, loaded: Loaded) -> Shares:
    return {"block": (sums["total"], sums["count"])}


CRITERION = Criterion(
    name="block_influence",
    title="Block influence",
    unit="0..2",
    high_is_prunable=False,
    levels=("block",),
    method="mean over positions of 1 − cos(residual, residual + block); low = removable",
    meter=BlockInfluence,
    shares=shares,
)
