"""Every family × what is removed as one: what is left is the gated original, and takes what was projected."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from slim.core.errors import InputError
from slim.models.load import Loaded
from slim.models.units import UNITS, Keep, whole_model
from slim.planning.build import check_unit
from slim.planning.sizes import size_of
from slim.pruning.trial import masked
from tests.pico import FAMILIES, keeping, save_pico
from tests.surgery import FULL, IDS, WHOLE, Pruned, cached, file_bytes, held, logits

KEEPS: dict[str, Keep] = {
    "head": keeping(WHOLE, (0, 2, 3, 5), (4,), (1, 4)),
    "group": keeping((3, 4, 5), WHOLE, (0, 1, 2), WHOLE),
    "block": keeping((), WHOLE, (), WHOLE),
    "layer": keeping(None, WHOLE, WHOLE, None),
    "all of them": keeping(None, (0, 2, 3, 5), (), (3, 4, 5)),
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
EXTRA = {"qwen2": WINDOWS, "qwen3": WINDOWS}
"""Features of single layers by their number, beyond what the pico models have."""
WHOLE_BLOCKS = ("olmo2",)


@pytest.fixture(scope="module", params=FAMILIES)
def original(
    request: pytest.FixtureRequest, pico: Callable[..., Loaded], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Loaded]:
    """A model of every family with biases, windows and all that its layers differ in."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        yield save_pico(pico(request.param, **EXTRA.get(request.param, {})), folder / "original")


@pytest.mark.parametrize("what", KEEPS)
def test_a_unit_of_a_family(original: Loaded, what: str, tmp_path: Path) -> None:
    """Logits of the original gated by hand and masked; parameters, file, memory and cache as projected."""
    keep, facts, unit = KEEPS[what], original.facts, what if what in UNITS else "head"
    if facts.model_type in WHOLE_BLOCKS and any(0 < len(kept.heads) < facts.heads for kept in keep):
        return refused(original, keep, unit)
    check_unit(unit, facts)
    case = Pruned(original, keep, tmp_path / "pruned", unit)
    before, after = case.plan.before, case.plan.after

    found, plain = logits(case.loaded), logits(original)
    with case.gated_original():
        torch.testing.assert_close(found, logits(original), rtol=0, atol=1e-6)
    with masked(original, keep):
        torch.testing.assert_close(found, logits(original), rtol=0, atol=1e-6)
    assert torch.equal(logits(original), plain)
    assert (found - plain).abs().max() > 0.1

    assert sum(parameter.numel() for parameter in case.loaded.model.parameters()) == after.parameters
    assert after.parameters < before.parameters
    assert file_bytes(case.folder / "model.safetensors") == after.bytes == held(case.loaded)
    assert held(original) == before.bytes
    assert cached(case.loaded) == [
        2 * facts.head_dim * facts.itemsize * 4 * len(IDS) * len({head // facts.group for head in heads})
        for heads in case.stay
        if heads
    ]
    assert sum(cached(case.loaded)) == after.kv_bytes_per_token * 4 * len(IDS)
    assert sum(cached(original)) == before.kv_bytes_per_token * 4 * len(IDS)

    if what == "layer":
        is_stock(case)
    else:
        assert list(case.folder.glob("*.py"))
    return None


def refused(original: Loaded, keep: Keep, unit: Any) -> None:
    """By the choice of the unit and by the projection, with the reason."""
    with pytest.raises(InputError, match=r"'olmo2'.*norms span all heads.*`block`"):
        size_of(original.facts, keep)
    if unit in ("head", "group"):
        with pytest.raises(InputError, match=r"'olmo2'.*norms span all heads.*`block`"):
            check_unit(unit, original.facts)


def is_stock(case: Pruned) -> None:
    """transformers' own class loads it, cached and not, and its config says of each layer what it said before."""
    assert not list(case.folder.glob("*.py"))
    model: Any = AutoModelForCausalLM.from_pretrained(case.folder, trust_remote_code=False, dtype=torch.float64).eval()
    model.set_attn_implementation(case.original.architecture.implementation)
    assert type(model) is type(case.original.model)
    with torch.no_grad():
        assert torch.equal(model(IDS, use_cache=False).logits, logits(case.loaded))
    before = case.original.model.config
    config = json.loads((case.folder / "config.json").read_text())
    assert model.config.num_hidden_layers == 2
    for name in ("layer_types", "no_rope_layers"):
        if (listed := getattr(before, name, None)) is not None:
            assert config[name] == [listed[1], listed[2]]
    if hasattr(before, "max_window_layers"):
        assert config["max_window_layers"] == 1
    assert "per_layer_config" not in config
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    with case.gated_original():
        expected = case.original.model.generate(IDS, use_cache=False, **options)  # type: ignore[operator]
    assert torch.equal(model.generate(IDS, **options), expected)  # type: ignore[operator]


def test_layers_gone_are_counted_by_the_cache(original: Loaded, tmp_path: Path) -> None:
    """All layers but the last: one is left, and it holds the whole cache."""
    case = Pruned(original, keeping(None, None, None, WHOLE), tmp_path / "pruned", "layer")
    assert case.loaded.facts.layers == len(cached(case.loaded)) == 1
    with case.gated_original():
        torch.testing.assert_close(logits(case.loaded), logits(original), rtol=0, atol=1e-6)


def test_a_stock_checkpoint_is_cut_again(original: Loaded, tmp_path: Path) -> None:
    """Removing a layer, then a block, gives what removing both at once gives."""
    once = Pruned(original, keeping(WHOLE, None, WHOLE, WHOLE), tmp_path / "once", "layer")
    twice = Pruned(once.loaded, keeping(WHOLE, (), WHOLE), tmp_path / "twice", "block")
    both = Pruned(original, keeping(WHOLE, None, (), WHOLE), tmp_path / "both")
    torch.testing.assert_close(logits(twice.loaded), logits(both.loaded), rtol=0, atol=1e-9)
    assert whole_model(once.loaded.facts) == FULL[:3]
    assert twice.plan.after == both.plan.after
