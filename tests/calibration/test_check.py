"""Checking a calibration: what it measures is what it says, and the correction of the forecast comes from it."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import spearmanr

from slim.calibration import calibrate, check
from slim.calibration.check import measure_check, rows_to_check, some_heads
from slim.calibration.check_record import (
    SHARES,
    Correction,
    CriterionCheck,
    first_heads,
    fit_correction,
    rank_correlation,
)
from slim.calibration.forecast import forecast
from slim.calibration.record import Calibration, load_calibration
from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.calibration.scores import composite, criteria, prunability
from slim.core.errors import InputError, SlimError
from slim.data import tasks
from slim.data.tasks import Encoded
from slim.models.columns import head_columns
from slim.models.load import Loaded, load_model
from slim.planning.threshold import plan_by_threshold
from tests import reference
from tests.pico import make_pico, random_rows, save_pico
from tests.reference import measured
from tests.reporting import Heard

Pico = Callable[..., Loaded]
ROWS = random_rows((9, 12, 7, 10))
UNSEEN = random_rows((8, 6, 11), seed=9)


@pytest.fixture(scope="module")
def loaded(pico: Pico) -> Loaded:
    """A llama of four layers of six heads."""
    return pico("llama")


@pytest.fixture(scope="module")
def measured_once(loaded: Loaded) -> Calibration:
    """Its calibration, by ablation of every head so that the sketch is a criterion of its own."""
    return measured(loaded, ROWS, draws=4, kl="exact")


@pytest.fixture(scope="module")
def found(loaded: Loaded, measured_once: Calibration) -> CriterionCheck:
    """The check of it on rows of its own, every head alone."""
    return measure_check(measured_once, loaded, Encoded(UNSEEN, 0), heads=1000)


def joint(loaded: Loaded, removed: NDArray[np.bool_]) -> tuple[float, float]:
    """KL in nats per token and perplexity on UNSEEN without `removed` heads (L, H), row by row with the reference."""
    import torch

    nats = surprise = 0.0
    for row in UNSEEN:
        full = reference.log_probabilities(loaded, row)
        with reference.gated(loaded.model, torch.from_numpy(~removed), loaded.facts.head_dim):
            other = reference.log_probabilities(loaded, row)
        nats += reference.kl_sum(full, other)
        surprise -= float(other[range(len(other)), row[1:]].sum())
    tokens = sum(len(row) - 1 for row in UNSEEN)
    return nats / tokens, float(np.exp(surprise / tokens))


def test_single_heads_cost_what_the_reference_says(loaded: Loaded, found: CriterionCheck) -> None:
    """Every head alone, in order, and the whole model's perplexity."""
    assert found.heads == tuple(itertools.product(range(4), range(6)))
    assert (found.rows, found.tokens, found.unseen) == (3, sum(map(len, UNSEEN)) - 3, True)
    for (layer, head), damage in zip(found.heads, found.damage, strict=True):
        removed = np.zeros((4, 6), dtype=bool)
        removed[layer, head] = True
        assert damage == pytest.approx(joint(loaded, removed)[0], abs=1e-6)
    assert found.perplexity == pytest.approx(joint(loaded, np.zeros((4, 6), dtype=bool))[1], rel=1e-6)


def test_joint_removals_cost_what_the_reference_says(
    loaded: Loaded, measured_once: Calibration, found: CriterionCheck
) -> None:
    """Each criterion's first heads together: KL, perplexity, and the forecast of the held-out fold."""
    orders = criteria(measured_once, found.weights)
    assert [verdict.criterion for verdict in found.verdicts] == list(orders)
    assert {"random", "kl_output", "sketch", "magnitude", "variance", "block_influence", "composite"} <= orders.keys()
    assert measured_once.sketch is not None
    unseen, choosing = measured_once.sketch.fold(1), measured_once.sketch.fold(0)
    np.testing.assert_array_equal(orders["sketch"], prunability(choosing.single().value[:, :6], False))
    np.testing.assert_array_equal(orders["entropy"], prunability(measured_once.metrics["entropy"]["head"], True))
    for verdict in found.verdicts:
        assert tuple(removal.share for removal in verdict.removals) == SHARES
        for removal in verdict.removals:
            removed = first_heads(orders[verdict.criterion], removal.share)
            assert removal.heads == removed.sum() == round(removal.share * 24)
            kl, perplexity = joint(loaded, removed)
            assert removal.kl == pytest.approx(kl, abs=1e-6)
            assert removal.perplexity == pytest.approx(perplexity, rel=1e-6)
            costs = unseen.costs(head_columns(removed)).sum() / unseen.tokens.sum()
            assert removal.forecast == pytest.approx(float(costs))


def test_verdicts_are_rank_correlations_with_the_damage(measured_once: Calibration, found: CriterionCheck) -> None:
    """Of "goes late" with the cost: what costs most must go last; each interval holds its figure."""
    damage = np.array(found.damage)
    for name, order in criteria(measured_once, found.weights).items():
        verdict = found.verdict(name)
        assert verdict is not None
        assert verdict.correlation == pytest.approx(spearman(-order.ravel(), damage))
        ends = [end for end in (verdict.low, verdict.correlation, verdict.high) if end is not None]
        assert len(ends) == 3
        assert ends == sorted(ends)
    exact, chance = (found.verdict(name) for name in ("kl_output", "random"))
    assert exact is not None
    assert chance is not None
    assert (exact.correlation or 0) > max(0.7, abs(chance.correlation or 0))
    assert found.verdict("magic") is None


def test_ruin_does_not_correct_the_forecast(
    loaded: Loaded, measured_once: Calibration, found: CriterionCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removals that are forecast to cost more than a bound are left out of the fit."""
    forecasts = sorted({r.forecast for verdict in found.verdicts for r in verdict.removals if r.forecast is not None})
    monkeypatch.setattr(check, "FITTED_BELOW", forecasts[8])
    other = measure_check(measured_once, loaded, Encoded(UNSEEN, 0), heads=3)
    assert other.correction is not None
    assert other.correction.largest == forecasts[7]
    assert other.correction.removals == 8 < len(forecasts)


def test_the_correction_is_fitted_on_what_was_measured(found: CriterionCheck) -> None:
    """Each distinct set once, ruin left out."""
    removals = {(r.forecast, r.kl) for verdict in found.verdicts for r in verdict.removals}
    useful = np.array([(f, k) for f, k in removals if f is not None and f < check.FITTED_BELOW])
    expected = fit_correction(*useful.T)
    assert found.correction is not None
    assert expected is not None
    assert found.correction.removals == expected.removals == len(useful)
    assert found.correction.slope == pytest.approx(expected.slope, abs=1e-6)
    assert found.correction.intercept == pytest.approx(expected.intercept, abs=1e-6)
    assert found.correction.smallest == useful[:, 0].min()
    assert found.correction.largest == useful[:, 0].max() < check.FITTED_BELOW


def test_a_check_depends_on_neither_batches_nor_memory(
    loaded: Loaded, measured_once: Calibration, found: CriterionCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows one at a time, variants one at a time."""
    monkeypatch.setattr("slim.calibration.ablation.TOKENS_AT_ONCE", 1)
    settings = measured_once.facts.settings.model_copy(update={"batch_size": 1})
    again = replace(measured_once, facts=measured_once.facts.model_copy(update={"settings": settings}))
    other = measure_check(again, loaded, Encoded(UNSEEN, 0), heads=1000)
    np.testing.assert_allclose(other.damage, found.damage, rtol=0, atol=1e-6)
    for one, two in zip(found.verdicts, other.verdicts, strict=True):
        for left, right in zip(one.removals, two.removals, strict=True):
            assert (left.share, left.heads, left.forecast) == (right.share, right.heads, right.forecast)
            assert right.kl == pytest.approx(left.kl, abs=1e-6)
            assert right.perplexity == pytest.approx(left.perplexity, rel=1e-6)


def test_answers_alone_are_checked_where_they_alone_were_measured(loaded: Loaded, measured_once: Calibration) -> None:
    """Rows with starts: perplexity and damage of the counted positions."""
    starts = (5, 2, 9)
    other = measure_check(measured_once, loaded, Encoded(UNSEEN, 0, starts), heads=3)
    assert other.tokens == sum(len(row) - start for row, start in zip(UNSEEN, starts, strict=True))
    surprise = 0.0
    for row, start in zip(UNSEEN, starts, strict=True):
        full = reference.log_probabilities(loaded, row)[start - 1 :]
        surprise -= float(full[range(len(full)), row[start:]].sum())
    assert other.perplexity == pytest.approx(np.exp(surprise / other.tokens), rel=1e-6)


def test_progress_grows_to_its_end(loaded: Loaded, measured_once: Calibration) -> None:
    """In steps, never back and never beyond."""
    heard = Heard()
    measure_check(measured_once, loaded, Encoded(UNSEEN, 0), heads=5, reporter=heard)
    shares = [done / total for done, total, _ in heard.steps]
    assert shares == sorted(shares)
    assert len(shares) > 8
    assert shares[-1] == 1
    assert heard.messages == {"Ablating single heads", "Following each criterion"}


def test_a_full_memory_is_one_sentence(
    loaded: Loaded, measured_once: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported as that; anything else comes through."""

    def fails(error: BaseException) -> Callable[..., Any]:
        def ablate(*arguments: Any) -> Any:
            raise error

        return ablate

    monkeypatch.setattr(check, "ablate", fails(MemoryError()))
    with pytest.raises(SlimError, match="out of memory while checking"):
        measure_check(measured_once, loaded, Encoded(UNSEEN, 0))
    monkeypatch.setattr(check, "ablate", fails(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        measure_check(measured_once, loaded, Encoded(UNSEEN, 0))


def test_without_a_sketch_there_is_nothing_to_forecast(loaded: Loaded) -> None:
    """`--kl none`: the criteria that are left are checked, no forecast and no correction."""
    plain = measured(loaded, ROWS, kl="none")
    other = measure_check(plain, loaded, Encoded(UNSEEN, 0), heads=6)
    names = {verdict.criterion for verdict in other.verdicts}
    assert {"variance", "magnitude", "composite", "random"} <= names
    assert not {"kl_output", "sketch"} & names
    assert other.weights == {"variance": 1.0}
    assert other.correction is None
    assert all(removal.forecast is None for verdict in other.verdicts for removal in verdict.removals)
    assert CriterionCheck.model_validate_json(other.model_dump_json()) == other


def test_the_composite_takes_the_weights(loaded: Loaded, measured_once: Calibration) -> None:
    """Those given, which are reported; a metric that is not there is refused."""
    weights = {"variance": 1.0, "magnitude": 0.5}
    orders = criteria(measured_once, weights)
    np.testing.assert_array_equal(orders["composite"], composite(measured_once, weights, "head"))
    blocks = measured_once.metrics["block_influence"]["block"]
    np.testing.assert_array_equal(orders["block_influence"][:, 2], prunability(blocks, False))
    other = measure_check(measured_once, loaded, Encoded(UNSEEN[:1], 0), weights=weights, heads=3)
    assert other.weights == weights
    with pytest.raises(InputError, match="'magic'"):
        measure_check(measured_once, loaded, Encoded(UNSEEN[:1], 0), weights={"magic": 1.0}, heads=3)


def test_first_heads_are_counted_and_ties_go_by_place() -> None:
    """Rounded, at least one, the most prunable first, and of equals the one that comes first."""
    scores = np.array([[0.5, 1.0, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.75]])
    assert [int(first_heads(scores, share).sum()) for share in (0.01, 0.2, 0.3, 0.5, 1)] == [1, 2, 3, 4, 9]
    assert np.argwhere(first_heads(scores, 0.01)).tolist() == [[0, 1]]
    assert np.argwhere(first_heads(scores, 0.2)).tolist() == [[0, 1], [2, 2]]
    assert np.argwhere(first_heads(scores, 0.45)).tolist() == [[0, 0], [0, 1], [0, 2], [2, 2]]
    many = np.tile([0.25, 0.75], (40, 8))
    expected = np.zeros((40, 16), dtype=bool)
    expected[:20, 1::2] = True
    np.testing.assert_array_equal(first_heads(many, 0.25), expected)


@pytest.mark.parametrize("count", [3, 7, 20, 23])
def test_heads_are_spread_over_the_layers(count: int) -> None:
    """As many as asked, none twice, no layer with two more than another; the seed chooses; all where that is fewer."""
    chosen = some_heads(4, 6, count, 0)
    assert len(chosen) == len(set(chosen)) == count
    assert list(chosen) == sorted(chosen)
    per_layer = [sum(layer == index for layer, _ in chosen) for index in range(4)]
    assert max(per_layer) - min(per_layer) <= 1
    assert chosen == some_heads(4, 6, count, 0) != some_heads(4, 6, count, 1)
    assert some_heads(4, 6, 24, 0) == some_heads(4, 6, 999, 5) == tuple(itertools.product(range(4), range(6)))


def test_rank_correlation_is_spearmans() -> None:
    """With ties; the seed decides the interval; nothing is known where one side never varies."""
    rng, order, damage = np.random.default_rng(0), np.zeros(0), np.zeros(0)
    for _ in range(20):
        damage = rng.integers(0, 8, 15) / 4
        order = rng.integers(0, 5, 15) / 4 - 0.3 * damage
        value, low, high = rank_correlation(order, damage)
        assert value == pytest.approx(spearman(-order, damage))
        assert low <= value <= high
    assert rank_correlation(order, damage, 1)[1:] == rank_correlation(order, damage, 1)[1:]
    assert rank_correlation(-damage, damage)[0] == pytest.approx(1)
    assert rank_correlation(damage, damage)[0] == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0))).all()
    assert np.isnan(rank_correlation(np.arange(5.0), np.ones(5))).all()


def test_the_correlations_interval_resamples_heads() -> None:
    """Against the bootstrap written out."""
    rng = np.random.default_rng(1)
    damage = rng.random(12)
    order = -damage + rng.normal(0, 0.4, 12)
    generator = np.random.default_rng(6)
    picks = [generator.integers(12, size=12) for _ in range(300)]
    samples = [spearman(-order[pick], damage[pick]) for pick in picks]
    _, low, high = rank_correlation(order, damage, 6)
    assert (low, high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])))


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """scipy's."""
    return float(np.asarray(spearmanr(one, other))[0])


def power(forecast: NDArray[np.float64]) -> NDArray[np.float64]:
    """Measured losses where forecasts are off by a known law."""
    return forecast * np.exp(0.3 + 0.15 * np.log(forecast))


def test_a_known_law_is_recovered() -> None:
    """Exactly without noise, closely with two ruinous outliers among twenty, and nearly so with noise."""
    forecast = np.geomspace(0.01, 1.9, 20)
    fitted = fit_correction(forecast, power(forecast))
    assert fitted is not None
    assert (fitted.intercept, fitted.slope) == pytest.approx((0.3, 0.15), abs=1e-6)
    assert fitted.spread == pytest.approx(0, abs=1e-6)
    assert (fitted.smallest, fitted.largest, fitted.removals) == pytest.approx((0.01, 1.9, 20))
    spoiled = power(forecast)
    spoiled[[16, 19]] *= 30
    robust = fit_correction(forecast, spoiled)
    assert robust is not None
    assert (robust.intercept, robust.slope) == pytest.approx((0.3, 0.15), abs=0.02)
    noisy = fit_correction(forecast, power(forecast) * np.exp(np.random.default_rng(0).normal(0, 0.1, 20)))
    assert noisy is not None
    assert (noisy.intercept, noisy.slope) == pytest.approx((0.3, 0.15), abs=0.1)
    assert 0.05 < noisy.spread < 0.2


def test_few_removals_correct_nothing() -> None:
    """Six are needed that cost something and were forecast to."""
    forecast = np.geomspace(0.01, 1, 8)
    measured_kl = power(forecast)
    assert fit_correction(forecast[:5], measured_kl[:5]) is None
    measured_kl[:2] = 0
    fitted = fit_correction(forecast, measured_kl)
    assert fitted is not None
    assert fitted.removals == 6
    measured_kl[2] = 0
    assert fit_correction(forecast, measured_kl) is None


@pytest.mark.parametrize(
    "odd", [{"intercept": 60}, {"slope": 1e300}, {"slope": 120, "curvature": 50}, {"curvature": -1e300}, {"spread": 51}]
)
def test_a_law_that_gives_no_numbers_is_refused(odd: dict[str, float]) -> None:
    """At an end of what was seen, or where it bends between them."""
    plain = {"intercept": 0.3, "slope": 0.1, "smallest": 0.01, "largest": 1.0, "spread": 0.2, "removals": 9}
    assert Correction.model_validate(plain).factor(0.1) > 0
    with pytest.raises(ValidationError, match=r"spread|not a number that a forecast"):
        Correction.model_validate(plain | odd)


def test_a_fit_that_gives_no_numbers_corrects_nothing() -> None:
    """A removal that is forecast to cost all but nothing, and costs something, pulls the law to itself."""
    forecast = np.append(np.geomspace(1e-3, 1, 12), 1e-40)
    measured_kl = np.append(1.2 * forecast[:-1], 1e-8)
    assert fit_correction(forecast[:-1], measured_kl[:-1]) is not None
    assert fit_correction(forecast, measured_kl) is None


def test_the_factor_stays_at_its_edges() -> None:
    """The law within what was seen, its ends outside, and nothing where nothing is forecast."""
    law = Correction(intercept=0.3, slope=0.15, smallest=0.01, largest=1.0, spread=0.2, removals=9)
    assert law.factor(0.5) == pytest.approx(np.exp(0.3 + 0.15 * np.log(0.5)))
    assert law.factor(0.001) == law.factor(0.01) == pytest.approx(np.exp(0.3 + 0.15 * np.log(0.01)))
    assert law.factor(7) == law.factor(1.0) == pytest.approx(np.exp(0.3))
    assert law.factor(0) == 1


def test_a_checked_calibration_forecasts_with_its_correction(measured_once: Calibration, found: CriterionCheck) -> None:
    """The figure times the factor, and an interval that is wider, relative to it, than the sampled one alone."""
    law = Correction(intercept=0.4, slope=0.1, smallest=1e-6, largest=10, spread=0.3, removals=9)
    checked = replace(measured_once, check=found.model_copy(update={"correction": law}))
    plain, corrected = plan_by_threshold(measured_once, 0.7).forecast, plan_by_threshold(checked, 0.7).forecast
    assert plain is not None
    assert corrected is not None
    assert (plain.low, plain.high) != (None, None)
    assert plain.factor == 1
    value = plain.nats_per_token
    assert corrected.factor == pytest.approx(law.factor(value))
    assert corrected.nats_per_token == pytest.approx(law.factor(value) * value)
    for end, sampled, sign in ((corrected.low, plain.low, -1), (corrected.high, plain.high, 1)):
        assert end is not None
        assert sampled is not None
        away = np.hypot(np.log(sampled / value), 1.96 * 0.3)
        assert end == pytest.approx(corrected.nats_per_token * np.exp(sign * away))
    exact = replace(checked, check=found.model_copy(update={"correction": law.model_copy(update={"spread": 0.0})}))
    unspread = plan_by_threshold(exact, 0.7).forecast
    assert unspread is not None
    assert unspread.high == pytest.approx((plain.high or 0) * law.factor(value))
    unfitted = replace(measured_once, check=found.model_copy(update={"correction": None}))
    assert plan_by_threshold(unfitted, 0.7).forecast == plain
    keep = plan_by_threshold(checked, 0.7).keep
    assert forecast(checked, keep) == corrected


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A llama's folder."""
    folder = tmp_path_factory.mktemp("check") / "model"
    save_pico(make_pico("llama", layers=2), folder)
    return str(folder)


def calibrated(model: str, rows: Path, output: Path, count: int, **settings: Any) -> Calibration:
    """A calibration on a file of `count` different rows."""
    rows.write_text("".join(f'{{"question": "What is {n}?", "answer": "It is {n * n}."}}\n' for n in range(count)))
    asked = {"model": model, "dataset": rows, "device": "cpu", "output": output}
    return calibrate.calibrate(CalibrateRequest.asked(**asked, **settings))


def texts(encoded: Encoded, loaded: Loaded) -> list[str]:
    """The texts of the rows."""
    return [str(loaded.tokenizer.decode(row)) for row in encoded.rows]


def test_it_is_checked_on_rows_it_did_not_see(model: str, tmp_path: Path) -> None:
    """Of the same file, encoded by the same settings."""
    made = calibrated(model, tmp_path / "rows.jsonl", tmp_path / "out", 12, samples=5, positions="answer")
    loaded = load_model(model, device="cpu")
    task = tasks.load_task(str(tmp_path / "rows.jsonl"))
    seen = texts(tasks.encode(tasks.choose(task, 5, 0), loaded.tokenizer, 320), loaded)
    encoded, unseen = rows_to_check(made, loaded, 3)
    assert unseen
    assert len(encoded.rows) == len(set(texts(encoded, loaded))) == 3
    assert not set(texts(encoded, loaded)) & set(seen)
    assert encoded.starts == tuple(text.index("It is") for text in texts(encoded, loaded))
    encoded, unseen = rows_to_check(made, loaded, 100)
    assert unseen
    assert len(encoded.rows) == 12 - 5


@pytest.mark.parametrize(("count", "samples", "expected"), [(4, 4, 2), (1, 1, 1), (3, 32, 1)])
def test_where_no_others_are_left_it_says_so(
    model: str, tmp_path: Path, count: int, samples: int, expected: int
) -> None:
    """It is checked on rows that it saw but did not choose by; on the only one where there is one."""
    made = calibrated(model, tmp_path / "rows.jsonl", tmp_path / "out", count, samples=samples)
    encoded, unseen = rows_to_check(made, load_model(model, device="cpu"), 6)
    assert not unseen
    assert len(encoded.rows) == expected
    checked = check.check(CheckRequest.asked(calibration=made, heads=3))
    assert checked.check is not None
    assert (checked.check.unseen, checked.check.rows) == (False, expected)


def test_a_check_is_kept_beside_the_record(model: str, tmp_path: Path) -> None:
    """It comes back with the calibration, corrects its forecast, and a second one takes its place."""
    made = calibrated(model, tmp_path / "rows.jsonl", tmp_path / "out", 12, samples=6)
    assert made.check is None
    checked = check.check(CheckRequest.asked(calibration=made, samples=2, heads=4))
    assert checked.check is not None
    again = load_calibration(tmp_path / "out")
    assert again.check == checked.check
    assert len(checked.check.heads) == 4
    assert plan_by_threshold(again, 0.7).forecast == plan_by_threshold(checked, 0.7).forecast
    assert check.check(CheckRequest.asked(calibration=again, samples=1, heads=3)).check != checked.check
    later = load_calibration(tmp_path / "out").check
    assert later is not None
    assert later.rows == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "faithfulness.json",
        "record.json",
        "tensors.safetensors",
    ]


def test_another_model_in_the_same_place_is_refused(tmp_path: Path) -> None:
    """A folder whose weights changed since, and one that is gone."""
    folder = tmp_path / "model"
    save_pico(make_pico("llama", layers=2), folder)
    made = calibrated(str(folder), tmp_path / "rows.jsonl", tmp_path / "out", 3)
    save_pico(make_pico("llama", layers=2, seed=1), folder)
    with pytest.raises(InputError, match=r"model=.*other weights now"):
        check.check(CheckRequest.asked(calibration=made))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="model"):
        check.check(CheckRequest.asked(calibration=made))
