"""How spread a head's attention is over the keys it can see."""

from typing import TYPE_CHECKING

from slim.calibration.criteria.base import Criterion, PerLayer, head_shares, row_sums

if TYPE_CHECKING:
    from slim.models.probe import LayerView


class Entropy(PerLayer):
    """Mean over query positions of −Σ_j a_ij ln a_ij."""

    def update(self, view: "LayerView") -> None:
        self.keep(view.layer, total=row_sums(view.entropy, view.valid), count=view.valid.sum(1))


class NormalizedEntropy(Entropy):
    """Mean over positions with at least two visible keys of H_i / ln n_i, so that lengths compare."""

    def update(self, view: "LayerView") -> None:
        import torch

        most = torch.log(view.visible.clamp_min(2).to(view.entropy.dtype))[..., None]  # (B, T, 1)
        counted = view.valid & (view.visible >= 2)
        self.keep(view.layer, total=row_sums(view.entropy / most, counted), count=counted.sum(1))


ENTROPY = Criterion(
    name="entropy",
    title="Attention entropy",
    unit="nats",
    high_is_prunable=True,
    levels=("head", "group", "block"),
    method="mean over positions of the attention's entropy; high = diffuse",
    meter=Entropy,
    shares=head_shares,
)
ENTROPY_NORM = Criterion(
    name="entropy_norm",
    title="Normalised entropy",
    unit="0..1",
    high_is_prunable=True,
    levels=("head", "group", "block"),
    method="mean of entropy / ln(visible keys) over positions with two keys or more",
    meter=NormalizedEntropy,
    shares=head_shares,
)
