"""Ridge regression from second moments."""

import torch
from torch import Tensor

COLUMNS = 512
"""Columns of x per block of second moments, of which only the upper triangle is computed."""


def add_moments(upper: Tensor, x: Tensor) -> None:
    """Add Σ x xᵀ over rows of `x` (n, F) to the upper triangle of `upper` (F, F); what is below it is undefined."""
    for start in range(0, x.shape[1], COLUMNS):
        upper[start : start + COLUMNS, start:] += x[:, start : start + COLUMNS].T @ x[:, start:]


def whole(upper: Tensor) -> Tensor:
    """Return the symmetric matrix (F, F) of an upper triangle."""
    return upper.triu() + upper.triu(1).T


def ridge(xx: Tensor, xy: Tensor, strength: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the W that minimizes E‖y − x W‖² + strength · mean(diag E[x xᵀ]) · ‖W‖², in `dtype`.  # (F, E)

    `xx` is E[x xᵀ] (F, F), `xy` is E[x yᵀ] (F, E). Where the regularized matrix is not positive definite in float32, as
    with inputs that are copies of each other, it is solved in float64. Raises ArithmeticError where it is not so there.
    """
    for precise in dict.fromkeys((dtype, torch.float64)):
        regularized = xx.to(precise, copy=True)
        mean = regularized.diagonal().mean().clamp_min(1e-12)  # heads that are gone put out nothing at all
        regularized.diagonal().add_(strength * mean)
        factor, failed = torch.linalg.cholesky_ex(regularized)
        if not int(failed):
            return torch.cholesky_solve(xy.to(precise), factor).to(dtype)
    raise ArithmeticError(f"second moments with strength={strength:g} are not positive definite")
