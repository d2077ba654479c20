"""Surgery: what is left computes exactly what the original computes with the same heads gated and blocks passed by."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from slim.core.errors import InputError
from slim.models.load import Loaded
from slim.models.original import PLAN_FILE
from slim.models.probe import Probe
from slim.models.units import Keep, whole_model
from slim.planning.files import load_plan
from slim.planning.record import Plan
from slim.planning.slicing import MODELING_FILE
from slim.pruning.checkpoint import prune
from tests import reference
from tests.pico import FAMILIES, keeping, plan_of, save_pico
from tests.surgery import FULL, IDS, WHOLE, Pruned, cached, file_bytes, held, logits

GROUPED = keeping((), (0, 2, 3, 5), (3, 4, 5), WHOLE)
FREE = keeping((), (0, 2, 5), (4,), (0, 1, 2, 3, 4))
BLOCKS = keeping((), WHOLE, (), WHOLE)
LAYERS = keeping(None, (), (0, 2, 3, 5), (3, 4, 5))
CASES = {
    "llama": ("llama", 2, {}, GROUPED),
    "llama-mha": ("llama", 6, {}, FREE),
    "llama-bias": ("llama", 2, {"attention_bias": True}, GROUPED),
    "llama-tied": ("llama", 2, {"tie_word_embeddings": True}, GROUPED),
    "mistral": ("mistral", 2, {"sliding_window": 5}, GROUPED),
    "mistral-mha": ("mistral", 6, {}, FREE),
    "qwen2": ("qwen2", 2, {}, GROUPED),
    "qwen2-mha": ("qwen2", 6, {}, FREE),
    "qwen3": ("qwen3", 2, {}, GROUPED),
    "qwen3-mha": ("qwen3", 6, {}, FREE),
    "smollm3": ("smollm3", 2, {}, GROUPED),
    "starcoder2": ("starcoder2", 2, {}, GROUPED),
    "granite": ("granite", 2, {}, GROUPED),
    "gemma2": ("gemma2", 2, {}, GROUPED),
    "gemma2-full": ("gemma2", 2, {}, keeping(WHOLE, (), (3, 4, 5), ())),
    "gemma3_text": ("gemma3_text", 2, {}, GROUPED),
    "gemma3_text-full": ("gemma3_text", 2, {}, keeping((), (0, 2, 3, 5), (), WHOLE)),
    "olmo2": ("olmo2", 2, {}, BLOCKS),
    "phi3": ("phi3", 2, {}, GROUPED),
    "phi3-mha": ("phi3", 6, {}, FREE),
    "gpt2": ("gpt2", 6, {}, FREE),
    "gpt_neox": ("gpt_neox", 6, {}, FREE),
    "gpt_neox-serial": ("gpt_neox", 6, {"use_parallel_residual": False, "attention_bias": False}, FREE),
    "opt": ("opt", 6, {}, FREE),
    "llama-layers": ("llama", 2, {}, LAYERS),
    "smollm3-layers": ("smollm3", 2, {}, LAYERS),
    "gemma3_text-layers": ("gemma3_text", 2, {}, LAYERS),
    "gpt2-layers": ("gpt2", 6, {}, LAYERS),
}
NORMS = {
    "gemma2": ("input_layernorm", "post_attention_layernorm"),
    "gemma3_text": ("input_layernorm", "post_attention_layernorm"),
    "olmo2": ("post_attention_layernorm",),
    "gpt2": ("ln_1",),
    "opt": ("self_attn_layer_norm",),
}
"""The norms of a layer that only its attention needs; the others have input_layernorm."""


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def case(
    request: pytest.FixtureRequest, pico: Callable[..., Loaded], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pruned]:
    """One pruned model of every family, with and without grouped heads."""
    family, kv_heads, extra, keep = request.param
    place = tmp_path_factory.mktemp("prune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(place / "workspace"))
        original = save_pico(pico(family, kv_heads=kv_heads, **extra), place / "original")
        yield Pruned(original, keep, place / "pruned")


def test_pruned_is_gated(case: Pruned) -> None:
    """Heads and whole blocks together, layer 0 among them; the plan changes the logits a lot."""
    with case.gated_original():
        expected = logits(case.original)
    torch.testing.assert_close(logits(case.loaded), expected, rtol=0, atol=1e-6)
    assert (expected - logits(case.original)).abs().max() > 0.1


def test_sizes_are_the_projected_ones(case: Pruned) -> None:
    """Parameters in memory and on disk, the file but for its header, and the KV cache of a real forward."""
    after, file = case.plan.after, case.folder / "model.safetensors"
    stored = load_file(file)
    assert sum(tensor.numel() for tensor in stored.values()) == after.parameters
    assert sum(parameter.numel() for parameter in case.loaded.model.parameters()) == after.parameters
    assert file_bytes(file) == after.bytes == held(case.loaded) < held(case.original)
    assert sum(cached(case.loaded)) == after.kv_bytes_per_token * 4 * len(IDS)
    assert len(cached(case.loaded)) == sum(bool(heads) for heads in case.stay)


def test_a_block_goes_with_all_that_only_it_needs(case: Pruned) -> None:
    """Its projections and norms; a layer that stays keeps everything else."""
    model = case.original.model
    gone = (reference.places_of(model).attention, *NORMS.get(model.config.model_type, ("input_layernorm",)))
    owner = next(name for name, module in model.named_modules() if module is reference.layers_of(model))
    stored = {name: tensor for name, tensor in load_file(case.folder / "model.safetensors").items() if tensor.numel()}
    for new, heads in enumerate(case.stay):
        layer = [at for at, kept in enumerate(case.keep) if kept is not None][new]
        parts = [
            {name.removeprefix(f"{owner}.{at}.") for name in names if name.startswith(f"{owner}.{at}.")}
            for at, names in ((layer, dict(model.named_parameters())), (new, stored))
        ]
        assert parts[1] == {part for part in parts[0] if heads or not part.startswith(tuple(f"{at}." for at in gone))}


def rounding(case: Pruned) -> float:
    """How far transformers' own attention is off: where scores are soft-capped it is eager, with a float32 softmax."""
    return 1e-4 if case.original.model.config.model_type == "gemma2" else 0


def test_the_folder_loads_with_its_own_class(case: Pruned) -> None:
    """transformers with trust_remote_code gives the same logits; without it the shapes do not fit."""
    remote = AutoModelForCausalLM.from_pretrained(case.folder, trust_remote_code=True, dtype=torch.float64).eval()
    assert type(remote).__module__.startswith("transformers_modules")
    with torch.no_grad():
        found = remote(IDS, use_cache=False).logits
    torch.testing.assert_close(found, logits(case.loaded), rtol=0, atol=rounding(case))
    assert case.folder.joinpath(MODELING_FILE).is_file()
    assert load_plan(case.folder / PLAN_FILE) == case.plan
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(case.folder, trust_remote_code=False)


@pytest.mark.parametrize("given", ["nothing", "DynamicCache()", "DynamicCache(config)"])
def test_a_forward_in_two_pieces_is_one(case: Pruned, given: str) -> None:
    """With a cache and no position_ids, although layer 0 has no cache to read the length from."""
    model = case.loaded.model
    caches = {"DynamicCache()": DynamicCache, "DynamicCache(config)": lambda: DynamicCache(config=model.config)}
    cache = caches[given]() if given in caches else None
    with torch.no_grad():
        first = model(IDS[:, :9], cache=cache, use_cache=True)
        second = model(IDS[:, 9:], cache=first.cache, use_cache=True)
    together = torch.cat([first.logits, second.logits], 1)
    torch.testing.assert_close(together, logits(case.loaded), rtol=0, atol=1e-6)


def left_padded() -> dict[str, Tensor]:
    """Two rows of which the first has five positions of padding."""
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    return {"input_ids": IDS.masked_fill(mask == 0, 0), "attention_mask": mask}


def test_a_left_padded_batch_agrees(case: Pruned) -> None:
    """With the gated original, and with the short row alone."""
    batch = left_padded()
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        found = case.loaded.model(**batch, position_ids=positions).logits
        with case.gated_original():
            expected = case.original.model(**batch, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:1, 5:], logits(case.loaded, IDS[:1, 5:]), rtol=0, atol=1e-6)


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({"do_sample": False}, {}),
    "static": ({"do_sample": False}, {"cache_implementation": "static"}),
    "uncached": ({"do_sample": False}, {"use_cache": False}),
    "beams": ({"do_sample": False, "num_beams": 3}, {}),
    "sampling": ({"do_sample": True, "top_k": 50, "temperature": 1.5}, {}),
}
"""Options of generation, and of the cache of keys and values."""


@pytest.mark.parametrize("way", WAYS)
def test_generating_is_that_of_the_gated_original(case: Pruned, way: str) -> None:
    """Twelve tokens after a left-padded batch, whatever keeps the keys and values; the original keeps none."""
    batch, (asked, cache) = left_padded(), WAYS[way]
    torch.manual_seed(1)
    found = case.loaded.model.generate(**batch, max_new_tokens=12, min_new_tokens=12, **asked, **cache)  # type: ignore[operator]
    with case.gated_original():
        torch.manual_seed(1)
        expected = case.original.model.generate(  # type: ignore[operator]
            **batch, max_new_tokens=12, min_new_tokens=12, **asked, use_cache=False
        )
    assert found.shape == (2, 26)
    assert torch.equal(found, expected)


def test_the_attention_kind_can_be_changed_later(case: Pruned) -> None:
    """Layers of their own shape follow the model from eager attention to the fused one and keep their causal mask."""
    options = {"trust_remote_code": True, "dtype": torch.float64, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(case.folder, **options).eval()
    expected = logits(case.loaded)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, use_cache=False).logits, expected, rtol=0, atol=1e-4)
        model.set_attn_implementation(case.original.architecture.implementation)
        assert torch.equal(model(IDS, use_cache=False).logits, expected)


def test_a_probe_opens_on_a_pruned_model(case: Pruned) -> None:
    """It changes nothing by itself, and switches off what is left of a layer, removed attention or not."""
    facts, expected = case.loaded.facts, logits(case.loaded)
    with torch.no_grad(), Probe(case.loaded.model, case.loaded.architecture) as probe:
        torch.testing.assert_close(logits(case.loaded), expected, rtol=0, atol=0)
        probe.gates = torch.tensor([1.0, 0, 0]).expand(1, facts.layers, 3)  # all heads alike, whatever their number
        assert (logits(case.loaded) - expected).abs().max() > 0.1


def test_the_config_tells_the_shapes(case: Pruned) -> None:
    """transformers' own key, the stock class by name, and the folder's class in auto_map."""
    config = json.loads((case.folder / "config.json").read_text())
    per_layer = config["per_layer_config"]
    assert config.get("num_hidden_layers", config.get("n_layer")) == len(case.stay)
    for layer, heads in enumerate(case.stay):
        if not heads:
            assert per_layer[str(layer)] == {"skip": ["attention"]}
        elif len(heads) == case.original.facts.heads:
            assert str(layer) not in per_layer
        else:
            assert per_layer[str(layer)]["num_attention_heads"] == len(heads)
            groups = len({head // case.original.facts.group for head in heads})
            if shared := config.get("num_key_value_heads"):
                assert per_layer[str(layer)].get("num_key_value_heads", shared) == groups
    assert config["architectures"] == [type(case.original.model).__name__]
    assert set(config["auto_map"]) == {"AutoModelForCausalLM"}
    assert not any(os.path.islink(file) for file in case.folder.iterdir())


def test_a_removed_block_takes_its_bias_along(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """Removing the block is not gating all of its heads where the output projection has a bias."""
    original = save_pico(pico("llama", attention_bias=True), tmp_path / "original")
    full = whole_model(original.facts)
    case = Pruned(original, keeping(full[0], (), *full[2:]), tmp_path / "pruned")
    with case.gated_original():
        torch.testing.assert_close(logits(case.loaded), logits(original), rtol=0, atol=1e-6)
    gates = torch.ones(4, 6)
    gates[1] = 0
    with reference.gated(original.model, gates, original.facts.head_dim):
        assert (logits(original) - logits(case.loaded)).abs().max() > 1e-2


UNIFORM = [FULL, keeping((0, 3), (2, 5), (1, 4), (0, 5)), keeping((3, 4, 5)) * 4]
OWN_SIZE = ("phi3", "gpt2", "gpt_neox", "opt")
"""Families whose config cannot say that there are fewer heads of the same size."""


@pytest.mark.parametrize(
    ("family", "keep"),
    [(family, keep) for family in FAMILIES for keep in UNIFORM if keep == FULL or family not in (*OWN_SIZE, "olmo2")],
)
def test_a_uniform_plan_gives_a_stock_checkpoint(
    pico: Callable[..., Loaded], tmp_path: Path, family: str, keep: Keep
) -> None:
    """No code in the folder, transformers' own class, and the gated original's logits; an empty plan bit for bit."""
    original = save_pico(pico(family), tmp_path / "original")
    case = Pruned(original, keep, tmp_path / "pruned")
    assert not list(case.folder.glob("*.py"))
    config = json.loads((case.folder / "config.json").read_text())
    assert "auto_map" not in config
    assert not config.get("per_layer_config")
    stock = AutoModelForCausalLM.from_pretrained(case.folder, trust_remote_code=False, dtype=torch.float64).eval()
    assert type(stock) is type(original.model)
    assert type(case.loaded.model) is type(original.model)
    with torch.no_grad():
        found = stock(IDS, use_cache=False).logits
    torch.testing.assert_close(found, logits(case.loaded), rtol=0, atol=rounding(case))
    if case.plan.removed_heads == 0:
        assert torch.equal(logits(case.loaded), logits(original))
        assert case.plan.after == case.plan.before
    with case.gated_original():
        torch.testing.assert_close(logits(case.loaded), logits(original), rtol=0, atol=1e-6)
    stored = load_file(case.folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == case.plan.after.parameters


@pytest.mark.parametrize("family", OWN_SIZE)
def test_a_uniform_plan_carries_its_class_where_the_config_cannot_say_it(
    pico: Callable[..., Loaded], tmp_path: Path, family: str
) -> None:
    """Every layer alike, and still the folder's own class gives the gated original's logits."""
    original = save_pico(pico(family), tmp_path / "original")
    case = Pruned(original, keeping((3, 4, 5)) * 4, tmp_path / "pruned")
    remote = AutoModelForCausalLM.from_pretrained(case.folder, trust_remote_code=True, dtype=torch.float64).eval()
    with torch.no_grad(), case.gated_original():
        torch.testing.assert_close(remote(IDS, use_cache=False).logits, logits(original), rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(case.folder)


def test_heads_that_norms_span_are_not_cut(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """olmo2 is refused by name with the reason when single heads would go, by the projection and by the surgery."""
    original = save_pico(pico("olmo2"), tmp_path / "original")
    keep = keeping((0, 1, 3, 4), *whole_model(original.facts)[1:])
    whole = plan_of(original.facts, whole_model(original.facts))
    with pytest.raises(InputError, match=r"'olmo2'.*norms span all heads.*`block`"):
        plan_of(original.facts, keep)
    with pytest.raises(InputError, match=r"'olmo2'.*norms span all heads.*`block`"):
        prune(whole.model_copy(update={"keep": keep}), tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_every_head_of_a_layer_lands_where_it_was(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """The weights that stay are the original's own rows and columns."""
    original = save_pico(pico("qwen2"), tmp_path / "original")
    plan: Plan = plan_of(original.facts, (whole_model(original.facts)[0], *GROUPED[1:]))
    before = load_file(tmp_path / "original" / "model.safetensors")
    after = load_file(prune(plan, tmp_path / "pruned") / "model.safetensors")
    queries = [row for head in (0, 2, 3, 5) for row in range(head * 8, head * 8 + 8)]
    for name, rows in (("q_proj.weight", queries), ("q_proj.bias", queries), ("k_proj.weight", list(range(16)))):
        key = f"model.layers.1.self_attn.{name}"
        assert torch.equal(after[key], before[key][rows])
    key = "model.layers.1.self_attn.o_proj.weight"
    assert torch.equal(after[key], before[key][:, queries])
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        key = f"model.layers.2.self_attn.{name}"
        assert torch.equal(after[key], before[key][8:])
    changed = (
        {key for key in before if not torch.equal(before[key], after[key])} if before.keys() == after.keys() else None
    )
    assert changed is not None
    assert all(key.startswith(("model.layers.1.self_attn", "model.layers.2.self_attn")) for key in changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_class_refuses_a_checkpoint_with_removed_blocks(
    pico: Callable[..., Loaded], tmp_path: Path, family: str
) -> None:
    """It would fill the gap with random attention, so it must not load without the folder's own class."""
    loaded = save_pico(pico(family), tmp_path / "model")
    keep = keeping((), *whole_model(loaded.facts)[1:])
    folder = prune(plan_of(loaded.facts, keep), tmp_path / "pruned")
    assert AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True) is not None
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        AutoModelForCausalLM.from_pretrained(folder)


ALONE = """
import sys
sys.modules["slim"] = None  # importing it is an error
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    expected = load_file(folder + "/expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float64).eval()
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
    with torch.no_grad():
        found = model(expected["ids"], use_cache=False).logits
        torch.testing.assert_close(found, expected["logits"], rtol=0, atol=1e-4)
        cached = model.generate(expected["ids"], **options)
        assert torch.equal(cached, model.generate(expected["ids"], use_cache=False, **options))
        model.set_attn_implementation("eager")
        found = model(expected["ids"], use_cache=False).logits
        torch.testing.assert_close(found, expected["logits"], rtol=0, atol=1e-4)
    print(type(model).__name__)
"""


def test_every_family_loads_in_a_process_without_slim(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """Nothing but the folder: the logits, with and without a cache, and another attention set later."""
    folders, names = [], []
    for family in FAMILIES:
        original = save_pico(pico(family, kv_heads=2), tmp_path / family)
        case = Pruned(original, BLOCKS if family == "olmo2" else LAYERS, tmp_path / f"{family}-pruned")
        save_file({"ids": IDS, "logits": logits(case.loaded)}, case.folder / "expected.safetensors")
        folders.append(str(case.folder))
        names.append(f"Slim{type(original.model).__name__}")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", ALONE, *folders],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == names
