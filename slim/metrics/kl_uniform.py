"""How far a head's attention is from looking at every visible key alike."""

import torch

from slim.metrics.base import Criterion, HeadMean
from slim.probe import LayerView


class KlToUniform(HeadMean):
    """Mean over positions of ln n_i − H_i = KL(attention ‖ uniform over the n_i visible keys)."""

    def update(self, view: LayerView) -> None:
        most = torch.log(view.visible.clamp_min(1).float())[..., None]  # (B, T, 1)
        self.add(view.layer, most - view.entropy, view.valid)


CRITERION = Criterion(
    name="kl_uniform",
    title="KL to uniform attention",
    unit="nats",
    high_is_prunable=False,
    levels=("head", "group", "block"),
    method="mean over positions of ln(visible keys) − entropy; low = uninformative",
    meter=KlToUniform,
)
