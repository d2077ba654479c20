"""How much what a head writes into the residual stream changes from token to token."""

from typing import TYPE_CHECKING

import numpy as np

from slim.calibration.criteria.base import Criterion, PerLayer, Shares, Sums, exact
from slim.models.units import UnitName

if TYPE_CHECKING:
    from torch import Tensor

    from slim.models.load import Loaded
    from slim.models.probe import LayerView


class WriteVariance(PerLayer):
    """Trace of the covariance over tokens of the write W_h o_h, over the median squared norm of the residual.

    Σ‖W o‖² = tr(WᵀW Σ o oᵀ): of a unit's slice of the output projection only the Gram matrix WᵀW is needed (kept from
    batch to batch), of the outputs only their second moments, and the heads' are blocks of their group's. The median
    stands in the denominator because a mean is inflated many times over by massive activations (Sun et al. 2024).
    """

    def __init__(self, loaded: "Loaded") -> None:
        super().__init__(loaded)
        self.facts, self.loaded = loaded.facts, loaded
        self.joint = self.facts.group if self.facts.kv_heads > 1 else 1
        """Neighbouring heads whose second moments are taken together; all heads are written out instead."""
        self.grams = [self._gram(_weight(loaded, layer)) for layer in range(self.facts.layers)]

    def update(self, view: "LayerView") -> None:
        import torch

        heads, joint = exact(view.heads.masked_fill(~view.valid[..., None, None], 0)), self.joint  # (B, T, H, D)
        outputs = heads.unflatten(2, (-1, joint)).flatten(3)  # (B, T, units, joint·D)
        moments = outputs.permute(0, 2, 3, 1) @ outputs.transpose(1, 2)  # (B, units, joint·D, joint·D)
        energies = (moments * self.grams[view.layer]).unflatten(-1, (joint, -1)).unflatten(2, (joint, -1))
        own = energies.diagonal(dim1=2, dim2=4)  # (B, units, D, D, joint)
        written = heads.flatten(2) @ exact(_weight(self.loaded, view.layer)).T  # (B, T, E)
        found = {
            "energy1": own.sum((2, 3), dtype=torch.float64).flatten(1),  # (B, H)
            f"energy{joint}": energies.sum((2, 3, 4, 5), dtype=torch.float64),  # (B, units)
            f"energy{self.facts.heads}": _square_norms(written).sum(1, keepdim=True, dtype=torch.float64),  # (B, 1)
        }
        self.keep(
            view.layer,
            outputs=heads.sum(1, dtype=torch.float64),
            count=view.valid.sum(1),
            norms=_square_norms(exact(view.residual)).masked_fill(~view.valid, torch.nan),
            **found,
        )

    def _gram(self, weight: "Tensor") -> "Tensor":
        slices = exact(weight).unflatten(1, (-1, self.joint * self.facts.head_dim)).transpose(0, 1)
        return slices.mT @ slices  # (units, joint·D, joint·D)


def _weight(loaded: "Loaded", layer: int) -> "Tensor":
    from slim.models.stored_layers import write_weight

    return write_weight(loaded.model, loaded.architecture, layer)


def _square_norms(vectors: "Tensor") -> "Tensor":
    import torch

    return torch.linalg.vector_norm(vectors, dim=-1).square()


def shares(sums: Sums, loaded: "Loaded") -> Shares:
    """The trace is E‖w‖² − ‖E w‖²: a row's part of it is its Σ‖w‖² less the pull of its Σ w on the common mean."""
    facts, count = loaded.facts, sums["count"].astype(np.float64)
    median = np.stack([np.nanmedian(sums["norms"][:, layer]) for layer in range(facts.layers)])  # (L,)
    sizes: dict[UnitName, int] = {"head": 1, "group": facts.group, "block": facts.heads}
    every = {level: np.empty_like(sums[f"energy{size}"]) for level, size in sizes.items()}
    for layer in range(facts.layers):
        weight = _weight(loaded, layer).double().cpu().numpy()  # (E, H·D), one at a time: together they are many
        for level, size in sizes.items():
            energy, parts = sums[f"energy{size}"], every[level]  # (R, L, units) twice
            slices = weight.reshape(len(weight), energy.shape[2], -1)  # (E, units, size·D)
            outputs = sums["outputs"][:, layer].reshape(len(energy), energy.shape[2], -1)  # (R, units, size·D)
            mean = outputs.sum(0) / max(1.0, count[:, layer].sum())  # (units, size·D)
            written = np.einsum("eud,ud->eu", slices, mean)
            pull = np.einsum("rud,eud,eu->ru", outputs, slices, written, optimize=True)  # Σ w · E w
            parts[:, layer] = energy[:, layer] - 2 * pull + count[:, layer, None] * np.square(written).sum(0)
    weighed = count * median
    return {level: (parts[..., 0] if level == "block" else parts, weighed) for level, parts in every.items()}


CRITERION = Criterion(
    name="variance",
    title="Write variance",
    unit="ratio",
    high_is_prunable=False,
    levels=("head", "group", "block"),
    method="variance over tokens of the write to the residual, over the residual's median squared norm; low = constant",
    meter=WriteVariance,
    shares=shares,
)
