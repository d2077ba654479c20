"""Ridge regression from second moments, in float32 and float64."""

import pytest
import torch

from slim.core.regression import ridge


def test_float32_gives_nearly_the_same() -> None:
    """To a ten-thousandth, of inputs whose sizes differ by a thousand."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 40, generator=generator, dtype=torch.float64) * torch.logspace(-1.5, 1.5, 40)
    y = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    exact, near = (ridge(x.T @ x, x.T @ y, 0.01, dtype) for dtype in (torch.float64, torch.float32))
    assert near.dtype == torch.float32
    torch.testing.assert_close(near.double(), exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


def test_copies_of_an_input_are_solved_in_float64() -> None:
    """With next to no λ their matrix is not positive definite in float32; in neither, it is refused."""
    x = torch.ones(1, 300, dtype=torch.float64).expand(9, 300) * 37
    xx, xy = x.T @ x, x.T @ torch.ones(9, 1, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="strength=-1"):
        ridge(xx, xy, -1.0, torch.float32)
    found = ridge(xx, xy, 1e-9, torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((300, 1), 1 / (37 * 300)), rtol=1e-4, atol=0)
