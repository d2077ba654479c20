"""How much what a head writes into the residual stream changes from token to token."""

from operator import attrgetter

import torch
from torch import Tensor

from slim.architectures import decoder_layers
from slim.metrics.base import Criterion, Scores
from slim.models import Loaded
from slim.probe import LayerView


class WriteVariance:
    """Trace of the covariance over tokens of the write W_h o_h, over the median squared norm of the residual.

    E‖W o‖² = E[oᵀ(WᵀW)o] needs only the D×D Gram matrix of the head's slice of the output projection. The median
    stands in the denominator because a mean is inflated many times over by massive activations (Sun et al. 2024).
    """

    def __init__(self, loaded: Loaded) -> None:
        facts, self.facts = loaded.facts, loaded.facts
        layers = decoder_layers(loaded.model, loaded.architecture)
        self.projections = [attrgetter(loaded.architecture.output)(layer).weight for layer in layers]  # (E, H·D) each
        self.tokens = [0] * facts.layers
        self.norms: list[list[Tensor]] = [[] for _ in range(facts.layers)]
        self.sums: dict[int, list[Tensor]] = {}  # heads per write -> per layer Σ o  (units, width)
        self.energies: dict[int, list[Tensor]] = {}  # heads per write -> per layer Σ ‖W o‖²  (units,)
        for size in {1, facts.group, facts.heads}:
            units, width = facts.heads // size, size * facts.head_dim
            self.sums[size] = [torch.zeros(units, width, dtype=torch.float64) for _ in layers]
            self.energies[size] = [torch.zeros(units, dtype=torch.float64) for _ in layers]

    def update(self, view: LayerView) -> None:
        layer, outputs = view.layer, view.heads[view.valid].float()  # (N, H, D)
        self.tokens[layer] += len(outputs)
        self.norms[layer].append(view.residual[view.valid].float().square().sum(-1).cpu())
        weight = self.projections[layer].float()
        for size in self.sums:
            grouped = outputs.unflatten(1, (-1, size)).flatten(2)  # (N, units, size·D)
            self.sums[size][layer] += grouped.double().sum(0).cpu()
            if size == self.facts.heads:
                energy = (outputs.flatten(1) @ weight.T).square().sum(-1, keepdim=True)  # (N, 1)
            else:
                slices = weight.unflatten(1, (-1, size * self.facts.head_dim)).permute(1, 0, 2)  # (units, E, size·D)
                gram = slices.transpose(1, 2) @ slices
                energy = (torch.einsum("nud,ude->nue", grouped, gram) * grouped).sum(-1)  # (N, units)
            self.energies[size][layer] += energy.double().sum(0).cpu()

    @property
    def positions(self) -> int:
        return max(1, self.tokens[0])

    def scores(self) -> Scores:
        return {
            "head": torch.stack([self._ratio(layer, 1) for layer in range(self.facts.layers)]).numpy(),
            "group": torch.stack([self._ratio(layer, self.facts.group) for layer in range(self.facts.layers)]).numpy(),
            "block": torch.cat([self._ratio(layer, self.facts.heads) for layer in range(self.facts.layers)]).numpy(),
        }

    def _ratio(self, layer: int, size: int) -> Tensor:
        count = max(1, self.tokens[layer])
        mean = self.sums[size][layer] / count  # (units, size·D)
        weight = self.projections[layer].double().cpu().unflatten(1, (-1, mean.shape[1]))  # (E, units, size·D)
        written = torch.einsum("eud,ud->ue", weight, mean)
        trace = self.energies[size][layer] / count - written.square().sum(-1)  # (units,)
        return trace.clamp_min(0) / torch.cat(self.norms[layer]).double().median()


CRITERION = Criterion(
    name="variance",
    title="Write variance",
    unit="ratio",
    high_is_prunable=False,
    levels=("head", "group", "block"),
    method="variance over tokens of the write to the residual, over the residual's median squared norm; low = constant",
    meter=WriteVariance,
)
