"""How far an attention block turns the residual stream it is added to."""

from typing import TYPE_CHECKING

from slim.calibration.criteria.base import Criterion, PerLayer, Shares, Sums, exact, row_sums

if TYPE_CHECKING:
    from slim.models.load import Loaded
    from slim.models.probe import LayerView

TINY = 1e-16
"""Keeps a residual of nothing from dividing by nothing."""


class BlockInfluence(PerLayer):
    """Mean over positions of 1 − cos(x, x + Δ) (ShortGPT, Men et al. 2024; for attention blocks, He et al. 2024)."""

    def update(self, view: "LayerView") -> None:
        import torch

        before = exact(view.residual)
        after = before + exact(view.delta)
        lengths = torch.linalg.vector_norm(before, dim=-1) * torch.linalg.vector_norm(after, dim=-1)  # (B, T)
        cosine = torch.linalg.vecdot(before, after) / lengths.clamp_min(TINY)
        influence = (1 - cosine).clamp_min(0)
        self.keep(view.layer, total=row_sums(influence, view.valid), count=view.valid.sum(1))


def shares(sums: Sums, loaded: "Loaded") -> Shares:
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
