"""Ratios of sums: the figure, its interval against a bootstrap written out, and how often that holds the truth."""

import numpy as np
import pytest
from scipy.stats import rankdata

from slim.core.statistics import LEVEL, RESAMPLES, Estimate, ranks, ratio_of_sums


def test_the_figure_is_the_ratio_of_the_sums() -> None:
    """Not the mean of the rows' ratios; weights of a row or of a row and layer, parts with units or without."""
    rng = np.random.default_rng(0)
    parts, by_row, by_layer = rng.random((5, 3, 4)), rng.integers(1, 9, 5), rng.integers(1, 9, (5, 3))
    np.testing.assert_allclose(ratio_of_sums(parts, by_row).value, parts.sum(0) / by_row.sum())
    np.testing.assert_allclose(ratio_of_sums(parts, by_layer).value, parts.sum(0) / by_layer.sum(0)[:, None])
    np.testing.assert_allclose(ratio_of_sums(parts[..., 0], by_layer).value, parts[..., 0].sum(0) / by_layer.sum(0))
    alone = ratio_of_sums(parts[:, 0, 0], by_row)
    assert alone.value.shape == ()
    assert float(alone.value) == pytest.approx(parts[:, 0, 0].sum() / by_row.sum())


def test_the_interval_is_the_bootstrap_of_the_rows() -> None:
    """Rows are drawn as often as there are rows; numerator and denominator take the same ones; the seed decides."""
    rng = np.random.default_rng(1)
    parts, weights = rng.random((6, 2)), rng.integers(1, 30, 6)
    found = ratio_of_sums(parts, weights, seed=7)
    counts = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6), size=RESAMPLES)
    ratios = []
    for times in counts:
        rows = np.repeat(np.arange(6), times)
        assert len(rows) == 6
        ratios.append(parts[rows].sum(0) / weights[rows].sum())
    low, high = np.percentile(ratios, [2.5, 97.5], axis=0)
    assert LEVEL == 0.95
    np.testing.assert_allclose(found.low, low)
    np.testing.assert_allclose(found.high, high)
    again, other = ratio_of_sums(parts, weights, seed=7), ratio_of_sums(parts, weights, seed=8)
    np.testing.assert_array_equal(again.low, found.low)
    assert (other.low != found.low).all()


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Rows of unequal weight with an effect of their own, so that taking tokens for independent would fail."""
    rng, truth, held = np.random.default_rng(2), 2.0, 0
    for repetition in range(200):
        weights = rng.integers(20, 200, 24)
        parts = weights * (truth + rng.normal(0, 0.7, 24))
        found = ratio_of_sums(parts, weights, repetition)
        held += bool(found.low <= truth <= found.high)
    assert 0.85 <= held / 200 <= 0.99


def test_one_row_tells_nothing_of_its_interval() -> None:
    """The figure stands, both ends are unknown."""
    found = ratio_of_sums(np.array([[6.0, 3.0]]), np.array([3]))
    np.testing.assert_array_equal(found.value, [2, 1])
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()


def test_no_weight_gives_nothing() -> None:
    """A layer no row has weight in is 0 with its ends, and so is a resampling that draws no weight; never NaN."""
    weights = np.array([[0, 2], [0, 0], [0, 0]])
    found = ratio_of_sums(np.array([[0.0, 4.0], [0.0, 0.0], [0.0, 0.0]]), weights)
    np.testing.assert_array_equal(found.value, [0, 2])
    np.testing.assert_array_equal(found.high, [0, 2])
    np.testing.assert_array_equal(found.low, [0, 0])


def test_unsure_is_a_figure_without_ends() -> None:
    """Of the same shape."""
    found = Estimate.unsure(np.arange(6.0).reshape(2, 3))
    assert found.value.shape == found.low.shape == found.high.shape == (2, 3)
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()


def test_ranks_are_those_of_scipy() -> None:
    """Ties share their mean, row by row."""
    values = np.random.default_rng(0).integers(0, 5, (3, 4, 12)).astype(np.float64)
    np.testing.assert_array_equal(ranks(values), rankdata(values, axis=-1))
    np.testing.assert_array_equal(ranks(np.array([7.0])), [1.0])
