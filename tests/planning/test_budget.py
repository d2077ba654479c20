"""Plans by budget: exact for costs that add up, better or not at all for interactions, honest about what cannot be."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from slim.calibration.forecast import forecast
from slim.calibration.loss_sketch import LossSketch
from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.models.columns import removed_columns
from slim.models.load import Loaded
from slim.models.units import UNITS, Keep, UnitName, whole_model
from slim.planning.budget import Infeasible, Planner, check_limits, curve, plan_by_budget
from slim.planning.record import ByBudget, Pins
from slim.planning.sizes import size_of
from tests.pico import Heads, keeping, random_rows, shorthand
from tests.reference import measured

HEADS, GROUPS = 6, 2
WHOLE = tuple(range(HEADS))


@pytest.fixture(scope="module")
def calibration(pico: Callable[..., Loaded]) -> Calibration:
    """Of a llama with 4 layers of 6 heads in 2 groups."""
    return measured(pico("llama"), random_rows((9, 12, 7, 10)), draws=2)


def layer_sets(unit: UnitName) -> list[Heads]:
    """Everything a layer may keep, by the definition."""
    if unit == "block":
        return [WHOLE, ()]
    if unit == "layer":
        return [WHOLE, None]
    every = itertools.chain.from_iterable(itertools.combinations(WHOLE, n) for n in range(HEADS + 1))
    counted = [(heads, [sum(h // 3 == g for h in heads) for g in range(GROUPS)]) for heads in every]
    legal = [heads for heads, counts in counted if len({count for count in counts if count}) <= 1]
    return (
        [*legal] if unit == "head" else [heads for heads in legal if len(heads) in (0, 3, 6) and _whole_groups(heads)]
    )


def _whole_groups(heads: tuple[int, ...]) -> bool:
    return all((3 * (head // 3) + other) in heads for head in heads for other in range(3))


def alone(calibration: Calibration, layer: int, heads: Heads) -> float:
    """Forecast of one layer's removals by the selection fold, nothing else removed."""
    keep = keeping(*(heads if index == layer else WHOLE for index in range(4)))
    assert calibration.sketch is not None
    choosing = calibration.sketch.fold(0)
    return float(choosing.costs(removed_columns(keep, HEADS)).sum() / choosing.tokens.sum())


def additive(calibration: Calibration, keep: Keep) -> float:
    return sum(alone(calibration, layer, heads) for layer, heads in enumerate(shorthand(keep)))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("share", [0.98, 0.9, 0.8])
def test_it_is_the_best_of_all_legal_plans(calibration: Calibration, unit: UnitName, share: float) -> None:
    """Brute force over all valid shapes: dearer sets of the same shape are dropped first, which changes no optimum."""
    facts = calibration.facts.model
    whole = size_of(facts, whole_model(facts)).parameters
    best_of: list[list[tuple[float, int, Heads]]] = []
    for layer in range(4):
        shapes: dict[int, tuple[float, int, Heads]] = {}
        for heads in layer_sets(unit):
            keep = keeping(*(heads if index == layer else WHOLE for index in range(4)))
            size = size_of(facts, keep).parameters - whole
            found = (alone(calibration, layer, heads), size, heads)
            if size not in shapes or found[0] < shapes[size][0]:
                shapes[size] = found
        best_of.append([*shapes.values()])
    plans = [
        (sum(part[0] for part in plan), tuple(part[2] for part in plan))
        for plan in itertools.product(*best_of)
        if whole + sum(part[1] for part in plan) <= share * whole and any(part[2] for part in plan)
    ]
    planner = Planner(calibration, unit)
    if not plans:
        with pytest.raises(Infeasible):
            planner.additive({"params": share})
        return
    found = planner.additive({"params": share})
    assert size_of(facts, found).parameters <= share * whole
    assert additive(calibration, found) == pytest.approx(min(plans)[0], rel=1e-4)


@pytest.mark.parametrize(
    "limits",
    [
        {"heads": 0.7},
        {"params": 0.9},
        {"bytes": 0.85},
        {"kv": 0.6},
        {"flops": 0.9},
        {"prefill": 1.1},
        {"decode": 1.1},
        {"params": 0.95, "kv": 0.7, "decode": 1.05},
    ],
)
def test_every_limit_is_kept(calibration: Calibration, limits: dict[str, float]) -> None:
    """Sizes are shares of the original, speeds the original over the plan; the recipe says so."""
    made = plan_by_budget(calibration, limits)
    before, after = made.before, made.after
    reached = {
        "heads": 1 - made.removed_heads / (made.model.layers * made.model.heads),
        "params": after.parameters / before.parameters,
        "bytes": after.bytes / before.bytes,
        "kv": after.kv_bytes_per_token / before.kv_bytes_per_token,
        "flops": after.flops_per_token / before.flops_per_token,
        "prefill": before.flops_per_token / after.flops_per_token,
        "decode": before.bytes_read_per_token / after.bytes_read_per_token,
    }
    for name, limit in limits.items():
        assert reached[name] >= limit if name in ("prefill", "decode") else reached[name] <= limit + 1e-9
    assert made.reason == ByBudget(limits=limits)
    assert made.forecast == forecast(calibration, made.keep)
    assert made.removed_heads > 0


def test_interactions_are_minded_where_unseen_rows_agree(calibration: Calibration) -> None:
    """Two layers that undo each other: together they cost nothing, which no sum over layers can know."""
    assert calibration.sketch is not None
    rng, rows = np.random.default_rng(0), 40
    scores = np.zeros((rows, 4, HEADS + 2), dtype=np.float32)
    scores[:, :, -2] = rng.normal(1, 0.05, (rows, 4))  # every block's effect points the same way …
    scores[:, 3, -2] = -1.05 * scores[:, 2, -2]  # … but the last one takes the third's back
    scores[:, :2, -2] *= 0.9  # alone the first two are cheaper
    sketch = LossSketch(scores, np.arange(rows) // 10, np.full(4, 10))
    made_up = replace(calibration, sketch=sketch)
    planner = Planner(made_up, "block")
    sum_best = planner.additive({"kv": 0.5})
    assert [layer for layer, kept in enumerate(sum_best) if not kept.heads] == [0, 1]
    minded = plan_by_budget(made_up, {"kv": 0.5}, "block")
    assert minded.removed_blocks == (2, 3)
    other = scores.copy()
    unseen = sketch.sequence % 2 == 1
    other[unseen, 3, -2] *= -1  # on the held-out fold they add up instead
    doubtful = replace(calibration, sketch=LossSketch(other, sketch.sequence, sketch.tokens))
    assert plan_by_budget(doubtful, {"kv": 0.5}, "block").removed_blocks == (0, 1)


def test_a_loss_alone_gives_the_smallest_model_within_it(calibration: Calibration) -> None:
    """Its forecast is within the limit, and more loss never gives a larger model."""
    sizes = []
    for loss in (0.05, 0.2, 0.8, 3.0):
        made = plan_by_budget(calibration, {"loss": loss})
        assert made.forecast is not None
        assert made.forecast.nats_per_token <= loss
        sizes.append(made.after.bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


@pytest.mark.parametrize("unit", ["head", "group", "layer"])
def test_uniform_plans_have_one_shape(calibration: Calibration, unit: UnitName) -> None:
    """Whole layers may go beside it."""
    made = plan_by_budget(calibration, {"params": 0.85}, unit, uniform=True)
    shapes = {len(kept.heads) for kept in made.keep if kept.layer}
    assert len(shapes) == 1
    assert not made.removed_blocks
    assert made.uniform


def test_pins_and_protected_layers_hold(calibration: Calibration) -> None:
    """Whatever the loss would like."""
    free = plan_by_budget(calibration, {"params": 0.85})
    gone = [(layer, head) for layer, stays in enumerate(free.keep) for head in WHOLE if head not in stays.heads]
    kept = [(layer, head) for layer, stays in enumerate(free.keep) for head in stays.heads]
    pins = Pins(keep=(gone[0],), drop=(kept[0],))
    made = plan_by_budget(calibration, {"params": 0.85}, pins=pins)
    assert gone[0][1] in made.keep[gone[0][0]].heads
    assert kept[0][1] not in made.keep[kept[0][0]].heads
    protected = plan_by_budget(calibration, {"params": 0.9}, pins=Pins(protect=(0, 3)))
    assert protected.keep[0].heads == protected.keep[3].heads == WHOLE


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "empty"),
        ({"weight": 0.5}, "'weight' is not a limit"),
        ({"params": 0.0}, "params=0 must be a share"),
        ({"params": 1.2}, "params=1.2 must be a share"),
        ({"params": float("nan")}, "params=nan"),
        ({"decode": 0.9}, "decode=0.9 must be times as fast"),
        ({"decode": float("inf")}, "decode=inf"),
        ({"loss": 0.0}, "loss=0"),
    ],
)
def test_limits_without_sense(limits: dict[str, float], words: str) -> None:
    """The message names the limit and its value."""
    with pytest.raises(InputError, match=words):
        check_limits(limits)


def test_what_cannot_be_met_says_what_can(calibration: Calibration) -> None:
    """The limit that binds, and what is reachable: the named figure is reachable, a little less is not."""
    with pytest.raises(
        InputError, match=r"params=0\.1 cannot be met by removing heads: the least is (0\.\d+)"
    ) as caught:
        plan_by_budget(calibration, {"params": 0.1})
    least = float(str(caught.value).split("the least is ")[1].rstrip("."))
    plan_by_budget(calibration, {"params": least + 0.001})
    with pytest.raises(InputError, match="params"):
        plan_by_budget(calibration, {"params": least - 0.001})
    with pytest.raises(InputError, match=r"decode=40 cannot be met .*the most is"):
        plan_by_budget(calibration, {"decode": 40})
    with pytest.raises(InputError, match=r"loss=1e-09 cannot be met together with params=0\.8.*nats/token"):
        plan_by_budget(calibration, {"params": 0.8, "loss": 1e-9})


def test_ruin_is_warned_about(calibration: Calibration) -> None:
    """A budget that can be met only by breaking the model says so before anything is cut."""
    planner = Planner(calibration, "head")
    made = plan_by_budget(calibration, {"params": planner.least("parameters") + 1e-6})
    assert made.forecast is not None
    assert bool(made.notes) == (made.forecast.nats_per_token >= 0.7)
    assert made.notes
    assert "perplexity" in made.notes[0]


def test_units_that_cannot_be_planned(calibration: Calibration, pico: Callable[..., Loaded]) -> None:
    """Without a sketch, blocks in one shape, single heads under norms that span them, and pins against each other."""
    with pytest.raises(InputError, match="no loss sketch"):
        plan_by_budget(replace(calibration, sketch=None), {"params": 0.9})
    with pytest.raises(InputError, match="uniform"):
        plan_by_budget(calibration, {"params": 0.9}, "block", uniform=True)
    olmo = measured(pico("olmo2"), random_rows((6, 7)))
    with pytest.raises(InputError, match="norms span all heads"):
        plan_by_budget(olmo, {"params": 0.95})
    with pytest.raises(InputError, match="pins"):
        plan_by_budget(calibration, {"params": 0.9}, pins=Pins(keep=((0, 0), (0, 1), (0, 3)), drop=((0, 4), (0, 5))))


def test_the_curve_falls_in_size_from_the_whole_model(calibration: Calibration) -> None:
    """Every point is the cheapest plan of its size or below."""
    points = [*curve(calibration, points=8)]
    shares = [share for share, _ in points]
    assert len(points) == 8
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    costs = [additive(calibration, keep) for _, keep in points]
    assert costs == sorted(costs)
    assert costs[0] == 0
