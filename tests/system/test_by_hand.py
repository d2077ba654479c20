"""Plans made by hand: units, thresholds of single layers, pins, one shape for all layers, and two plans compared."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from slim.calibration.record import Calibration
from slim.calibration.scores import composite
from slim.calibration.scores import measured as measured_per
from slim.core.errors import InputError
from slim.models.columns import removed_columns
from slim.models.load import Loaded
from slim.models.units import UNITS, UnitName, whole_model
from slim.planning.files import plan_difference
from slim.planning.record import Pins, Plan
from slim.planning.shapes import uniform_heads
from slim.planning.threshold import plan_by_threshold
from tests.pico import keeping, plan_of, random_rows
from tests.reference import measured

WHOLE = tuple(range(6))


@pytest.fixture(scope="module")
def calibration(pico: Callable[..., Loaded]) -> Calibration:
    """Of a llama with 4 layers of 6 heads in 2 groups."""
    return measured(pico("llama"), random_rows((9, 12, 7, 10)), draws=2)


def test_groups_go_whole(calibration: Calibration) -> None:
    """A KV head with all the query heads that read it, ranked by what is measured per group."""
    scores = composite(calibration, {"kl_output": 1}, "group")
    made = plan_by_threshold(calibration, 0.6, "group", {"kl_output": 1})
    assert scores.shape == (4, 2)
    for layer, kept in enumerate(made.keep):
        assert kept.heads == tuple(head for head in WHOLE if scores[layer, head // 3] < 0.6)
    assert made.changes == ()
    assert made.removed_heads == 3 * int((scores >= 0.6).sum())


def test_layers_go_whole(calibration: Calibration) -> None:
    """Attention and MLP together, ranked by their joint forecast on the selection fold."""
    sketch = calibration.sketch
    assert sketch is not None
    choosing = sketch.fold(0)
    joint = 0.5 * np.square(choosing.scores[..., -2:].astype(float).sum(-1)).sum(0) / choosing.tokens.sum()
    np.testing.assert_allclose(measured_per(calibration, "layer")["kl_output"], joint, rtol=1e-6)
    made = plan_by_threshold(calibration, 0.9, "layer")
    assert made.removed_layers == (int(joint.argmin()),)
    assert made.removed_heads == 6
    unseen = sketch.fold(1)
    cost = 0.5 * np.square(unseen.scores[:, made.removed_layers[0], -2:].astype(float).sum(-1)).sum()
    assert made.forecast is not None
    assert made.forecast.nats_per_token == pytest.approx(cost / unseen.tokens.sum(), rel=1e-5)


def test_layers_need_a_sketch(calibration: Calibration) -> None:
    """Nothing else says what a layer costs."""
    with pytest.raises(InputError, match="unit=layer"):
        plan_by_threshold(replace(calibration, sketch=None), 0.9, "layer")


def test_columns_of_a_plan() -> None:
    """A removed block stands for its heads, and a removed layer takes its MLP along."""
    found = removed_columns(keeping((0, 2), (), None, (0, 1, 2)), 3)
    np.testing.assert_array_equal(found, [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]])


def test_single_layers_have_thresholds_of_their_own(calibration: Calibration) -> None:
    """Above every score nothing goes there, and the other layers follow the common one."""
    common = plan_by_threshold(calibration, 0.5)
    made = plan_by_threshold(calibration, 0.5, per_layer={2: 1.5, 0: 0.2})
    assert made.keep[2].heads == WHOLE
    assert made.keep[1] == common.keep[1]
    assert made.keep[3] == common.keep[3]
    assert len(made.keep[0].heads) <= len(common.keep[0].heads)


@pytest.mark.parametrize("unit", UNITS)
def test_pins_win(calibration: Calibration, unit: UnitName) -> None:
    """Pinned units stay or go at any threshold, and a protected layer stays whole."""
    lax = plan_by_threshold(calibration, 2.0, unit, pins=Pins(drop=((1, 0),)))
    assert [layer for layer, kept in enumerate(lax.keep) if kept.heads != WHOLE] == [1]
    assert 0 not in lax.keep[1].heads
    strict = plan_by_threshold(calibration, 0.2, unit, pins=Pins(keep=((3, 0),), protect=(0,)))
    assert strict.keep[0].heads == WHOLE
    assert 0 in strict.keep[3].heads


def test_what_was_pinned_and_what_became_of_it_is_told(calibration: Calibration) -> None:
    """A pin that no valid shape can honour beside another shows among the changes."""
    made = plan_by_threshold(calibration, 2.0, pins=Pins(drop=((1, 0), (1, 1), (1, 2), (1, 3))))
    kept = set(made.keep[1].heads)
    for change in made.changes:
        assert change.layer == 1
        assert (change.change == "kept") == (change.head in kept)
    best = max(
        (heads for n in range(7) for heads in itertools.combinations(WHOLE, n)),
        key=lambda heads: (
            len({sum(h // 3 == g for h in heads) for g in {h // 3 for h in heads}}) <= 1,
            sum(1.0 if head > 3 else -1e6 for head in heads),
        ),
    )
    assert tuple(sorted(kept)) == best


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        (Pins(keep=((4, 0),)), "keep: 4:0 is not there"),
        (Pins(drop=((0, 6),)), "drop: 0:6 is not there"),
        (Pins(protect=(9,)), "protect: layer 9"),
        (Pins(protect=(0, 1, 2, 3)), "every layer is protected"),
    ],
)
def test_pins_outside_of_the_model(calibration: Calibration, pins: Pins, words: str) -> None:
    """The message names the pin."""
    with pytest.raises(InputError, match=words):
        plan_by_threshold(calibration, 0.5, pins=pins)


def test_a_pin_goes_one_way() -> None:
    """Not to stay and to go."""
    with pytest.raises(ValidationError, match="keep, drop=2:1"):
        Pins(keep=((2, 1),), drop=((0, 0), (2, 1)))


@pytest.mark.parametrize("per_layer", [{7: 0.5}, {0: -1.0}, {0: float("nan")}])
def test_layer_thresholds_that_cannot_be(calibration: Calibration, per_layer: dict[int, float]) -> None:
    """The message names the layer."""
    with pytest.raises(InputError, match=f"threshold of layer {next(iter(per_layer))}"):
        plan_by_threshold(calibration, 0.5, per_layer=per_layer)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 3), (4, 4)])
def test_the_uniform_shape_is_the_best_of_all(heads: int, kv_heads: int) -> None:
    """Brute force over every set of every shape, one shape for two layers."""
    rng, group = np.random.default_rng(heads + kv_heads), heads // kv_heads
    shapes = [*itertools.product(range(1, kv_heads + 1), range(1, group + 1))]
    for _ in range(30):
        costs, thresholds = rng.integers(0, 9, (2, heads)), rng.integers(0, 9, 2).tolist()
        gains = np.array(thresholds)[:, None] - costs
        best = -np.inf
        for groups, per_group in shapes:
            sets = [
                chosen
                for chosen in itertools.combinations(range(heads), groups * per_group)
                if sorted(sum(h // group == g for h in chosen) for g in range(kv_heads))
                == [0] * (kv_heads - groups) + [per_group] * groups
            ]
            best = max(best, sum(max(row[list(chosen)].sum() for chosen in sets) for row in gains))
        found = uniform_heads(costs, thresholds, kv_heads, shapes)
        assert sum(row[list(kept.heads)].sum() for row, kept in zip(gains, found, strict=True)) == best
        assert len({len(kept.heads) for kept in found}) == 1


def test_a_uniform_threshold_plan(calibration: Calibration) -> None:
    """One shape, and never better for its threshold than the free plan."""
    scores = composite(calibration, {"kl_output": 1}, "head")
    for threshold in (0.3, 0.5, 0.7):
        made = plan_by_threshold(calibration, threshold, weights={"kl_output": 1}, uniform=True)
        assert len({len(kept.heads) for kept in made.keep}) == 1
        gains = threshold - scores
        free = plan_by_threshold(calibration, threshold, weights={"kl_output": 1})
        reached, possible = (
            sum(row[list(kept.heads)].sum() for row, kept in zip(gains, plan.keep, strict=True))
            for plan in (made, free)
        )
        assert reached <= possible + 1e-12
    with pytest.raises(InputError, match="uniform"):
        plan_by_threshold(calibration, 0.5, "block", uniform=True)


def test_heads_of_a_family_that_keeps_blocks_whole(pico: Callable[..., Loaded]) -> None:
    """Refused before anything is computed, with the reason."""
    olmo = measured(pico("olmo2"), random_rows((6, 7)))
    for unit in ("head", "group"):
        with pytest.raises(InputError, match="norms span all heads"):
            plan_by_threshold(olmo, 0.5, unit)
    assert plan_by_threshold(olmo, 0.9, "block").removed_blocks


def test_two_plans_compared(calibration: Calibration, pico: Callable[..., Loaded]) -> None:
    """Heads that only one of them removes, heads of removed blocks and layers included."""
    facts = calibration.facts.model
    one = plan_of(facts, keeping((0, 1, 3, 4), (), WHOLE, WHOLE))
    other = plan_of(facts, keeping((0, 3), WHOLE, None, WHOLE))
    found = plan_difference(one, other)
    assert found.only_one == tuple((1, head) for head in WHOLE)
    assert found.only_other == ((0, 1), (0, 4), *((2, head) for head in WHOLE))
    assert (found.layers_only_one, found.layers_only_other) == ((), (2,))
    assert found.shared == 2
    with pytest.raises(InputError, match="two models"):
        plan_difference(one, plan_of(pico("mistral").facts, whole_model(facts)))


def test_the_reason_is_kept(calibration: Calibration) -> None:
    """Threshold, weights, scores and pins come back from JSON."""
    made = plan_by_threshold(calibration, 0.6, per_layer={1: 0.9}, pins=Pins(keep=((0, 0),), protect=(3,)))
    again: Any = Plan.model_validate_json(made.model_dump_json())
    assert again == made
    scores = composite(calibration, again.reason.weights, "head")
    np.testing.assert_array_equal(np.array(again.reason.scores), scores)
    assert again.calibrated == calibration.facts.started
