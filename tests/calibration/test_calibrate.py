"""A calibration from end to end: memory, values that are not finite, data with corners, and the estimate before."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slim.calibration import calibrate, passes
from slim.calibration.facts import CalibrationSettings
from slim.calibration.record import Calibration, load_calibration, save_calibration
from slim.calibration.request import CalibrateRequest
from slim.core.cache import open_cache
from slim.core.errors import InputError, SlimError
from slim.data.batch_runner import out_of_memory
from slim.models.load import Loaded, load_model
from slim.models.probe import LayerView
from slim.models.units import UnitName
from slim.planning.threshold import plan_by_threshold
from tests import reference
from tests.pico import make_pico, random_rows, save_pico
from tests.reference import measured
from tests.reporting import Heard

Pico = Callable[..., Loaded]
ROWS = random_rows((9, 12, 7, 10, 20, 5, 8, 11))
NO_ROOM_ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "103079215104 bytes. Error code 12 (Cannot allocate memory)"
)
NO_ROOM = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError(NO_ROOM_ON_CPU),
    "python": MemoryError(),
}


@contextmanager
def small_memory(loaded: Loaded, fits: Callable[[int, int], bool], error: BaseException) -> Iterator[list[int]]:
    """Forwards of B rows of T tokens that do not fit fail in their third layer; the sizes of those that do."""
    done: list[int] = []

    def third_layer(module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not fits(*hidden.shape[:2]):
            raise error
        done.append(len(hidden))

    handle = loaded.model.model.layers[2].self_attn.register_forward_hook(third_layer)
    try:
        yield done
    finally:
        handle.remove()


def assert_close(one: Calibration, other: Calibration) -> None:
    """All figures and the sketch, up to what batching may change."""
    for name, scores in other.metrics.items():
        for level, expected in scores.items():
            np.testing.assert_allclose(one.metrics[name][level], expected, rtol=1e-6, atol=1e-9, err_msg=name)
    assert one.sketch is not None
    assert other.sketch is not None
    np.testing.assert_allclose(one.sketch.scores, other.sketch.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("error", NO_ROOM.values(), ids=NO_ROOM)
@pytest.mark.parametrize(("kl", "most"), [("fisher", 1), ("fisher", 3), ("exact", 1), ("exact", 2)])
def test_what_does_not_fit_is_halved(pico: Pico, error: BaseException, kl: str, most: int) -> None:
    """The figures are those of a run with room, the notes say what happened, and what fits goes on together."""
    loaded = pico("llama")
    expected = measured(loaded, ROWS, kl=kl, batch_size=8)
    assert expected.facts.notes == ()
    with small_memory(loaded, lambda rows, tokens: rows <= most, error) as done:
        found = measured(loaded, ROWS, kl=kl, batch_size=8)
    assert_close(found, expected)
    assert max(done) == {1: 1, 2: 2, 3: 2}[most]
    halves = {1: (8, 4, 2), 2: (8, 4), 3: (8, 4)}[most]
    assert found.facts.notes[: len(halves)] == tuple(
        f"{size} rows at a time did not fit in memory, so it went on with {size // 2}" for size in halves
    )
    assert measured(loaded, ROWS, kl=kl, batch_size=8).facts.notes == ()


def test_a_row_that_does_not_fit_alone_is_named(pico: Pico) -> None:
    """One sentence with its length and what to do; what was finished before it stays known."""
    loaded = pico("llama")
    settings, encoded = CalibrationSettings(batch_size=4), calibrate.tasks.Encoded(ROWS, 0)
    with open_cache() as cache:
        with (
            small_memory(loaded, lambda rows, tokens: rows * tokens <= 12, NO_ROOM["gpu"]),
            pytest.raises(SlimError, match=r"single row of 20 tokens: choose a smaller max_length") as caught,
        ):
            calibrate.measure(loaded, encoded, reference.TASK, settings, cache=cache)
        assert "\n" not in str(caught.value)
        assert not isinstance(caught.value, InputError)
        assert len(list(cache)) == 2 * (len(ROWS) - 1), "statistics and scores of each"
        calls: list[int] = []
        handle = loaded.model.register_forward_pre_hook(lambda module, args: calls.append(1))
        calibrate.measure(loaded, encoded, reference.TASK, settings.model_copy(update={"kl": "none"}), cache=cache)
        handle.remove()
    assert len(calls) == 1


def test_other_errors_are_not_taken_for_a_full_memory(pico: Pico) -> None:
    """They come through as they are, at once."""
    loaded, error = pico("llama"), RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)")
    with small_memory(loaded, lambda rows, tokens: False, error), pytest.raises(RuntimeError) as caught:
        measured(loaded, ROWS, batch_size=8)
    assert caught.value is error
    assert not out_of_memory(error)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        *((error, True) for error in NO_ROOM.values()),
        (torch.OutOfMemoryError("Allocation on device"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)"), True),
        (RuntimeError("XPU out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("a library's words", "cuda runtime error (2) : out of memory"), True),
        (OSError("not enough memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError(ValueError("wrapped")), False),
        (RuntimeError(7), False),
        (RuntimeError(), False),
        (KeyError("memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error: BaseException, memory: bool) -> None:
    """Every device's own words, whatever kind of error brings them; an error without words is another's."""
    assert out_of_memory(error) == memory


WEIGHTS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "input_layernorm", "mlp.down_proj")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_activations_that_are_no_numbers_are_traced_to_their_layer(weight: str, value: float) -> None:
    """A broken weight of layer 2: its layer, part and a row are named, with what to do."""
    loaded = make_pico("llama", layers=4)
    with torch.no_grad():
        loaded.model.model.layers[2].get_submodule(weight).weight.view(-1)[3] = value
    part = "MLP" if "mlp" in weight else "attention"
    with pytest.raises(SlimError, match=rf"the {part} of layer 2, on the row of 5 tokens") as caught:
        measured(loaded, ROWS, batch_size=3)
    assert str(ROWS[5].tolist()[:3])[:-1] in str(caught.value)
    assert "float32" in str(caught.value)


def test_the_row_that_breaks_it_is_named() -> None:
    """One token's embedding is infinite: of four rows in a batch the one that holds it."""
    loaded = make_pico("llama", layers=2)
    rows = [row.clone().clamp_max(200) for row in ROWS[:4]]
    rows[3][6] = 255
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight[255] = math.inf
    with pytest.raises(SlimError, match=r"the embeddings, on the row of 10 tokens") as caught:
        measured(loaded, rows, batch_size=4)
    assert str(rows[3].tolist()[:8]) in str(caught.value)
    measured(loaded, rows[:3], batch_size=4, kl="none")


def test_padding_may_be_anything() -> None:
    """A value that is not finite at a place without a token says nothing of the model."""
    (batch,) = calibrate.tasks.batches(calibrate.tasks.Encoded((ROWS[0], ROWS[2]), 0), 2)
    residual = torch.ones(2, 9, 3).masked_fill(~batch.valid[..., None], math.nan)
    empty = torch.zeros(0)
    watched = passes._Finite()
    watched.update(LayerView(0, batch.valid, residual, empty, empty, empty, residual))
    watched.check(batch)
    watched.update(LayerView(0, torch.ones_like(batch.valid), residual, empty, empty, empty, residual))
    with pytest.raises(SlimError, match="the embeddings, on the row of 7 tokens"):
        watched.check(batch)


def test_a_broken_last_layer_is_noticed() -> None:
    """Nothing watches what comes after the last attention block; the predictions tell."""
    loaded = make_pico("llama", layers=2)
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(SlimError, match="NaN or infinite numbers in its predictions, on the row of 9 tokens"):
        measured(loaded, ROWS[:2])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kl", ["fisher", "exact"])
def test_rows_that_predict_nothing_change_nothing(pico: Pico, side: str, kl: str) -> None:
    """A row of one token and one of padding alone, beside others: no NaN, and the loss figures stay."""
    loaded = pico("llama", layers=2)
    rows = (ROWS[0], ROWS[1][:1], ROWS[2], ROWS[3][:0])
    found = measured(loaded, rows, side, kl=kl, batch_size=4)
    expected = measured(loaded, rows[:1] + rows[2:3], side, kl=kl, batch_size=4)
    for name in ("variance", "entropy", "entropy_norm", "kl_output", "magnitude"):
        for level, values in found.metrics[name].items():
            assert np.isfinite(values).all(), (name, level)
    assert found.sketch is not None
    assert expected.sketch is not None
    tokens = found.sketch.tokens.tolist()
    assert tokens == [8, 0, 6, 0]
    np.testing.assert_allclose(found.sketch.single().value, expected.sketch.single().value, rtol=1e-5)
    for level in ("head", "group", "block"):
        both = measured(loaded, (rows[0], rows[3], rows[2], rows[3]), side, kl=kl, batch_size=4)
        np.testing.assert_allclose(
            found.metrics["kl_output"][level], both.metrics["kl_output"][level], rtol=1e-5, atol=1e-9
        )


def test_one_row_is_a_calibration(pico: Pico, tmp_path: Path) -> None:
    """Every figure is there and every interval unknown, on disk too; a plan forecasts on the row that chose it."""
    loaded = pico("llama")
    found = measured(loaded, ROWS[:1])
    for name, levels in found.estimates.items():
        for level, estimate in levels.items():
            assert np.isfinite(estimate.value).all(), (name, level)
            assert np.isnan(estimate.low).all(), (name, level)
            assert np.isnan(estimate.high).all(), (name, level)
    again = load_calibration(save_calibration(found, tmp_path / "one").path or tmp_path)
    made = plan_by_threshold(again, 0.7)
    assert made.forecast is not None
    assert (made.forecast.low, made.forecast.high, made.forecast.sequences) == (None, None, 1)
    assert "no interval" in str(made.forecast)
    assert type(made).model_validate_json(made.model_dump_json()) == made


def test_the_weights_alone_tell_their_size(pico: Pico) -> None:
    """Root mean square of the output projection's columns of each head, its group and its block; no rows, no ends."""
    for family in ("llama", "gpt2", "granite"):
        loaded = pico(family)
        facts, found = loaded.facts, measured(loaded, ROWS[:2], kl="none")
        scores = found.metrics["magnitude"]
        for index, layer in enumerate(reference.layers_of(loaded.model)):
            slices = reference.output_weight(loaded.model, layer).unflatten(1, (facts.heads, -1)).square()  # (E, H, D)
            sizes: dict[UnitName, int] = {"head": 1, "group": facts.group, "block": facts.heads}
            for level, size in sizes.items():
                expected = [float(part.mean().sqrt()) for part in slices.split(size, dim=1)]
                np.testing.assert_allclose(np.atleast_1d(scores[level][index]), expected, rtol=1e-5)
        told = found.facts.metrics["magnitude"]
        assert (told.rows, told.positions, told.high_is_prunable) == (0, 0, False)
        assert np.isnan(found.estimates["magnitude"]["head"].low).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A llama's folder; its tokenizer knows neither padding nor a chat."""
    folder = tmp_path_factory.mktemp("calibrate") / "model"
    loaded = make_pico("llama", layers=2)
    loaded.tokenizer.pad_token = None
    save_pico(loaded, folder)
    return str(folder)


def test_a_tokenizer_without_padding_or_chat_will_do(model: str, tmp_path: Path) -> None:
    """From a folder and a file to a saved record, and the estimate is reported before the work."""
    loaded = load_model(model, device="cpu")
    assert loaded.tokenizer.pad_token is None
    assert not loaded.tokenizer.chat_template
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "What?", "answer": "This and that."}\n{"question": "Who then?", "answer": "She."}\n')

    class InOrder(Heard):
        def progress(self, done: float, total: float, message: str) -> None:
            super().progress(done, total, message)
            if message == "Watching every head and sketching the loss":
                assert self.estimates

    heard = InOrder()
    asked = {"model": model, "dataset": file, "device": "cpu", "positions": "answer", "output": tmp_path / "out"}
    found = calibrate.calibrate(CalibrateRequest.asked(**asked), heard)
    assert "Watching every head and sketching the loss" in heard.messages
    (estimate,) = heard.estimates
    assert estimate.startswith(f"2 rows, {found.facts.dataset.tokens} tokens: about ")
    assert found.facts.metrics["kl_output"].rows == 1
    assert found.sketch is not None
    assert sorted(found.sketch.tokens.tolist()) == [len("She.") + 1, len("This and that.") + 1]  # with the end token
    assert load_calibration(tmp_path / "out").facts == found.facts


def test_rows_that_predict_nothing_are_refused(model: str, tmp_path: Path) -> None:
    """A file of single letters."""
    (tmp_path / "rows.txt").write_text("a\n")
    with pytest.raises(InputError, match="it has no two tokens"):
        calibrate.calibrate(CalibrateRequest.asked(model=model, dataset=tmp_path / "rows.txt", device="cpu"))


@pytest.mark.parametrize(("name", "value"), [("draws", 0), ("kl", "guess"), ("positions", "some"), ("seed", -1)])
def test_settings_that_cannot_be_are_named(name: str, value: Any) -> None:
    """The setting and its value, as one sentence."""
    with pytest.raises(InputError, match=f"{name}={value!r}"):
        CalibrateRequest.asked(**{name: value})
