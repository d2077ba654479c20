"""The meters themselves: what they do with a forward cut short, rounding, low precision, and memory."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from slim.calibration.criteria import CRITERIA
from slim.calibration.criteria.base import Meter, exact, row_sums
from slim.models.load import Loaded
from slim.models.probe import LayerView
from tests import reference
from tests.models.test_attention import Largest
from tests.pico import make_pico, random_rows

Pico = Callable[..., Loaded]
WATCHING = [name for name, criterion in CRITERIA.items() if criterion.meter]


def meter_of(name: str, loaded: Loaded) -> Meter:
    make = CRITERIA[name].meter
    assert make is not None
    return make(loaded)


def view(layer: int, length: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> LayerView:
    """Two rows of random figures as a pico model's block would show them, the second row padded."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(2, length, *shape, generator=generator, dtype=torch.float64).to(dtype)

    valid = torch.ones(2, length, dtype=torch.bool)
    valid[1, length // 2 :] = False
    return LayerView(
        layer=layer,
        valid=valid,
        residual=random(24),
        heads=random(6, 8),
        entropy=random(6).abs().to(torch.promote_types(dtype, torch.float32)),
        visible=torch.arange(1, length + 1).expand(2, length),
        delta=random(24),
    )


@pytest.mark.parametrize("name", WATCHING)
def test_a_forward_cut_short_leaves_nothing_behind(pico: Pico, name: str) -> None:
    """A batch that did not fit is taken again in smaller parts."""
    meter, fresh = (meter_of(name, pico()) for _ in range(2))
    meter.update(view(0, 12, seed=1))
    meter.update(view(1, 12, seed=1))
    for layer in range(4):
        for each in (meter, fresh):
            each.update(view(layer, 5))
    taken, expected = meter.take(), fresh.take()
    assert taken.keys() == expected.keys()
    for key in expected:
        assert expected[key].shape[:2] == (2, 4)
        np.testing.assert_array_equal(taken[key], expected[key])
    assert meter.take() == {}


@pytest.mark.parametrize("name", WATCHING)
def test_nothing_is_computed_in_the_precision_of_a_bfloat16_model(name: str) -> None:
    """The sums are those of the same numbers in float64."""
    loaded, wide = make_pico(dtype=torch.bfloat16), make_pico(dtype=torch.bfloat16)
    wide.model.double()
    low, high, given = meter_of(name, loaded), meter_of(name, wide), view(0, 40, torch.bfloat16)
    low.update(given)
    high.update(replace(given, **{part: getattr(given, part).double() for part in ("residual", "heads", "delta")}))
    expected = high.take()
    for key, sums in low.take().items():
        np.testing.assert_allclose(sums, expected[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_long_rows_are_summed_in_float64() -> None:
    """In float32 what is small beside the sum so far would be lost, and what is not a position must be."""
    values = torch.full((1, 1001), 0.5)
    values[0, :2] = torch.tensor([2.0**24, 2.0**30])
    where = torch.ones(1, 1001, dtype=torch.bool)
    where[0, 1] = False
    assert row_sums(values, where).item() == 2**24 + 999 * 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_statistics_have_float32_or_more(dtype: torch.dtype) -> None:
    """A model in float64 keeps all its digits."""
    assert exact(torch.ones(1, dtype=dtype)).dtype == max(dtype, torch.float32, key=lambda each: torch.finfo(each).bits)


def test_influence_at_its_ends() -> None:
    """A block that adds nothing has none, and never less by rounding; a residual of nothing is turned all the way."""
    loaded, given = make_pico(), view(0, 64, torch.float32)
    for residual, expected in ((given.residual, 0.0), (torch.zeros_like(given.residual), 1.0)):
        meter = meter_of("block_influence", loaded)
        meter.update(replace(given, residual=residual, delta=torch.zeros_like(residual)))
        sums = meter.take()
        np.testing.assert_allclose(sums["total"][:, 0], expected * sums["count"][:, 0], atol=1e-5)
        assert (sums["total"] >= 0).all()


def test_variance_where_all_heads_share_one_key(pico: Pico) -> None:
    """The only group is the block, and its heads have figures of their own."""
    loaded, rows = pico(kv_heads=1), random_rows((5, 9))
    scores, heads = reference.measured(loaded, rows, kl="none").metrics["variance"], loaded.facts.heads
    np.testing.assert_allclose(scores["head"], reference.variance(loaded, rows, 1), rtol=1e-6)
    np.testing.assert_allclose(scores["group"], reference.variance(loaded, rows, heads), rtol=1e-6)
    np.testing.assert_allclose(scores["block"], reference.variance(loaded, rows, heads)[:, 0], rtol=1e-6)


@pytest.mark.parametrize("name", WATCHING)
def test_memory_of_a_meter_grows_with_the_length_alone(pico: Pico, name: str) -> None:
    """Twice the tokens make the largest tensor at most twice as large."""
    found = []
    for length in (512, 1024):
        meter, given = meter_of(name, pico()), view(0, length)
        with Largest() as largest:
            meter.update(given)
        found.append(largest.elements)
    assert 0 < found[1] <= 2 * found[0]
