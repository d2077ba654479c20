"""Task against general text: the ratio of costs, its interval, and what may be compared at all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slim.calibration.loss_sketch import LossSketch
from slim.calibration.record import Calibration, save_calibration
from slim.calibration.task_vs_general import of_same_model, task_difference, unlike
from slim.core.errors import InputError
from slim.models.load import Loaded
from tests.pico import random_rows
from tests.reference import measured

LAYERS, HEADS = 2, 3


@pytest.fixture(scope="module")
def task(pico: Callable[..., Loaded]) -> Calibration:
    """Of a llama with 2 layers of 3 heads."""
    return measured(pico("llama", layers=LAYERS, heads=HEADS, kv_heads=1), random_rows((9, 12, 7, 10)))


@pytest.fixture(scope="module")
def general(pico: Callable[..., Loaded]) -> Calibration:
    """The same model on other rows."""
    return measured(pico("llama", layers=LAYERS, heads=HEADS, kv_heads=1), random_rows((8, 15, 11), seed=7))


def sketched(calibration: Calibration, scale: float, rows: int, seed: int) -> Calibration:
    """The calibration with a sketch of random scores, `rows` sequences of 3 score rows each, scaled."""
    generator = np.random.default_rng(seed)
    scores = scale * generator.normal(size=(3 * rows, LAYERS, HEADS + 2))
    return replace(
        calibration,
        sketch=LossSketch(scores.astype(np.float32), np.repeat(np.arange(rows), 3), np.full(rows, 20)),
    )


def by_hand(calibration: Calibration, layer: int, head: int) -> float:
    """Half the sum of a head's squared scores, by token."""
    assert calibration.sketch is not None
    total = sum(float(row[layer, head]) ** 2 for row in calibration.sketch.scores)
    return 0.5 * total / int(calibration.sketch.tokens.sum())


def test_the_ratio_is_that_of_the_costs(task: Calibration, general: Calibration) -> None:
    """ln(general / task) of what each head costs over all rows; the interval holds it."""
    found = task_difference(task, general)
    for layer in range(LAYERS):
        for head in range(HEADS):
            costs = by_hand(task, layer, head), by_hand(general, layer, head)
            assert (found.task[layer, head], found.general[layer, head]) == pytest.approx(costs)
            assert found.ratio.value[layer, head] == pytest.approx(np.log(costs[1] / costs[0]))
    assert (found.ratio.low < found.ratio.value).all()
    assert (found.ratio.value < found.ratio.high).all()


def test_the_other_way_round_is_the_opposite(task: Calibration, general: Calibration) -> None:
    """Swapping the two changes the sign."""
    np.testing.assert_allclose(task_difference(task, general).ratio.value, -task_difference(general, task).ratio.value)


def test_a_task_does_not_differ_from_itself(task: Calibration) -> None:
    """No head is marked."""
    found = task_difference(task, task)
    np.testing.assert_array_equal(found.ratio.value, 0)
    assert not found.sure.any()
    assert found.least_needed(5) == []


def test_a_head_that_only_general_text_needs_stands_out(task: Calibration) -> None:
    """It alone is marked and named; one that only the task needs is marked and not named."""
    here, there = sketched(task, 1.0, 400, 1), sketched(task, 1.0, 400, 2)
    assert here.sketch is not None
    assert there.sketch is not None
    there.sketch.scores[:, 1, 2] *= 3
    here.sketch.scores[:, 0, 1] *= 2
    found = task_difference(here, there)
    assert found.ratio.value[1, 2] == pytest.approx(np.log(9), abs=0.3)
    assert found.ratio.value[0, 1] == pytest.approx(-np.log(4), abs=0.3)
    assert found.sure[1, 2]
    assert found.sure[0, 1]
    assert found.least_needed(1) == [(1, 2)]
    assert (0, 1) not in found.least_needed(6)


def test_what_all_heads_share_can_be_taken_out(task: Calibration) -> None:
    """General text that costs four times as much with any head gone says nothing of a single one."""
    here, there = sketched(task, 1.0, 400, 1), sketched(task, 2.0, 400, 2)
    plain, centred = task_difference(here, there), task_difference(here, there, centred=True)
    assert plain.sure.all()
    assert plain.shared == 0
    assert centred.shared == pytest.approx(np.log(4), abs=0.2)
    assert np.median(centred.ratio.value) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(centred.ratio.value + centred.shared, plain.ratio.value)
    assert centred.sure.sum() <= 1


def test_the_interval_holds_the_truth_as_often_as_it_says(task: Calibration) -> None:
    """Over 60 draws of 40 rows the 95% interval holds the true ratio between 85 and 99.9% of the time."""
    holds = []
    for draw in range(60):
        found = task_difference(sketched(task, 1.0, 40, 2 * draw), sketched(task, 1.5, 40, 2 * draw + 1))
        truth = 2 * np.log(1.5)
        holds.append((found.ratio.low <= truth) & (truth <= found.ratio.high))
    assert 0.85 < np.mean(holds) < 0.999


def test_one_row_gives_no_interval(task: Calibration, pico: Callable[..., Loaded]) -> None:
    """The ratio is there, nothing is marked."""
    alone = measured(pico("llama", layers=LAYERS, heads=HEADS, kv_heads=1), random_rows((9,)))
    found = task_difference(task, alone)
    assert np.isfinite(found.ratio.value).all()
    assert np.isnan(found.ratio.low).all()
    assert not found.sure.any()
    assert found.least_needed(3) == []


def test_a_head_that_costs_nothing_has_no_ratio(task: Calibration) -> None:
    """It is neither marked nor named, and the others are as before."""
    here, there = sketched(task, 1.0, 50, 1), sketched(task, 1.0, 50, 2)
    assert here.sketch is not None
    here.sketch.scores[:, 0, 0] = 0
    for centred in (False, True):
        found = task_difference(here, there, centred=centred)
        assert np.isnan(found.ratio.value[0, 0])
        assert np.isfinite(found.ratio.value).sum() == LAYERS * HEADS - 1
        assert np.isfinite(found.ratio.low).sum() == LAYERS * HEADS - 1
        assert not found.sure[0, 0]


def test_two_models_are_not_compared(task: Calibration, pico: Callable[..., Loaded]) -> None:
    """The message says so."""
    other = measured(pico("llama", layers=LAYERS, heads=HEADS, kv_heads=1, seed=3), random_rows((9, 8)))
    with pytest.raises(InputError, match="another model"):
        task_difference(task, other)


def test_without_kl_nothing_is_compared(task: Calibration) -> None:
    """The message names the side and the remedy."""
    with pytest.raises(InputError, match=r"^general: .*calibrate with KL"):
        task_difference(task, replace(task, sketch=None))
    with pytest.raises(InputError, match=r"^task: "):
        task_difference(replace(task, sketch=None), task)


def test_only_calibrations_of_the_same_model_are_offered(
    task: Calibration, general: Calibration, pico: Callable[..., Loaded], tmp_path: Path
) -> None:
    """Not the one at hand, none of another model, none without KL, none that cannot be read."""
    model = pico("llama", layers=LAYERS, heads=HEADS, kv_heads=1)
    made = {
        "task": task,
        "general": general,
        "none": measured(model, random_rows((9, 8)), kl="none"),
        "other": measured(pico("llama", layers=LAYERS, heads=HEADS, kv_heads=1, seed=3), random_rows((9, 8))),
    }
    for name, calibration in made.items():
        save_calibration(calibration, tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "record.json").write_text("{")
    folders = [tmp_path / name for name in (*made, "broken", "gone")]
    found = of_same_model(task.facts.model, folders, but=tmp_path / "task")
    assert found == [(tmp_path / "general", general.facts.dataset.source)]


def test_unlike_settings_are_named(task: Calibration, pico: Callable[..., Loaded]) -> None:
    """Only those that matter and differ."""
    model = pico("llama", layers=LAYERS, heads=HEADS, kv_heads=1)
    other = measured(model, random_rows((9, 8)), max_length=64, batch_size=1)
    assert unlike(task, task) == []
    assert unlike(task, other) == ["longest row, tokens: 320 and 64"]
