"""Planning: valid shapes, ranks and weights, files that come back as they were, and refusals."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from slim.calibration.forecast import forecast
from slim.calibration.record import Calibration
from slim.calibration.scores import composite, doubled_ranks, highest_rank, prunability
from slim.calibration.scores import measured as measured_per
from slim.core.errors import InputError
from slim.core.statistics import Estimate
from slim.models.columns import head_columns, removed_columns, removed_heads
from slim.models.load import Loaded
from slim.models.units import UNITS, UnitName
from slim.planning.files import load_plan, save_plan
from slim.planning.record import ByThreshold, Pins, Plan
from slim.planning.shapes import in_parts, valid_heads
from slim.planning.threshold import plan_by_threshold
from tests.pico import keeping, random_rows, shorthand
from tests.reference import measured

MIX = {"kl_output": 1.0, "variance": 0.3, "entropy": 0.07}
"""Weights that make scores of many digits."""
Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def calibration(pico: Callable[..., Loaded]) -> Calibration:
    """Of a llama with 4 layers of 6 heads in 2 groups."""
    return measured(pico("llama"), random_rows((9, 12, 7, 10)), draws=4)


def weights_of(made: Plan) -> dict[str, float]:
    """The weights of its score."""
    assert isinstance(made.reason, ByThreshold)
    return made.reason.weights


def legal_sets(heads: int, kv_heads: int) -> list[tuple[int, ...]]:
    """Every set of heads that keeps equally many in each group that stays, the empty one included."""
    group = heads // kv_heads
    subsets = itertools.chain.from_iterable(itertools.combinations(range(heads), n) for n in range(heads + 1))
    return [s for s in subsets if len({sum(h // group == g for h in s) for g in {h // group for h in s}}) <= 1]


def test_pins_without_room_are_named(calibration: Calibration) -> None:
    """One shape in all layers holds few of them; without that, or without pins, nothing is said."""
    drop = tuple((layer, head) for layer in (0, 1, 3) for head in range(5))
    pins = Pins(drop=drop, protect=(2,))
    made = plan_by_threshold(calibration, 0.4, pins=pins, uniform=True)
    (note,) = (note for note in made.notes if note.startswith("pins not followed"))
    kept = [set(layer.heads) for layer in made.keep]
    assert len(kept[2]) < 6
    lost = ", ".join(f"2:{head}" for head in range(6) if head not in kept[2])
    stayed = ", ".join(f"{layer}:{head}" for layer, head in drop if head in kept[layer])
    assert note.endswith(f": keep {lost}" + (f"; drop {stayed}" if stayed else ""))
    for other in (plan_by_threshold(calibration, 0.4, pins=pins), plan_by_threshold(calibration, 0.4, uniform=True)):
        assert not [note for note in other.notes if note.startswith("pins")]


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (6, 3), (8, 2), (4, 4), (6, 6), (4, 1), (9, 3)])
def test_legal_heads_is_the_best_of_all_legal_sets(heads: int, kv_heads: int) -> None:
    """Σ (threshold − score) of what stays is the largest there is, exactly; eighths make ties common."""
    rng, sets = np.random.default_rng(heads * 10 + kv_heads), legal_sets(heads, kv_heads)
    for case in range(60):
        whole = 8 if case % 2 else 8_000_000
        costs, threshold = rng.integers(0, whole + 1, heads), int(rng.integers(0, 10)) * whole // 8
        chosen = valid_heads(costs, threshold, kv_heads, range(1, heads // kv_heads + 1))
        assert chosen in sets
        best = max(sum(threshold - costs[h] for h in s) for s in sets)
        assert sum(threshold - costs[h] for h in chosen) == best


def test_without_groups_the_legal_set_is_the_free_one() -> None:
    """With a KV head per query head exactly what scores below the threshold stays."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        costs, threshold = rng.integers(0, 9, 7), rng.integers(0, 20) / 2
        assert valid_heads(costs, threshold, 7, [1]) == tuple(np.flatnonzero(costs < threshold))


def test_ties_keep_the_lower_index() -> None:
    """Of equal heads in a group the first stays."""
    assert valid_heads(np.array([1, 1, 4, 2, 0, 0]), 2, 2, (1, 2, 3)) == (0, 1, 4, 5)
    assert valid_heads(np.array([1, 1, 4, 4, 0, 4]), 2, 2, (1, 2, 3)) == (0, 4)
    assert valid_heads(np.array([4, 1, 1, 0, 4, 4]), 2, 2, (1, 2, 3)) == (1, 3)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (12, 4), (8, 1), (6, 6)])
def test_a_lower_threshold_never_keeps_more(heads: int, kv_heads: int) -> None:
    """The number of heads that stay falls with the threshold, from all of them to none."""
    rng = np.random.default_rng(7)
    for _ in range(20):
        costs, counts = rng.integers(0, 1001, heads), range(1, heads // kv_heads + 1)
        kept = [len(valid_heads(costs, threshold, kv_heads, counts)) for threshold in np.linspace(1010, 0, 60)]
        assert kept[0] == heads
        assert kept[-1] == 0
        assert all(more >= fewer for more, fewer in itertools.pairwise(kept))


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_plans_never_break_a_group(pico: Callable[..., Loaded], kv_heads: int) -> None:
    """Random scores and thresholds: the record's own check passes and the changes tell the difference."""
    base, rng = measured(pico("llama", kv_heads=kv_heads), random_rows((6, 7))), np.random.default_rng(kv_heads)
    for _ in range(25):
        values = rng.random((4, 6))
        scored = Calibration(base.facts, {**base.estimates, "entropy": {"head": Estimate.unsure(values)}}, base.sketch)
        threshold = float(rng.uniform(0.2, 1))
        made = plan_by_threshold(scored, threshold, weights={"entropy": 1})
        scores = prunability(values, True)
        ranks, limit, counts = doubled_ranks(values, True), threshold * highest_rank(24), range(1, 6 // kv_heads + 1)
        assert shorthand(made.keep) == tuple(valid_heads(row, limit, kv_heads, counts) for row in ranks)
        free = {(layer, head) for layer, head in np.argwhere(scores < threshold).tolist()}
        for change in made.changes:
            assert ((change.layer, change.head) in free) == (change.change == "removed")
            free ^= {(change.layer, change.head)}
        assert free == {(layer, head) for layer, kept in enumerate(made.keep) for head in kept.heads}
        assert made.removed_heads == 24 - len(free)


def test_prunability_ranks_over_the_whole_model() -> None:
    """0 to 1 over all heads, ties share, and the direction is the metric's."""
    values = np.array([[3.0, 1.0, 2.0], [2.0, 5.0, 4.0]])
    high = np.array([[3, 0, 1.5], [1.5, 5, 4]]) / 5
    np.testing.assert_allclose(prunability(values, True), high)
    np.testing.assert_allclose(prunability(values, False), 1 - high)
    np.testing.assert_array_equal(prunability(np.array([7.0]), True), [0.0])
    np.testing.assert_array_equal(prunability(np.full((2, 3), 4.0), False), np.full((2, 3), 0.5))
    np.testing.assert_array_equal(doubled_ranks(values, True), [[6, 0, 3], [3, 10, 8]])
    assert (highest_rank(6), highest_rank(1)) == (10, 1)


def test_composite_is_the_weighted_mean(calibration: Calibration) -> None:
    """Diffuse counts as prunable, low KL too, and only the ratio of the weights matters."""
    entropy, kl = (calibration.metrics[name]["head"] for name in ("entropy", "kl_output"))
    expected = 0.25 * prunability(entropy, True) + 0.75 * prunability(kl, False)
    np.testing.assert_allclose(composite(calibration, {"entropy": 1, "kl_output": 3}, "head"), expected)
    np.testing.assert_allclose(composite(calibration, {"entropy": 5, "kl_output": 15}, "head"), expected)
    blocks = composite(calibration, {"block_influence": 2, "entropy": 0}, "block")
    np.testing.assert_allclose(blocks, prunability(calibration.metrics["block_influence"]["block"], False))


@pytest.mark.parametrize(
    ("weights", "unit", "words"),
    [
        ({"magic": 1.0}, "head", "'magic'"),
        ({"block_influence": 1.0}, "head", "'block_influence'"),
        ({"entropy": -1.0}, "head", "entropy=-1"),
        ({"entropy": float("nan")}, "block", "entropy=nan"),
        ({"entropy": float("inf")}, "head", "entropy=inf"),
        ({"entropy": 0.0}, "head", "every weight is 0"),
        ({}, "head", "every weight is 0"),
    ],
)
def test_weights_that_cannot_be_used(
    calibration: Calibration, weights: dict[str, float], unit: Any, words: str
) -> None:
    """The message names the metric and its weight."""
    with pytest.raises(InputError, match=words):
        plan_by_threshold(calibration, 0.8, unit, weights)


@pytest.mark.parametrize("unit", ["head", "block"])
@pytest.mark.parametrize("threshold", [0.0, -0.1, float("nan"), float("inf"), float("-inf")])
def test_thresholds_that_cannot_be_used(calibration: Calibration, unit: Any, threshold: float) -> None:
    """Nothing at all would be left, or it is not finite."""
    with pytest.raises(InputError, match=f"threshold={threshold:g}"):
        plan_by_threshold(calibration, threshold, unit)


def test_the_named_threshold_works_where_one_removes_everything(calibration: Calibration) -> None:
    """Two layers whose blocks all tie: the message names the score above which something stays."""
    tied: NDArray[np.float64] = np.ones(4)
    scored = Calibration(calibration.facts, {"variance": {"block": Estimate.unsure(tied)}}, None)
    with pytest.raises(InputError, match=r"above 0\.50"):
        plan_by_threshold(scored, 0.5, "block", {"variance": 1})
    assert plan_by_threshold(scored, 0.51, "block", {"variance": 1}).removed_heads == 0


def test_blocks_go_at_the_threshold_and_above(calibration: Calibration) -> None:
    """Whole layers only, and nothing is reported as changed."""
    scores = composite(calibration, {"kl_output": 1}, "block")
    made = plan_by_threshold(calibration, 2 / 3, "block", {"kl_output": 1})
    assert made.removed_blocks == tuple(np.flatnonzero(scores >= 2 / 3))
    assert len(made.removed_blocks) == 2
    assert made.changes == ()


@pytest.mark.parametrize("unit", UNITS)
def test_what_scores_the_threshold_goes(pico: Callable[..., Loaded], unit: UnitName) -> None:
    """To the last digit: each score that a plan names, given as the threshold, removes all that score it or more."""
    scored = measured(pico("llama", kv_heads=6), random_rows((9, 12, 7, 10)))
    there = {name: weight for name, weight in MIX.items() if name in measured_per(scored, unit)}
    scores = composite(scored, there, unit).reshape(4, -1)
    for score in np.unique(scores)[1:].tolist():
        made = plan_by_threshold(scored, score, unit, there)
        np.testing.assert_array_equal(removed_heads(made.keep, 6), np.repeat(scores >= score, 6 // scores.shape[1], 1))
        assert made.changes == ()


def test_a_score_in_parts_is_a_whole_number() -> None:
    """Of the quotient of any two, which is rounded; what is between two scores stays between them."""
    rng = np.random.default_rng(0)
    for whole in (1, 23, 46, 2_300_000, 5_750_000, 1_894_030_000):
        for part in {0, 1, whole, *rng.integers(0, whole + 1, 500).tolist()}:
            assert in_parts(part / whole, whole) == part
            assert part < in_parts((part + 0.5) / whole, whole) < part + 1


def test_a_plan_forecasts_on_the_other_fold(calibration: Calibration) -> None:
    """½ Σ (s·d)² per predicted token of the sequences that did not rank the heads, with their bootstrap."""
    made, sketch = plan_by_threshold(calibration, 0.7), calibration.sketch
    assert made.forecast is not None
    assert sketch is not None
    removed = removed_columns(made.keep, 6)
    energy = 0.5 * np.square((sketch.scores.astype(float) * removed).sum((1, 2)))
    sums = np.array([energy[sketch.sequence == row].sum() for row in (1, 3)])
    tokens = sketch.tokens[1::2]
    assert made.forecast.nats_per_token == pytest.approx(sums.sum() / tokens.sum(), rel=1e-5)
    picks = np.random.default_rng(0).multinomial(2, [0.5, 0.5], size=400)
    low, high = np.quantile(picks @ sums / (picks @ tokens), [0.025, 0.975])
    assert (made.forecast.low, made.forecast.high) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))
    assert (made.forecast.sequences, made.forecast.factor) == (2, 1)
    assert str(made.forecast) == f"{sums.sum() / tokens.sum():.3f} nats/token [{low:.3f}, {high:.3f}]"


def test_without_a_sketch_there_is_no_forecast(calibration: Calibration) -> None:
    """And without the cost of heads they are planned by their variance."""
    unsketched = Calibration(calibration.facts, {"variance": calibration.estimates["variance"]}, None)
    assert plan_by_threshold(unsketched).forecast is None
    assert weights_of(plan_by_threshold(unsketched)) == {"variance": 1.0}


def test_a_layer_without_heads_loses_its_block() -> None:
    """Its block's column stands for all that attention adds, instead of its heads'; the MLP stays."""
    keep = keeping((0, 2), (), (0, 1, 2))
    mask = removed_heads(keep, 3)
    np.testing.assert_array_equal(mask, [[0, 1, 0], [1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(removed_columns(keep, 3), [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(head_columns(mask), removed_columns(keep, 3))


def test_a_removed_block_is_forecast_by_its_own_column(calibration: Calibration) -> None:
    """Not by the sum of its heads: a block may add a bias of its own."""
    sketch = calibration.sketch
    assert sketch is not None
    found = forecast(calibration, keeping((0, 1, 2, 3, 4, 5), (), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)))
    unseen = sketch.fold(1)
    expected = 0.5 * np.square(unseen.scores[:, 1, -2].astype(float)).sum() / unseen.tokens.sum()
    assert found is not None
    assert found.nats_per_token == pytest.approx(expected, rel=1e-5)


def test_a_plan_survives_its_file(calibration: Calibration, tmp_path: Path) -> None:
    """Equal after saving and loading, and again through JSON."""
    made = plan_by_threshold(calibration, 0.6)
    path = save_plan(made, tmp_path / "sub" / "plan.json")
    assert load_plan(path) == made
    assert type(made).model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda p: p["keep"][1].__setitem__("heads", [0, 1, 3]), r"keep\[1\]\.heads=\[0, 1, 3\].*KV group"),
        (lambda p: p["keep"][2].__setitem__("heads", [3, 0]), r"keep\.2: heads=\[3, 0\].*ascending"),
        (lambda p: p["keep"][2].__setitem__("heads", [0, 0]), r"keep\.2: heads=\[0, 0\].*ascending"),
        (lambda p: p["keep"][0].__setitem__("heads", [0, 6]), r"keep\[0\]\.heads=\[0, 6\].*0\.\.5"),
        (lambda p: p["keep"][0].__setitem__("heads", [-1]), r"keep\.0\.heads\.0.*greater than or equal to 0"),
        (lambda p: p["keep"].__setitem__(0, [0, 3]), r"keep\.0: .*LayerKeep"),
        (lambda p: p["keep"].pop(), "keep has 3 layers, the model has 4"),
        (lambda p: p.__setitem__("keep", [{}] * 4), "last attention block"),
        (lambda p: p["reason"].__setitem__("threshold", -1), "threshold"),
        (lambda p: p.__setitem__("unit", "neuron"), "unit"),
        (lambda p: p.__setitem__("schema_version", 99), r"newer Slim \(schema version 99"),
        (lambda p: p.__setitem__("kind", "calibration"), "kind"),
        (lambda p: p.pop("model"), "model"),
        (lambda p: p["model"].__setitem__("kv_heads", 4), "not a multiple"),
        (lambda p: p.__setitem__("surprise", 1), "surprise"),
    ],
)
def test_edited_plans_are_refused(calibration: Calibration, tmp_path: Path, edit: Edit, words: str) -> None:
    """The message names the file and the field."""
    path = save_plan(plan_by_threshold(calibration, 0.6), tmp_path / "plan.json")
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=words) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"threshold": NaN}'])
def test_files_that_are_no_plan_are_refused(tmp_path: Path, content: bytes) -> None:
    """Also a missing file and a folder."""
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    for bad in (path, tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError, match=bad.name):
            load_plan(bad)


def test_a_plan_is_not_written_over_a_folder(calibration: Calibration, tmp_path: Path) -> None:
    """The output has to be a file."""
    with pytest.raises(InputError, match="is a folder"):
        save_plan(plan_by_threshold(calibration, 0.6), tmp_path)
