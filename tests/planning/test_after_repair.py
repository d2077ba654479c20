"""The forecast after repair, before anything is removed: against the sketch, twins, and the repair that follows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from slim.calibration.calibrate import calibrate
from slim.calibration.record import Calibration
from slim.calibration.reload import calibrated_rows
from slim.calibration.request import CalibrateRequest
from slim.calibration.sketch import score_rows
from slim.core.errors import InputError
from slim.data import tasks
from slim.data.batch_runner import subset
from slim.models.architectures import architecture_of
from slim.models.columns import removed_columns
from slim.models.load import Loaded, load_model
from slim.models.units import NO_ATTENTION, LayerKeep, UnitName
from slim.planning.after_repair import after_repair_sketch, measure_after_repair
from slim.planning.after_repair_record import FILE, AfterRepairSketch, load_after_repair, save_after_repair
from slim.planning.budget import plan_by_budget
from slim.planning.layer_options import ENUMERATED
from slim.planning.record import Pins
from tests.pico import FAMILIES, keeping, make_pico, random_rows, save_pico
from tests.reference import layers_of, measured
from tests.surgery import WHOLE

ROWS = random_rows((30, 37, 25, 33, 41, 28, 35, 30))


def sketch_of(loaded: Loaded) -> AfterRepairSketch:
    return measure_after_repair(loaded, tasks.Encoded(ROWS, 0), measured(loaded, ROWS, draws=1))


def cost(sketch: AfterRepairSketch, layer: int, heads: tuple[int, ...]) -> float:
    return float(np.square(sketch.effects[layer][sketch.kept[layer].index(LayerKeep(heads=heads))]).sum())


AFTER_NORM = [name for name in FAMILIES if architecture_of(name).attention_adds != architecture_of(name).attention]


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in AFTER_NORM])
def test_without_regression_it_is_the_loss_sketch(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an endless λ repair compensates for nothing, and the effects are sums of the sketch's own score columns."""
    loaded = make_pico(model_type)
    monkeypatch.setattr("slim.planning.after_repair.RIDGE", 1e15)
    found = sketch_of(loaded)
    facts, rows = loaded.facts, subset(tasks.Encoded(ROWS, 0), range(1, len(ROWS), 2))
    scores = [part for batch in tasks.batches(rows, 4) for part in score_rows(loaded, batch, 1, 0)]
    together = np.concatenate(scores)  # (R, L, H+2)
    for layer, options in enumerate(found.kept):
        for option, effect in zip(options, found.effects[layer], strict=True):
            keep = keeping(*(option if at == layer else tuple(range(facts.heads)) for at in range(facts.layers)))
            columns = removed_columns(keep, facts.heads)
            if option == NO_ATTENTION:
                columns[layer] = [True] * facts.heads + [False, False]  # heads alone: an output bias goes with a block
            assert np.allclose(effect, together.reshape(len(together), -1) @ columns.reshape(-1), atol=1e-4)


@torch.no_grad()
def test_a_head_with_a_twin_costs_nothing_while_the_twin_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slim.planning.after_repair.RIDGE", 1e-9)
    loaded = make_pico("llama")
    attention = layers_of(loaded.model)[1].self_attn
    size = loaded.facts.head_dim
    for group in (0, 3):
        rows = attention.q_proj.weight
        rows[(group + 1) * size : (group + 2) * size] = rows[group * size : (group + 1) * size]
    found = sketch_of(loaded)
    assert cost(found, 1, (0, 2, 3, 5)) < 1e-6 * cost(found, 1, (0, 1, 3, 4))
    assert cost(found, 1, WHOLE) == 0


@torch.no_grad()
def test_a_block_that_puts_out_nothing_costs_nothing() -> None:
    loaded = make_pico("llama")
    layers_of(loaded.model)[1].self_attn.v_proj.weight.zero_()
    assert cost(sketch_of(loaded), 1, ()) == 0


def test_batches_make_no_difference() -> None:
    loaded = make_pico("llama")
    one, other = (
        measure_after_repair(
            loaded,
            tasks.Encoded(ROWS, 0),
            _with_batch(measured(loaded, ROWS, draws=1), size),
        )
        for size in (1, 4)
    )
    places = [np.argsort(sketch.tokens[sketch.sequence], kind="stable") for sketch in (one, other)]
    for mine, theirs in zip(one.effects, other.effects, strict=True):
        assert np.allclose(np.square(mine).sum(1), np.square(theirs).sum(1), rtol=1e-4)
    assert len(places[0]) == len(places[1])


def _with_batch(calibration: Calibration, size: int) -> Calibration:
    settings = calibration.facts.settings.model_copy(update={"batch_size": size})
    facts = calibration.facts.model_copy(update={"settings": settings})
    return Calibration(facts, calibration.estimates, calibration.sketch)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    folder = tmp_path_factory.mktemp("calibrated")
    save_pico(make_pico("llama"), folder / "model")
    asked = {"dataset": "bundled:triage", "samples": 16, "max_length": 48, "dtype": "float64"}
    return calibrate(CalibrateRequest.asked(model=folder / "model", output=folder / "calibration", **asked))


def test_it_is_kept_beside_the_calibration(calibration: Calibration) -> None:
    found = after_repair_sketch(calibration)
    assert calibration.path is not None
    again = after_repair_sketch(calibration)
    assert again.kept == found.kept
    assert all(np.array_equal(*pair) for pair in zip(again.effects, found.effects, strict=True))
    loaded = load_model(calibration.facts.model.source, dtype="float64")
    rows = calibrated_rows(calibration, loaded)
    assert sorted(found.tokens) == sorted(len(row) - 1 for row in rows.rows[1::2])


@pytest.mark.parametrize("unit", ["head", "group", "block"])
def test_plans_for_what_is_left_after_repair(calibration: Calibration, unit: UnitName) -> None:
    found = after_repair_sketch(calibration)
    limits = {"heads": 0.7}
    pins = Pins(protect=(0,))
    plan = plan_by_budget(calibration, limits, unit, pins=pins, absorbed=found)
    blind = plan_by_budget(calibration, limits, unit, pins=pins)
    assert plan.removed_heads >= 0.3 * 24
    assert plan.keep[0].heads == WHOLE
    assert plan.repaired == found.forecast(plan.keep, 0)
    assert plan.repaired is not None
    assert plan.forecast is not None
    assert plan.repaired.nats_per_token < plan.forecast.nats_per_token
    assert blind.repaired is None
    assert plan.notes[0] == f"made for repair: without it the forecast is {plan.forecast}"


def test_many_heads_have_few_candidates(pico: Callable[..., Loaded]) -> None:
    loaded = make_pico("llama", heads=24, kv_heads=2, layers=2, head_dim=2)
    found = sketch_of(loaded)
    assert all(2 < len(options) <= 25 < ENUMERATED for options in found.kept)


def test_what_cannot_be_is_said(calibration: Calibration, tmp_path: Path) -> None:
    found = after_repair_sketch(calibration)
    with pytest.raises(InputError, match="unit=layer"):
        plan_by_budget(calibration, {"params": 0.9}, "layer", absorbed=found)
    for name in AFTER_NORM:
        with pytest.raises(InputError, match=f"{name}.*a norm follows"):
            sketch_of(make_pico(name))
    loaded = make_pico("llama")
    with pytest.raises(InputError, match="samples: 3 rows are too few"):
        measure_after_repair(loaded, tasks.Encoded(ROWS[:3], 0), measured(loaded, ROWS[:3], draws=1))
    save_after_repair(found, tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{FILE} is damaged"):
        load_after_repair(tmp_path)
