"""The training loss: a row's own tokens and the original's soft targets, made with its slope in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slim.calibration.criteria.base import exact
from slim.core.cache import Arrays
from slim.models.predictions import parts_in_cache
from slim.recovery.teacher import SoftTargets, stacked_targets


@dataclass(frozen=True)
class Loss:
    """Training loss: negative log-likelihood of the rows' own tokens and KL to the original at `temperature`.

    Their weights are `task_weight` and 1 − `task_weight`. KL is multiplied by the squared temperature, so that the
    scale of its gradient does not depend on it (Hinton et al. 2015).
    """

    task_weight: float = 1.0
    temperature: float = 1.0

    def __call__(self, logits: Tensor, tokens: Tensor, soft: Sequence[Arrays] | None) -> Tensor:
        """Return the loss summed over the positions of logits (n, V), whose next tokens are `tokens` (n,)."""
        if self.task_weight < 1 and soft is None:
            raise ValueError(f"task_weight={self.task_weight}: below 1 the loss needs soft targets")
        targets = stacked_targets(soft, logits.device) if self.task_weight < 1 and soft is not None else None
        return _Summed.apply(logits, tokens, targets, self)


class _Summed(torch.autograd.Function):
    """The loss with its slope by the logits, both made while a few positions' logits are in a core's cache.

    The slope is all that is kept for the way back, in the logits' own number format.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, targets: SoftTargets | None, loss: Loss) -> Tensor:
        slope = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = exact(logits.new_zeros(()))
        for part in parts_in_cache(logits):
            here = exact(logits[part])
            learned = torch.zeros_like(here)
            if loss.task_weight > 0:
                total += loss.task_weight * _surprise(here, tokens[part, None], learned, loss.task_weight).sum()
            if targets is not None:
                weight = (1 - loss.task_weight) * loss.temperature**2
                total += weight * targets[part].divergence(here, loss.temperature, learned, weight).sum()
            if slope is not None:
                slope[part] = learned
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * above[0].to(slope.dtype), None, None, None


def _surprise(logits: Tensor, tokens: Tensor, slope: Tensor, weight: float) -> Tensor:
    """Return the negative log-likelihood of `tokens` (n, 1) and add its slope, times `weight`, to `slope`.  # (n,)"""
    normalizer = logits.logsumexp(-1, keepdim=True)
    slope.add_((logits - normalizer).exp_(), alpha=weight)
    slope.scatter_add_(1, tokens, torch.full_like(normalizer, -weight))
    return (normalizer - logits.gather(1, tokens))[:, 0]
