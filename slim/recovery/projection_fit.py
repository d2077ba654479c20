"""The fit of one output projection: moments of what it reads and should write, and the search for λ."""

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from slim.core.regression import add_moments, ridge, whole

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Values of λ to try, strongest first."""
POSITIONS = 8192
"""Positions whose products are summed in float32 before they are added to a sum in float64."""


class Positions:
    """Inputs and goals of a projection at each position, in float32 at least."""

    def __init__(self, writer: Any) -> None:
        self.biased = writer.bias is not None
        self.weight = _weight(writer)
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, goal: Tensor) -> None:
        """Add positions: inputs x (n, F) and goals (n, E)."""
        self.waiting.append((x, goal))

    def errors(self) -> tuple[Tensor, Tensor]:
        """Return all inputs x (n, F), and the goals minus the projection's outputs (n, E)."""
        x, goal = self._taken()
        return x, goal - x @ self.weight.to(x)

    def _taken(self) -> tuple[Tensor, Tensor]:
        """Return all x, with a column of ones where there is a bias, and all goals."""
        x, goal = (
            torch.cat([part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts])
            for parts in zip(*self.waiting, strict=True)
        )
        return torch.cat([x, x.new_ones(len(x), 1)], dim=1) if self.biased else x, goal


class Moments(Positions):
    """Second moments of the inputs, and cross moments with the errors: float32 products, float64 sums."""

    def __init__(self, writer: Any) -> None:
        super().__init__(writer)
        self.upper = self.xg = torch.zeros(())

    def add(self, x: Tensor, goal: Tensor) -> None:
        super().add(x, goal)
        if sum(len(one) for one, _ in self.waiting) >= POSITIONS:
            self._sum()

    def of_errors(self) -> tuple[Tensor, Tensor]:
        """Return the second moments of x (F, F), and the cross moments of x with the errors (F, E).

        The errors themselves are not computed: with g the goals, E[x (g − W x)ᵀ] = E[x gᵀ] − E[x xᵀ] Wᵀ.
        """
        self._sum()
        xx = whole(self.upper)
        return xx, self.xg - xx @ self.weight.to(xx)

    def _sum(self) -> None:
        if not self.waiting:
            return
        x, goal = self._taken()
        self.waiting = []
        if not self.upper.dim():
            self.upper, self.xg = (x.new_zeros(x.shape[1], part.shape[1], dtype=torch.float64) for part in (x, goal))
        add_moments(self.upper, x)
        self.xg += x.T @ goal


class Search:
    """The search for λ: downhill from the best λ of the last projection of the same name."""

    def __init__(self) -> None:
        self.near: dict[str, int] = {}

    def solved(self, name: str, fit: Moments, choose: Positions) -> tuple[Tensor | None, float | None, float]:
        """Return the change (F, E) with the least squared error on the validation rows, its λ, and the share of the
        error that remains; None for change and λ where no change makes the error smaller."""
        (xx, xe), (x, error) = fit.of_errors(), choose.errors()
        unchanged = _square(error)
        tried: dict[int, tuple[float, Tensor | None]] = dict.fromkeys((-1, len(STRENGTHS)), (math.inf, None))

        def left(place: int) -> float:
            if place not in tried:
                tried[place] = (math.inf, None)
                with suppress(ArithmeticError):
                    change = ridge(xx, xe, STRENGTHS[place], x.dtype)
                    tried[place] = (_square(error - x @ change), change)
            return tried[place][0]

        best = self.near.get(name, len(STRENGTHS) // 2)
        for step in (-1, 1):
            while left(best + step) < left(best):
                best += step
        self.near[name] = best
        if not left(best) < unchanged:
            return None, None, 1.0
        return tried[best][1], STRENGTHS[best], left(best) / unchanged


def _square(error: Tensor) -> float:
    return float(error.square().sum(dtype=torch.float64))


def _weight(writer: Any) -> Tensor:
    """Return the weights of a projection, with its bias as the last row where it has one.  # (F, E)"""
    weight = writer.weight if isinstance(writer, Conv1D) else writer.weight.T
    return weight if writer.bias is None else torch.cat([weight, writer.bias[None]])
