"""How much what a head writes into the residual stream changes from token to token."""

import numpy as np
import torch

from slim.architectures import write_weights
from slim.metrics.base import Criterion, Level, PerLayer, Shares, Sums, row_sums
from slim.models import Loaded
from slim.probe import LayerView


class WriteVariance(PerLayer):
    """Trace of the covariance over tokens of the write W_h o_h, over the median squared norm of the residual.

    E‖W o‖² = E[oᵀ(WᵀW)o] needs only the D×D Gram matrix of the head's slice of the output projection. The median
    stands in the denominator because a mean is inflated many times over by massive activations (Sun et al. 2024).
    """

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()
        self.facts, self.weights = loaded.facts, write_weights(loaded.model, loaded.architecture)

    def update(self, view: LayerView) -> None:
        outputs = view.heads.float()  # (B, T, H, D)
        weight = self.weights[view.layer].float()
        energies = {}
        for size in {1, self.facts.group, self.facts.heads}:
            grouped = outputs.unflatten(2, (-1, size)).flatten(3)  # (B, T, units, size·D)
            if size == self.facts.heads:
                energy = (outputs.flatten(2) @ weight.T).square().sum(-1, keepdim=True)  # (B, T, 1)
            else:
                slices = weight.unflatten(1, (-1, size * self.facts.head_dim)).permute(1, 0, 2)  # (units, E, size·D)
                gram = slices.transpose(1, 2) @ slices
                energy = (torch.einsum("btud,ude->btue", grouped, gram) * grouped).sum(-1)  # (B, T, units)
            energies[f"energy{size}"] = row_sums(energy, view.valid)
        norms = view.residual.float().square().sum(-1).masked_fill(~view.valid, torch.nan)  # (B, T)
        self.keep(outputs=row_sums(outputs, view.valid), count=view.valid.sum(1), norms=norms, **energies)


def shares(sums: Sums, loaded: Loaded) -> Shares:
    """The trace is E‖w‖² − ‖E w‖²: a row's part of it is its Σ‖w‖² less the pull of its Σ w on the common mean."""
    facts, count = loaded.facts, sums["count"].astype(np.float64)
    weights = [weight.double().cpu().numpy() for weight in write_weights(loaded.model, loaded.architecture)]
    median = np.stack([np.nanmedian(sums["norms"][:, layer]) for layer in range(facts.layers)])  # (L,)
    found: Shares = {}
    sizes: dict[Level, int] = {"head": 1, "group": facts.group, "block": facts.heads}
    for level, size in sizes.items():
        energy = sums[f"energy{size}"]  # (R, L, units)
        parts = np.empty_like(energy)
        for layer, weight in enumerate(weights):
            slices = weight.reshape(len(weight), energy.shape[2], -1)  # (E, units, size·D)
            outputs = sums["outputs"][:, layer].reshape(len(energy), energy.shape[2], -1)  # (R, units, size·D)
            mean = outputs.sum(0) / max(1.0, count[:, layer].sum())  # (units, size·D)
            written = np.einsum("eud,ud->eu", slices, mean)
            pull = np.einsum("rud,eud,eu->ru", outputs, slices, written, optimize=True)  # Σ w · E w
            parts[:, layer] = energy[:, layer] - 2 * pull + count[:, layer, None] * np.square(written).sum(0)
        weighed = count * median
        found[level] = (parts[..., 0], weighed) if level == "block" else (parts, weighed)
    return found


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
