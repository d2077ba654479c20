"""Ridge regression from second moments."""

import torch
from torch import Tensor


def ridge(xx: Tensor, xy: Tensor, strength: float) -> Tensor:
    """Return the W that minimizes E‖y − x W‖² + strength · mean(diag E[x xᵀ]) · ‖W‖², in float64.  # (F, E)

    `xx` is E[x xᵀ] (F, F), `xy` is E[x yᵀ] (F, E). Raises ArithmeticError where the regularized matrix is not positive
    definite.
    """
    regularized = xx.to(torch.float64, copy=True)
    mean = regularized.diagonal().mean().clamp_min(1e-12)  # heads that are gone put out nothing at all
    regularized.diagonal().add_(strength * mean)
    factor, failed = torch.linalg.cholesky_ex(regularized)
    if int(failed):
        raise ArithmeticError(f"second moments with strength={strength:g} are not positive definite")
    return torch.cholesky_solve(xy.double(), factor)
