"""The loss sketch against the exact Fisher information of the gates, and against measured KL."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from slim.models import Loaded
from slim.probe import Probe
from slim.sketch import LossSketch, score_rows
from slim.tasks import Encoded, batches
from tests import reference
from tests.pico import random_rows

Pico = Callable[..., Loaded]
DRAWS = 400
ROWS = random_rows((7, 4, 6), vocab=12, seed=3)


@pytest.fixture(scope="module")
def tiny(pico: Pico) -> Loaded:
    """Two layers of four heads and twelve words."""
    return pico("llama", heads=4, kv_heads=2, layers=2, hidden_size=16, vocab_size=12)


@pytest.fixture(scope="module")
def scores(tiny: Loaded) -> NDArray[np.float64]:
    """Score vectors of many draws.  # (draws, rows, L·H)"""
    (batch,) = batches(Encoded(ROWS, 0), len(ROWS))
    rows, tokens = score_rows(tiny, batch, DRAWS, seed=0)
    assert tokens.tolist() == [len(ROWS[index]) - 1 for index in batch.rows]
    return rows[:, np.argsort(batch.rows)].astype(np.float64)


def test_its_mean_is_the_exact_fisher(tiny: Loaded, scores: NDArray[np.float64]) -> None:
    """Row by row, within five standard errors at every entry and about one on average."""
    for row, drawn in zip(ROWS, scores.transpose(1, 0, 2), strict=True):
        products = drawn[:, :, None] * drawn[:, None, :]  # (draws, L·H, L·H)
        error = products.std(0, ddof=1) / np.sqrt(DRAWS)
        off = (products.mean(0) - reference.exact_fisher(tiny, row)) / error
        assert np.abs(off).max() < 5
        assert np.sqrt(np.square(off).mean()) < 2


def test_forecasts_are_the_quadratic_form(tiny: Loaded, scores: NDArray[np.float64]) -> None:
    """Single heads and a joint removal forecast ½ dᵀFd per token within five standard errors."""
    tokens = np.array([len(row) - 1 for row in ROWS])
    sequence = np.arange(len(ROWS))
    sketch = LossSketch(
        scores.reshape(-1, scores.shape[-1]).astype(np.float32),
        np.tile(tokens, DRAWS),
        np.tile(sequence, DRAWS),
    )
    fisher = sum(reference.exact_fisher(tiny, row) for row in ROWS)
    single = 0.5 * np.square(scores).sum(1) / tokens.sum()  # (draws, L·H)
    error = single.std(0, ddof=1) / np.sqrt(DRAWS)
    assert (np.abs(sketch.single() - 0.5 * np.diag(fisher) / tokens.sum()) < 5 * error).all()
    removed = np.zeros((2, 4), dtype=bool)
    removed[0, 1] = removed[1, 2] = removed[1, 3] = True
    d = removed.reshape(-1).astype(float)
    joint = 0.5 * np.square(scores @ d).sum(1) / tokens.sum()  # (draws,)
    forecast = sketch.forecast(removed)
    expected = 0.5 * d @ fisher @ d / tokens.sum()
    assert abs(forecast.nats_per_token - expected) < 5 * joint.std(ddof=1) / np.sqrt(DRAWS)
    assert forecast.low <= forecast.nats_per_token <= forecast.high
    assert forecast.sequences == len(ROWS)


def test_small_gate_changes_cost_what_the_fisher_says(tiny: Loaded) -> None:
    """½ dᵀFd is the measured KL up to a relative error that halves with d."""
    row, facts = ROWS[0], tiny.facts
    fisher, full = reference.exact_fisher(tiny, row), reference.log_probabilities(tiny, row)
    direction = np.random.default_rng(5).uniform(-1, 1, facts.layers * facts.heads)
    errors = []
    for step in (0.02, 0.01, 0.005):
        d = step * direction
        gates = torch.tensor(1 - d).reshape(facts.layers, facts.heads)
        with reference.gated(tiny.model, gates, facts.head_dim):
            measured = reference.kl_sum(full, reference.log_probabilities(tiny, row))
        errors.append(abs(0.5 * d @ fisher @ d / measured - 1))
    assert errors[2] < 0.01
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]


def test_the_probes_gates_are_the_gates(tiny: Loaded) -> None:
    """Probe.gates and scaling the output projection's input agree, row by row of a batch."""
    gates = torch.rand(2, 2, 4, dtype=torch.float64)
    ids = torch.stack(random_rows((6, 6), vocab=12))
    with torch.no_grad(), Probe(tiny.model, tiny.architecture) as probe:
        probe.gates = gates
        together = tiny.model(ids, use_cache=False).logits
    for row in range(2):
        with torch.no_grad(), reference.gated(tiny.model, gates[row], tiny.facts.head_dim):
            alone = tiny.model(ids[row : row + 1], use_cache=False).logits[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-6)


def test_folds_part_the_sequences() -> None:
    """Every sequence is in one fold with all of its draws."""
    sequence = np.tile([3, 5, 8, 9, 11], 2)
    sketch = LossSketch(np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10), sequence)
    assert set(sketch.fold(0).sequence) == {3, 8, 11}
    assert set(sketch.fold(1).sequence) == {5, 9}
    assert sketch.fold(1).tokens.tolist() == [1, 3, 6, 8]
