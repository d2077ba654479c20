"""How large a head's weights are: the rule that knows neither the task nor the data."""

from typing import TYPE_CHECKING

import numpy as np

from slim.calibration.criteria.base import Criterion, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from slim.models.load import Loaded


def magnitude(loaded: "Loaded") -> Scores:
    """Root mean square of the output projection's weights that read a head, a group's heads or all heads of a block."""
    import torch

    facts = loaded.facts
    squares = torch.stack([_mean_squares(loaded, layer) for layer in range(facts.layers)])  # (L, H·D)
    heads = squares.unflatten(1, (facts.heads, facts.head_dim)).mean(-1).numpy()  # (L, H)
    groups = heads.reshape(facts.layers, facts.kv_heads, facts.group).mean(-1)
    return {"head": np.sqrt(heads), "group": np.sqrt(groups), "block": np.sqrt(heads.mean(-1))}


def _mean_squares(loaded: "Loaded", layer: int) -> "Tensor":
    from slim.models.stored_layers import write_weight

    weight = write_weight(loaded.model, loaded.architecture, layer)  # (E, H·D)
    return weight.detach().float().square().mean(0).double().cpu()


CRITERION = Criterion(
    name="magnitude",
    title="Weight magnitude",
    unit="RMS",
    high_is_prunable=False,
    levels=("head", "group", "block"),
    method="root mean square of the output projection's weights that read the head; low = removable, whatever the task",
    of_weights=magnitude,
)
