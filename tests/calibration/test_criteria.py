"""Every figure of a calibration against the same figure computed the long way."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from slim.calibration.record import Calibration
from slim.models.load import Loaded
from tests import reference
from tests.pico import FAMILIES, random_rows

Pico = Callable[..., Loaded]
ROWS = random_rows((5, 11, 2, 8, 16, 7))
SHAPES = [(family, 2, {}) for family in FAMILIES]
SHAPES += [("llama", 6, {"attention_bias": True}), ("mistral", 2, {"sliding_window": 4}), ("qwen2", 3, {})]
SHAPES += [("gemma2", 6, {}), ("gpt_neox", 6, {"use_parallel_residual": False})]
WINDOW = {"mistral": {"sliding_window": 4}}


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[0]}-kv{shape[1]}{'-' * bool(shape[2])}")
def case(request: pytest.FixtureRequest, pico: Pico) -> tuple[Loaded, Calibration]:
    """A model and its calibration on ROWS."""
    family, kv_heads, extra = request.param
    loaded = pico(family, kv_heads=kv_heads, **extra)
    return loaded, reference.measured(loaded, ROWS)


def test_attention_figures_are_those_of_the_attention_maps(case: tuple[Loaded, Calibration]) -> None:
    """entropy, entropy_norm, kl_uniform per head; a group or block is the mean of its heads."""
    loaded, calibration = case
    for name, expected in reference.attention_figures(loaded, ROWS).items():
        scores = calibration.metrics[name]
        grouped = expected.reshape(loaded.facts.layers, loaded.facts.kv_heads, -1).mean(-1)
        np.testing.assert_allclose(scores["head"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scores["group"], grouped, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scores["block"], expected.mean(-1), rtol=1e-5, atol=1e-6)


def test_variance_is_that_of_the_writes(case: tuple[Loaded, Calibration]) -> None:
    """Per head, per KV group and per block the variance of the summed write."""
    loaded, calibration = case
    scores, facts = calibration.metrics["variance"], loaded.facts
    np.testing.assert_allclose(scores["head"], reference.variance(loaded, ROWS, 1), rtol=1e-5)
    np.testing.assert_allclose(scores["group"], reference.variance(loaded, ROWS, facts.group), rtol=1e-5)
    np.testing.assert_allclose(scores["block"], reference.variance(loaded, ROWS, facts.heads)[:, 0], rtol=1e-5)


def test_block_influence_is_one_minus_the_cosine(case: tuple[Loaded, Calibration]) -> None:
    """With everything the block adds, its output bias included."""
    loaded, calibration = case
    expected = reference.block_influence(loaded, ROWS)
    np.testing.assert_allclose(calibration.metrics["block_influence"]["block"], expected, rtol=1e-5, atol=1e-6)


def test_positions_are_counted(case: tuple[Loaded, Calibration]) -> None:
    """Every token, those that see two keys, and those that predict one in the rows the sketch ranks by."""
    facts = case[1].facts
    tokens = sum(map(len, ROWS))
    assert facts.dataset.tokens == tokens
    assert facts.metrics["entropy"].positions == facts.metrics["variance"].positions == tokens
    assert facts.metrics["entropy_norm"].positions == tokens - len(ROWS)
    assert facts.metrics["kl_output"].positions == sum(len(row) - 1 for row in ROWS[::2])


@pytest.mark.parametrize("family", FAMILIES)
def test_block_kl_is_that_of_a_whole_forward_without_the_block(pico: Pico, family: str) -> None:
    """The short cut that starts each ablation at its layer changes nothing."""
    loaded, rows = pico(family, attention_bias=True) if family == "llama" else pico(family), ROWS[:4]
    found = reference.measured(loaded, rows).metrics["kl_output"]["block"]
    expected = reference.block_kl(loaded, rows[::2])  # the others stay unseen
    assert expected.min() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_depends_on_batching_or_padding(pico: Pico, family: str) -> None:
    """Every metric at every level and the sketch's score of every row."""
    loaded, rows = pico(family, **WINDOW.get(family, {})), ROWS[:4]
    alone = reference.measured(loaded, rows, batch_size=1)
    for batch_size, side in ((1, "left"), (2, "right"), (3, "left")):
        other = reference.measured(loaded, rows, side, batch_size=batch_size)
        for name, scores in alone.metrics.items():
            for level, expected in scores.items():
                np.testing.assert_allclose(other.metrics[name][level], expected, rtol=1e-6, atol=1e-8, err_msg=name)
        assert alone.sketch is not None
        assert other.sketch is not None
        np.testing.assert_array_equal(other.sketch.sequence, alone.sketch.sequence)
        np.testing.assert_array_equal(other.sketch.tokens, alone.sketch.tokens)
        np.testing.assert_allclose(other.sketch.scores, alone.sketch.scores, rtol=1e-5, atol=1e-5)


def test_measuring_leaves_the_model_as_it_was(pico: Pico) -> None:
    """Same attention, no hooks left, no gradients asked for, same logits."""
    loaded = pico("llama")
    before = reference.log_probabilities(loaded, ROWS[1])
    reference.measured(loaded, ROWS[:2])
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert torch.equal(reference.log_probabilities(loaded, ROWS[1]), before)
