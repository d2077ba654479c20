"""The loss of the model's predictions without a head, a KV group or a block, as `slim.calibration.ablation` has it."""

import numpy as np

from slim.calibration.criteria.base import Criterion, Shares, Sums
from slim.core.records import ModelFacts
from slim.models.units import UNITS

CRITERION = Criterion(
    name="kl_output",
    title="KL of the output",
    unit="nats/token",
    high_is_prunable=False,
    levels=("head", "group", "block"),
    method="KL(full ‖ without it), mean over predicted positions; low = removable",
)


def shares(sums: Sums, facts: ModelFacts) -> Shares:
    """Figures from `cost.LEVEL` (R, L, units) and `tokens` (R,), the predicted positions of each row."""
    weights = np.repeat(sums["tokens"][:, None], facts.layers, 1)
    found: Shares = {}
    for level in CRITERION.levels:
        if (costs := sums.get(f"cost.{level}")) is not None:
            found[level] = (costs[..., 0] if UNITS[level].single else costs, weights)
    return found
