"""How far an attention block turns the residual stream it is added to."""

import torch

from slim.metrics.base import Criterion, Scores
from slim.models import Loaded
from slim.probe import LayerView


class BlockInfluence:
    """Mean over positions of 1 − cos(x, x + Δ) (ShortGPT, Men et al. 2024; for attention blocks, He et al. 2024)."""

    def __init__(self, loaded: Loaded) -> None:
        self.total = torch.zeros(loaded.facts.layers, dtype=torch.float64)
        self.count = torch.zeros(loaded.facts.layers, dtype=torch.float64)

    def update(self, view: LayerView) -> None:
        before = view.residual[view.valid].float()
        after = before + view.delta[view.valid].float()
        influence = 1 - torch.cosine_similarity(before, after, dim=-1)
        self.total[view.layer] += influence.double().sum().cpu()
        self.count[view.layer] += len(influence)

    @property
    def positions(self) -> int:
        return max(1, int(self.count[0]))

    def scores(self) -> Scores:
        return {"block": (self.total / self.count.clamp_min(1)).clamp_min(0).numpy()}


CRITERION = Criterion(
    name="block_influence",
    title="Block influence",
    unit="0..2",
    high_is_prunable=False,
    levels=("block",),
    method="mean over positions of 1 − cos(residual, residual + block); low = removable",
    meter=BlockInfluence,
)
