"""One head close up: its attention against transformers' own, its figures, and what removing it costs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slim.calibration import calibrate, check, head_detail, scores
from slim.calibration.check_record import Correction
from slim.calibration.head_scores import costs, head_scores
from slim.calibration.record import Calibration
from slim.calibration.reload import calibrated_rows, check_model
from slim.calibration.request import CalibrateRequest
from slim.core.errors import InputError
from slim.models.load import Loaded
from tests.pico import FAMILIES, make_pico, random_rows, save_pico
from tests.reference import measured, see

LAYERS, HEADS = 4, 6


@pytest.fixture(scope="module")
def calibration(pico: Callable[..., Loaded]) -> Calibration:
    """Of a llama with 4 layers of 6 heads in 2 groups."""
    return measured(pico("llama"), random_rows((9, 12, 7, 10)))


@pytest.fixture(scope="module")
def checked(calibration: Calibration, pico: Callable[..., Loaded]) -> Calibration:
    """The same, checked on two rows and seven heads."""
    from slim.data.tasks import Encoded

    rows = Encoded(random_rows((11, 8), seed=5), 0)
    return replace(calibration, check=check.measure_check(calibration, pico("llama"), rows, heads=7))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_that_of_the_model(family: str) -> None:
    """Every head of two layers against the maps that transformers gives; what cannot be seen is NaN, not 0."""
    loaded, row = make_pico(family), random_rows((11,))[0]
    maps = see(loaded, row).attention
    for layer in (0, 3):
        for head in range(loaded.facts.heads):
            found = head_detail.attention(loaded, row, layer, head)
            expected = maps[layer][head].numpy()
            seen = expected > 0
            np.testing.assert_array_equal(np.isfinite(found), seen)
            np.testing.assert_allclose(found[seen], expected[seen], atol=1e-5)  # some families round it


def test_looking_changes_nothing() -> None:
    """The same predictions before and after, and the attention it was loaded with."""
    loaded, row = make_pico("qwen3"), random_rows((9,))[0][None]
    before, implementation = loaded.model(row).logits, loaded.model.config._attn_implementation
    head_detail.attention(loaded, row[0], 2, 1)
    torch.testing.assert_close(loaded.model(row).logits, before, rtol=0, atol=0)
    assert loaded.model.config._attn_implementation == implementation


def test_only_the_first_tokens_of_a_long_row_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """And these look where they look in the whole row."""
    loaded, row = make_pico("llama"), random_rows((20,))[0]
    whole = head_detail.attention(loaded, row, 1, 4)
    monkeypatch.setattr(head_detail, "LONGEST", 8)
    np.testing.assert_allclose(head_detail.attention(loaded, row, 1, 4), whole[:8, :8], atol=1e-6)


def test_a_sink_takes_its_share() -> None:
    """One more logit in the denominator that no key has."""
    watch = head_detail._Watch(make_pico("llama"), 0, 4)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 6, 5, 8, generator=generator), torch.randn(1, 2, 5, 8, generator=generator)
    sinks = torch.linspace(-1, 1, 6)
    found = watch._softmax(q, k, None, {"scaling": 0.5, "s_aux": sinks}).numpy()
    for i in range(5):
        odds = np.exp([0.5 * float(q[0, 4, i] @ k[0, 1, j]) for j in range(i + 1)])
        np.testing.assert_allclose(found[i, : i + 1], odds / (odds.sum() + np.exp(float(sinks[4]))), rtol=1e-5)


def triangle(length: int, seed: int = 0) -> np.ndarray:
    """A causal attention map."""
    weights = np.tril(np.random.default_rng(seed).random((length, length))).astype(np.float32)
    weights /= weights.sum(1, keepdims=True)
    weights[np.triu_indices(length, 1)] = np.nan
    return weights


def test_what_a_token_receives() -> None:
    """From one query its line; on average the mean of its column over the queries that see it."""
    weights = triangle(7)
    np.testing.assert_array_equal(head_detail.received(weights, 3)[4:], 0)
    np.testing.assert_array_equal(head_detail.received(weights, 3)[:4], weights[3, :4])
    for key in range(7):
        assert head_detail.received(weights)[key] == pytest.approx(weights[key:, key].mean())


@pytest.mark.parametrize(("length", "most"), [(7, 10), (7, 3), (12, 5), (20, 4)])
def test_a_coarse_map_keeps_the_weight(length: int, most: int) -> None:
    """A cell is the weight of its keys, averaged over its queries that see one of them; above the diagonal is NaN."""
    weights = triangle(length)
    cells, side = head_detail.coarse(weights, most)
    assert side == -(-length // most)
    assert len(cells) <= most
    for i in range(len(cells)):
        for j in range(len(cells)):
            part = weights[i * side : (i + 1) * side, j * side : (j + 1) * side]
            lines = [np.nansum(line) for line in part if np.isfinite(line).any()]
            if lines:
                assert cells[i, j] == pytest.approx(np.mean(lines), rel=1e-5)
            else:
                assert np.isnan(cells[i, j])
                assert j > i


def test_every_figure_of_a_head(checked: Calibration) -> None:
    """The composite by the given weights, each metric with its interval, the other rows' forecast, the damage."""
    weights = {"kl_output": 1.0, "entropy": 0.5}
    found = head_scores(checked, weights)
    metrics = [name for name, levels in checked.estimates.items() if "head" in levels]
    assert list(found) == ["composite", *metrics, "sketch", "damage"]
    np.testing.assert_array_equal(found["composite"].values, scores.composite(checked, weights, "head"))
    for name in metrics:
        assert found[name].estimate is checked.estimates[name]["head"]
        assert found[name].unit == checked.facts.metrics[name].unit
    assert checked.sketch is not None
    assert checked.check is not None
    unseen = [row for row in range(len(checked.sketch.scores)) if checked.sketch.sequence[row] % 2 == 1]
    squares = np.square(checked.sketch.scores[unseen].astype(float)).sum(0)[:, :HEADS]
    np.testing.assert_allclose(found["sketch"].values, 0.5 * squares / checked.sketch.tokens[1::2].sum())
    damage = found["damage"].values
    assert np.isfinite(damage).sum() == 7
    assert {head: damage[head] for head in checked.check.heads} == dict(
        zip(checked.check.heads, checked.check.damage, strict=True)
    )


def test_without_kl_and_check_there_are_fewer(pico: Callable[..., Loaded]) -> None:
    """No forecast, no damage, no costs; the rest is there."""
    bare = measured(pico("llama"), random_rows((9, 12)), kl="none")
    found = head_scores(bare, scores.default_weights(bare))
    assert not {"kl_output", "sketch", "damage"} & set(found)
    assert {"composite", "entropy", "variance"} <= set(found)
    assert costs(bare, 0, 0) == []


def test_places_say_who_goes_first(checked: Calibration) -> None:
    """1 is first to go: the cheapest, the most diffuse, the highest score. Only heads that were measured count."""
    found = head_scores(checked, {"kl_output": 1.0})
    for name, first in (("kl_output", np.argmin), ("entropy", np.argmax), ("composite", np.argmax)):
        layer, head = np.unravel_index(first(found[name].values), (LAYERS, HEADS))
        assert found[name].place(int(layer), int(head)) == (1, LAYERS * HEADS)
    places = sorted(found["variance"].place(n // HEADS, n % HEADS) or (0, 0) for n in range(LAYERS * HEADS))
    assert places == [(n + 1, LAYERS * HEADS) for n in range(LAYERS * HEADS)]
    assert checked.check is not None
    cheapest = checked.check.heads[int(np.argmin(checked.check.damage))]
    assert found["damage"].place(*cheapest) == (1, 7)
    others = [
        (n // HEADS, n % HEADS) for n in range(LAYERS * HEADS) if (n // HEADS, n % HEADS) not in checked.check.heads
    ]
    assert found["damage"].place(*others[0]) is None


def test_what_a_head_its_group_and_its_block_cost(calibration: Calibration) -> None:
    """The forecasts are those of the unseen rows, the block is measured."""
    head, group, block = costs(calibration, 2, 4)
    assert (head.what, group.what, block.what) == (
        "The head alone",
        "Its KV group, heads 3 to 5",
        "Its attention block",
    )
    assert [cost.measured for cost in (head, group, block)] == [False, False, True]
    assert calibration.sketch is not None
    unseen = calibration.sketch.fold(1)
    columns = unseen.scores[:, 2].astype(float)
    assert head.value == pytest.approx(0.5 * (columns[:, 4] ** 2).sum() / unseen.tokens.sum(), rel=1e-5)
    joint = columns[:, 3:6].sum(1)
    assert group.value == pytest.approx(0.5 * (joint**2).sum() / unseen.tokens.sum(), rel=1e-5)
    assert block.value == calibration.estimates["kl_output"]["block"].value[2]
    for cost in (head, group, block):
        assert cost.low is not None
        assert cost.high is not None
        assert cost.low <= cost.value <= cost.high


def test_a_check_corrects_the_forecast_and_adds_what_was_measured(checked: Calibration) -> None:
    """Only for the heads that were left out alone."""
    assert checked.check is not None
    correction = Correction(intercept=0.7, slope=0.0, smallest=1e-4, largest=1.0, spread=0.0, removals=9)
    corrected = replace(checked, check=checked.check.model_copy(update={"correction": correction}))
    place = checked.check.heads[3]
    plain = costs(replace(checked, check=None), *place)
    forecast, truth, *_ = costs(corrected, *place)
    assert forecast.factor == pytest.approx(np.exp(0.7))
    assert forecast.value == pytest.approx(np.exp(0.7) * plain[0].value)
    assert truth.measured
    assert truth.value == checked.check.damage[3]
    assert truth.low is None
    left_alone = next((n // HEADS, n % HEADS) for n in range(24) if (n // HEADS, n % HEADS) not in checked.check.heads)
    assert [cost.what for cost in costs(corrected, *left_alone)].count("The head alone") == 1


def test_one_row_has_no_interval(pico: Callable[..., Loaded]) -> None:
    """The figures are there, their ends are not."""
    alone = measured(pico("llama", kv_heads=6), random_rows((9,)))
    head, block = costs(alone, 0, 0)
    assert (head.low, head.high, block.low, block.high) == (None, None, None, None)
    assert head.value > 0


@pytest.fixture
def on_disk(tmp_path: Path) -> tuple[Calibration, Loaded, Path]:
    """A calibration of a model folder on a text file, as the commands make it."""
    loaded = save_pico(make_pico("llama", dtype=torch.float32), tmp_path / "model")
    text = tmp_path / "prose.txt"
    text.write_text("\n".join(f"Line {n} says that {n} and {n} is {2 * n}." for n in range(30)))
    request = CalibrateRequest.asked(model=tmp_path / "model", dataset=text, samples=5, max_length=24, seed=3)
    return calibrate.calibrate(request), loaded, text


def test_the_rows_are_those_that_were_measured(on_disk: tuple[Calibration, Loaded, Path]) -> None:
    """Drawn and cut alike; a token's pieces are the row's text."""
    calibration, loaded, text = on_disk
    encoded = calibrated_rows(calibration, loaded)
    assert len(encoded.rows) == 5
    assert encoded.tokens == calibration.facts.dataset.tokens
    whole = text.read_text()
    for row in encoded.rows:
        assert len(row) == 24
        said = "".join(head_detail.pieces(loaded, row)).replace("<bos>", "")
        assert said in whole


def test_rows_that_changed_are_refused(on_disk: tuple[Calibration, Loaded, Path]) -> None:
    """The data or the model is another one now: the message says which."""
    calibration, loaded, text = on_disk
    with pytest.raises(InputError, match=r"model=.*other weights now"):
        check_model(calibration, replace(loaded, facts=loaded.facts.model_copy(update={"fingerprint": "x"})))
    text.write_text("short\n" * 40)
    with pytest.raises(InputError, match=r"dataset=.*other rows now"):
        calibrated_rows(calibration, loaded)
    text.unlink()
    with pytest.raises(InputError, match="was not found"):
        calibrated_rows(calibration, loaded)
