"""How spread a head's attention is over the keys it can see."""

import torch

from slim.metrics.base import Criterion, HeadMean
from slim.probe import LayerView


class Entropy(HeadMean):
    """Mean over positions of −Σ_j a_ij ln a_ij."""

    def update(self, view: LayerView) -> None:
        self.add(view.layer, view.entropy, view.valid)


class NormalisedEntropy(HeadMean):
    """Mean over positions with at least two visible keys of H_i / ln n_i, so that lengths compare."""

    def update(self, view: LayerView) -> None:
        most = torch.log(view.visible.clamp_min(2).float())[..., None]  # (B, T, 1)
        self.add(view.layer, view.entropy / most, view.valid & (view.visible >= 2))


ENTROPY = Criterion(
    name="entropy",
    title="Attention entropy",
    unit="nats",
    high_is_prunable=True,
    levels=("head", "group", "block"),
    method="mean over positions of the attention's entropy; high = diffuse",
    meter=Entropy,
)
ENTROPY_NORM = Criterion(
    name="entropy_norm",
    title="Normalised entropy",
    unit="0..1",
    high_is_prunable=True,
    levels=("head", "group", "block"),
    method="mean of entropy / ln(visible keys) over positions with two keys or more",
    meter=NormalisedEntropy,
)
