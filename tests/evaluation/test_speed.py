"""Timing: who is run when, what is counted, and that nothing is left changed. Never how long it took."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from slim.core.errors import InputError
from slim.evaluation import timing
from slim.evaluation.evaluate import evaluate
from slim.evaluation.record import figures_table, load_evaluation
from slim.evaluation.request import EvaluateRequest
from slim.evaluation.settings import SpeedSettings
from slim.evaluation.speed import (
    Decoding,
    cache_bytes,
    check_speed_settings,
    file_bytes,
    first_token,
    measure_speed,
    tokens,
)
from slim.evaluation.timing import in_turn, interleaved
from slim.models.load import Loaded, load_model
from slim.pruning import checkpoint
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.reporting import Heard

FEW = SpeedSettings(batch_sizes=(1, 3), tokens=12, steps=4, repeats=2)


def test_models_are_run_in_turn() -> None:
    """One run of each at a time, the first of each for warming up."""
    order: list[str] = []
    heard: list[int] = []
    functions = {name: (lambda name=name: order.append(name)) for name in ("one", "two")}
    seconds = in_turn(functions, 3, lambda: heard.append(len(order)))
    assert order == ["one", "two"] * 4
    assert heard == list(range(1, 9))
    assert {name: len(found) for name, found in seconds.items()} == {"one": 3, "two": 3}
    assert interleaved(functions, 1).keys() == {"one", "two"}


def test_decoding_goes_on_after_the_prompt_and_back(pico: Callable[..., Loaded]) -> None:
    """Every call does the same; the cache is counted when it is longest, as keys and values of each layer say."""
    loaded = pico("llama")
    run = Decoding(loaded, tokens(loaded, 3, 12), 4)
    per_token = 2 * 2 * 8 * 8  # keys and values, 2 KV heads of 8 numbers of 8 bytes
    for _ in range(2):
        run()
        assert run.bytes == 4 * 3 * (12 + 4) * per_token
        assert run.cache.get_seq_length() == 12
        assert cache_bytes(run.cache) == 4 * 3 * 12 * per_token


def test_the_first_token_is_the_models_own(pico: Callable[..., Loaded]) -> None:
    """The likeliest after the prompt, as text."""
    loaded = pico("llama")
    ids = torch.tensor([loaded.tokenizer("Hello")["input_ids"]])
    with torch.no_grad():
        expected = loaded.tokenizer.decode(int(loaded.model(ids).logits[0, -1].argmax()))
    assert first_token(loaded, "Hello and more", 2, 5) == expected


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """A model, and one without two blocks."""
    place = tmp_path_factory.mktemp("pace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(place / "home"))
        original = save_pico(make_pico("llama"), place / "original")
        whole = tuple(range(6))
        folder = checkpoint.prune(plan_of(original.facts, keeping((), whole, (), whole)), place / "pruned")
        return {"original": original, "pruned": load_model(str(folder), device="cpu", dtype="float64")}


def test_every_model_has_a_pace_at_every_batch_size(pair: dict[str, Loaded]) -> None:
    """Beside the original's, which is as fast as itself; a removed block has no cache."""
    heard = Heard()
    found = measure_speed(pair, FEW, heard)
    assert heard.steps[-1] == (3 * 2 * 2 * 3, 3 * 2 * 2 * 3, "Timing")
    assert [one.rows for one in found["original"]] == [one.rows for one in found["pruned"]] == [1, 3]
    for original, pruned in zip(found["original"], found["pruned"], strict=True):
        for timed in (original.prefill, original.decode, original.first_token):
            assert (timed.times, timed.low, timed.high) == (1, 1, 1)
            assert timed.value > 0
        for timed in (pruned.prefill, pruned.decode, pruned.first_token):
            assert timed.low <= timed.times <= timed.high
        assert pruned.cache_bytes * 2 == original.cache_bytes == original.rows * 16 * 4 * 256


def test_tokens_are_of_all_rows_together(pair: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which every run takes two seconds."""
    clock = count(0, 2)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    for one in measure_speed(pair, FEW)["pruned"]:
        assert one.prefill.value == one.rows * 12 / 2
        assert one.decode.value == one.rows * 4 / 2
        assert one.first_token.value == 2
        assert (one.decode.times, one.decode.low, one.decode.high) == (1, 1, 1)


def test_prompts_a_model_cannot_read_are_refused(pair: dict[str, Loaded]) -> None:
    """And settings that time nothing."""
    with pytest.raises(InputError, match=r"speed_tokens=1020, speed_steps=5: .* reads at most 1,024 tokens"):
        check_speed_settings(pair, SpeedSettings(tokens=1020, steps=5))
    check_speed_settings(pair, SpeedSettings(tokens=1020, steps=4))
    for wrong in ({"batch_sizes": ()}, {"batch_sizes": (0,)}, {"repeats": 0}, {"steps": 0}):
        with pytest.raises(ValidationError):
            SpeedSettings.model_validate(wrong)


def test_speed_alone_is_an_evaluation(pair: dict[str, Loaded], tmp_path: Path) -> None:
    """Without rows of a dataset; its figures are in the record and the CSV.

    Also what a model takes: the files as they lie on disk; memory in a process of its own, at least the weights.
    """
    few = {"speed": True, "speed_rows": [1, 2], "speed_tokens": 8, "speed_steps": 2, "repeats": 1}
    asked = {"checkpoints": [pair["pruned"].facts.source], "device": "cpu", "output": tmp_path / "out"}
    done = evaluate(EvaluateRequest.asked(**asked, **few))
    assert done.facts.dataset is None
    assert done.facts.measures == {}
    pruned = done.facts.models[1]
    assert [one.rows for one in pruned.pace] == [1, 2]
    taken = [one.footprint for one in done.facts.models if one.footprint is not None]
    for one, found in zip(pair.values(), taken, strict=True):
        folder = Path(one.facts.source)
        assert found.file_bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert found.peak_bytes >= sum(parameter.nbytes for parameter in one.model.parameters())
    assert taken[1].file_bytes < taken[0].file_bytes == file_bytes(pair["original"].facts.source)
    assert (taken[0].load.times, taken[0].load.low) == (1, 1)
    again = load_evaluation(tmp_path / "out")
    assert again.facts == done.facts
    assert again.table.empty
    lines = figures_table(done.facts)
    decode = lines[(lines["model"] == "pruned") & (lines["measure"] == "decode") & (lines["rows"] == 2)]
    assert decode["value"].item() == pytest.approx(pruned.pace[1].decode.value)
    assert set(lines["measure"]) == {
        "parameters",
        "prefill",
        "decode",
        "first_token",
        "cache",
        "file",
        "peak_memory",
        "load",
    }
    assert json.loads((tmp_path / "out" / "record.json").read_text())["kind"] == "evaluation"
