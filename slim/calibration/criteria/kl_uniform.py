"""How far a head's attention is from looking at every visible key alike."""

from typing import TYPE_CHECKING

from slim.calibration.criteria.base import Criterion, head_shares, row_sums
from slim.calibration.criteria.entropy import Entropy

if TYPE_CHECKING:
    from slim.models.probe import LayerView


class KlToUniform(Entropy):
    """Mean over positions of ln n_i − H_i = KL(attention ‖ uniform over the n_i visible keys)."""

    def update(self, view: "LayerView") -> None:
        import torch

        most = torch.log(view.visible.clamp_min(1).to(view.entropy.dtype))[..., None]  # (B, T, 1)
        self.keep(view.layer, total=row_sums(most - view.entropy, view.valid), count=view.valid.sum(1))


CRITERION = Criterion(
    name="kl_uniform",
    title="KL to uniform attention",
    unit="nats",
    high_is_prunable=False,
    levels=("head", "group", "block"),
    method="mean over positions of ln(visible keys) − entropy; low = uninformative",
    meter=KlToUniform,
    shares=head_shares,
)
