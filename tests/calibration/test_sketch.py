"""The loss sketch against the exact Fisher information of the gates, and against measured KL."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from slim.calibration import sketch
from slim.calibration.loss_sketch import LossSketch
from slim.calibration.sketch import SEGMENT, score_rows
from slim.data.tasks import Encoded, batches
from slim.models.load import Loaded
from slim.models.probe import Probe
from slim.models.units import UNITS
from tests import reference
from tests.pico import random_rows

Pico = Callable[..., Loaded]
DRAWS = 500
WORDS = 12
ROWS = random_rows((7, 4, 6), vocab=WORDS, seed=3)
STARTS = (4, 1, 2)
FAMILIES = ("llama", "gemma2", "granite", "gpt2", "opt")
"""gemma2 caps its logits and granite scales them; gpt2 and opt have biases."""


def tiny(pico: Pico, family: str = "llama") -> Loaded:
    """Two layers of four heads and twelve words."""
    extra = {} if family in ("gpt2", "opt", "gpt_neox") else {"hidden_size": 16}
    return pico(family, heads=4, kv_heads=2, layers=2, vocab_size=WORDS, **extra)


def scored(
    loaded: Loaded,
    rows: tuple[torch.Tensor, ...] = ROWS,
    draws: int = DRAWS,
    seed: int = 0,
    starts: tuple[int, ...] = (),
    batch_size: int = 3,
    side: str = "right",
) -> list[NDArray[np.float64]]:
    """Score vectors of each row, in the order of `rows`, draw after draw.  # (draws · segments, L, H+2) each"""
    found: dict[int, NDArray[np.float64]] = {}
    for batch in batches(Encoded(rows, 0, starts), batch_size, side):
        for index, scores in zip(batch.rows, score_rows(loaded, batch, draws, seed), strict=True):
            found[index] = scores.astype(np.float64)
    return [found[index] for index in range(len(rows))]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, pico: Pico) -> tuple[Loaded, list[NDArray[np.float64]]]:
    """A family with its scores; every row is one segment."""
    loaded = tiny(pico, request.param)
    assert max(map(len, ROWS)) <= SEGMENT
    return loaded, scored(loaded)


def test_its_mean_is_the_exact_fisher(case: tuple[Loaded, list[NDArray[np.float64]]]) -> None:
    """Of heads, blocks and MLPs, row by row: within five standard errors at every entry and about one on average.

    The mean of a score is 0 within the same bounds.
    """
    loaded, scores = case
    for row, drawn in zip(ROWS, scores, strict=True):
        flat = drawn.reshape(DRAWS, -1)
        products = flat[:, :, None] * flat[:, None, :]  # (draws, columns, columns)
        error = products.std(0, ddof=1) / np.sqrt(DRAWS)
        off = (products.mean(0) - reference.exact_fisher(loaded, row, blocks=True)) / error
        assert np.abs(off).max() < 5
        assert np.sqrt(np.square(off).mean()) < 2
        centre = flat.mean(0) / (flat.std(0, ddof=1) / np.sqrt(DRAWS))
        assert np.abs(centre).max() < 5


def test_forecasts_are_the_quadratic_form(case: tuple[Loaded, list[NDArray[np.float64]]]) -> None:
    """Single columns and a joint removal forecast ½ dᵀFd per token within five standard errors."""
    loaded, scores = case
    tokens = np.array([len(row) - 1 for row in ROWS])
    flat = np.stack(scores, 1).reshape(DRAWS, len(ROWS), -1)  # (draws, N, columns)
    made = LossSketch(flat.reshape(-1, 2, 6).astype(np.float32), np.tile(np.arange(len(ROWS)), DRAWS), tokens * DRAWS)
    fisher = sum(reference.exact_fisher(loaded, row, blocks=True) for row in ROWS)
    single = 0.5 * np.square(flat).sum(1) / tokens.sum()  # (draws, columns)
    error = single.std(0, ddof=1) / np.sqrt(DRAWS)
    assert (np.abs(made.single().value.ravel() - 0.5 * np.diag(fisher) / tokens.sum()) < 5 * error).all()
    removed = np.zeros((2, 6), dtype=bool)
    removed[0, [1, 5]] = removed[1, [2, 4]] = True
    d = removed.reshape(-1).astype(float)
    joint = 0.5 * np.square(flat @ d).sum(1) / tokens.sum()  # (draws,)
    expected = 0.5 * d @ fisher @ d / tokens.sum()
    found = made.costs(removed).sum() / made.tokens.sum()
    assert abs(found - expected) < 5 * joint.std(ddof=1) / np.sqrt(DRAWS)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_segments_add_up_to_the_row(pico: Pico, monkeypatch: pytest.MonkeyPatch, family: str, side: str) -> None:
    """Three draws of rows cut every three of their own tokens: each segment has a row, and their sum is the row's."""
    loaded, draws = tiny(pico, family), 3
    whole = scored(loaded, draws=draws, side=side)
    monkeypatch.setattr(sketch, "SEGMENT", 3)
    parts = scored(loaded, draws=draws, side=side)
    for row, one, many in zip(ROWS, whole, parts, strict=True):
        segments = -(-len(row) // 3)
        assert one.shape == (draws, 2, 6)
        assert many.shape == (draws * segments, 2, 6)
        np.testing.assert_allclose(many.reshape(draws, segments, 2, 6).sum(1), one, rtol=1e-4, atol=1e-5)


def test_a_segment_is_gated_by_its_own_tokens(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean square of a segment's score is the exact Fisher of gates that differ from stretch to stretch."""
    loaded, row = tiny(pico), ROWS[0]
    monkeypatch.setattr(sketch, "SEGMENT", 3)
    (drawn,) = scored(loaded, (row,))
    found = np.square(drawn.reshape(DRAWS, 3, 2, 6)[..., :4])  # (draws, S, L, H)
    ones = torch.ones(3, 2, 4, dtype=torch.float64)

    def predict(gates: torch.Tensor) -> torch.Tensor:
        over_tokens = gates.repeat_interleave(3, 0)[: len(row)].transpose(0, 1)  # (L, T, H)
        with reference.gated(loaded.model, over_tokens, loaded.facts.head_dim):
            return loaded.model(row[None], use_cache=False).logits[0, :-1].log_softmax(-1)

    jacobian = torch.autograd.functional.jacobian(predict, ones)
    p = reference.log_probabilities(loaded, row).exp()
    assert isinstance(jacobian, torch.Tensor)
    expected = torch.einsum("tv,tvslh,tvslh->slh", p, jacobian, jacobian).numpy()
    error = found.std(0, ddof=1) / np.sqrt(DRAWS)
    fine = error > 1e-12  # the last token gates nothing that is predicted
    assert (~fine).sum() == 8
    assert np.abs(found.mean(0)[~fine]).max() < 1e-12
    assert np.abs((found.mean(0) - expected)[fine] / error[fine]).max() < 5


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("segment", [2, 16])
def test_batching_and_padding_change_nothing(
    pico: Pico, monkeypatch: pytest.MonkeyPatch, family: str, segment: int
) -> None:
    """A row's scores, segment by segment, are its own to float32's last digits, whatever stands beside it."""
    loaded = tiny(pico, family)
    monkeypatch.setattr(sketch, "SEGMENT", segment)
    alone = scored(loaded, draws=2, batch_size=1, starts=STARTS)
    for size, side in ((1, "left"), (2, "right"), (3, "right"), (3, "left")):
        for one, other in zip(alone, scored(loaded, draws=2, batch_size=size, side=side, starts=STARTS), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_the_seed_and_the_text_decide_the_draws(pico: Pico) -> None:
    """Same seed, same scores; another seed or another row, others. Draws differ from each other."""
    loaded = tiny(pico)
    first, again, other = (scored(loaded, draws=2, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first[0], first[1])


@pytest.mark.parametrize("side", ["right", "left"])
def test_only_the_answers_positions_count(pico: Pico, side: str) -> None:
    """With starts the mean of squares is the Fisher of the positions that predict a token from the start on."""
    loaded, row, start = tiny(pico), ROWS[0], 4
    drawn = scored(loaded, starts=STARTS, side=side)[0].reshape(DRAWS, -1)[:, [0, 1, 2, 3, 6, 7, 8, 9]]
    ones = torch.ones(2, 4, dtype=torch.float64)

    def predict(gates: torch.Tensor) -> torch.Tensor:
        with reference.gated(loaded.model, gates, loaded.facts.head_dim):
            return loaded.model(row[None], use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)

    jacobian = torch.autograd.functional.jacobian(predict, ones)
    assert isinstance(jacobian, torch.Tensor)
    p = reference.log_probabilities(loaded, row)[start - 1 :].exp()
    expected = torch.einsum("tv,tvlh,tvlh->lh", p, jacobian, jacobian).numpy().ravel()
    squares = np.square(drawn)
    error = squares.std(0, ddof=1) / np.sqrt(DRAWS)
    assert np.abs((squares.mean(0) - expected) / error).max() < 5
    whole = np.diag(reference.exact_fisher(loaded, row))
    assert np.abs((squares.mean(0) - whole) / error).max() > 5


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_that_predict_nothing_have_no_score(pico: Pico, side: str) -> None:
    """One token, or only padding; and they change nothing beside them."""
    loaded = tiny(pico)
    rows = (ROWS[0], ROWS[1][:1], ROWS[1][:0])
    found = scored(loaded, rows, draws=2, side=side)
    assert [len(scores) for scores in found] == [2, 2, 0]
    assert np.abs(found[1]).max() == 0
    np.testing.assert_allclose(found[0], scored(loaded, rows[:1], draws=2)[0], rtol=1e-5, atol=1e-6)


def test_small_gate_changes_cost_what_the_fisher_says(pico: Pico) -> None:
    """½ dᵀFd is the measured KL up to a relative error that halves with d."""
    loaded = tiny(pico)
    row, facts = ROWS[0], loaded.facts
    fisher, full = reference.exact_fisher(loaded, row), reference.log_probabilities(loaded, row)
    direction = np.random.default_rng(5).uniform(-1, 1, facts.layers * facts.heads)
    errors = []
    for step in (0.02, 0.01, 0.005):
        d = step * direction
        gates = torch.tensor(1 - d).reshape(facts.layers, facts.heads)
        with reference.gated(loaded.model, gates, facts.head_dim):
            measured = reference.kl_sum(full, reference.log_probabilities(loaded, row))
        errors.append(abs(0.5 * d @ fisher @ d / measured - 1))
    assert errors[2] < 0.01
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]


def test_the_probes_gates_are_the_gates(pico: Pico) -> None:
    """Probe.gates and scaling the output projection's input agree, row by row of a batch."""
    loaded = tiny(pico)
    gates = torch.rand(2, 2, 4 + 2, dtype=torch.float64)
    gates[..., -2:] = 1
    ids = torch.stack(random_rows((6, 6), vocab=WORDS))
    with torch.no_grad(), Probe(loaded.model, loaded.architecture) as probe:
        probe.gates = gates
        together = loaded.model(ids, use_cache=False).logits
    for row in range(2):
        with torch.no_grad(), reference.gated(loaded.model, gates[row, :, :-2], loaded.facts.head_dim):
            alone = loaded.model(ids[row : row + 1], use_cache=False).logits[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-6)


@pytest.fixture
def made() -> LossSketch:
    """Five sequences with one to three score rows each, over two layers of four heads, a block and an MLP."""
    rng = np.random.default_rng(0)
    sequence = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])
    return LossSketch(rng.normal(size=(9, 2, 6)).astype(np.float32), sequence, np.array([3, 5, 8, 9, 11]))


def test_figures_are_plain_sums(made: LossSketch, pico: Pico) -> None:
    """Single columns, every unit and any sets: half of the summed squares over all tokens, heads never the block's."""
    scores, total, facts = made.scores.astype(float), made.tokens.sum(), tiny(pico).facts
    np.testing.assert_allclose(made.single().value, 0.5 * np.square(scores).sum(0) / total)
    for unit, joined in {
        "head": scores[:, :, :4],
        "group": scores[:, :, [0, 2]] + scores[:, :, [1, 3]],
        "block": scores[:, :, 4],
        "layer": scores[:, :, 4] + scores[:, :, 5],
    }.items():
        found = made.of_unit(UNITS[unit], facts)
        np.testing.assert_allclose(found.value, 0.5 * np.square(joined).sum(0) / total)
        assert found.low.shape == found.high.shape == joined.shape[1:]
    removed = np.random.default_rng(1).random((3, 2, 2, 6)) < 0.4
    found = made.costs(removed)
    assert found.shape == (5, 3, 2)
    for index in np.ndindex(3, 2):
        energy = np.square((scores * removed[index]).sum((1, 2)))
        expected = [0.5 * energy[made.sequence == n].sum() for n in range(5)]
        np.testing.assert_allclose(found[(slice(None), *index)], expected, rtol=1e-5)
    assert made.costs(removed[0, 0]).shape == (5,)


def test_intervals_resample_sequences(made: LossSketch) -> None:
    """A sequence's score rows stay together, with its tokens; the seed decides."""
    counts = np.random.default_rng(3).multinomial(5, [0.2] * 5, size=400)
    energy = np.stack([0.5 * np.square(made.scores[made.sequence == n].astype(float)).sum(0) for n in range(5)])
    ratios = [np.tensordot(times, energy, 1) / (times @ made.tokens) for times in counts]
    low, high = np.quantile(ratios, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(made.single(3).low, low)
    np.testing.assert_allclose(made.single(3).high, high)


def test_folds_part_the_sequences(made: LossSketch) -> None:
    """Every sequence is in one fold with all of its score rows and its tokens; one alone is in both."""
    even, odd = made.fold(0), made.fold(1)
    assert even.tokens.tolist() == [3, 8, 11]
    assert odd.tokens.tolist() == [5, 9]
    assert even.sequence.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert odd.sequence.tolist() == [0, 1]
    np.testing.assert_array_equal(even.scores, made.scores[[0, 1, 3, 4, 5, 7, 8]])
    np.testing.assert_array_equal(odd.scores, made.scores[[2, 6]])
    removed = np.ones((2, 6), dtype=bool)
    np.testing.assert_allclose(made.costs(removed)[::2], even.costs(removed))
    alone = LossSketch(made.scores[:2], made.sequence[:2], made.tokens[:1])
    assert alone.fold(0) is alone.fold(1) is alone
