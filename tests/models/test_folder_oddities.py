"""Odd but common model folders: each loads as its files say, or is refused in a sentence whose remedy works."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from slim.core.errors import InputError, SlimError
from slim.core.fields import Layers
from slim.models.load import Loaded, load_model
from slim.models.tokenizer import facts_at_hand, load_tokenizer
from slim.pruning import checkpoint
from slim.pruning.checkpoint import prune
from slim.pruning.history import Recovery
from slim.serving.gguf import export_gguf
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.surgery import IDS, WHOLE, logits

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Q = "model.layers.1.self_attn.q_proj.weight"
State = dict[str, Tensor]


def made(folder: Path, **settings: Any) -> Loaded:
    """A llama in float32 in a folder."""
    return save_pico(make_pico("llama", dtype=torch.float32, **settings), folder)


def stored(folder: Path) -> State:
    """The tensors in a folder's file."""
    return load_file(folder / "model.safetensors")


def store(folder: Path, state: State) -> None:
    """Put other tensors in a folder's file."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


def config(folder: Path, **changes: Any) -> None:
    """Change a folder's config."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def by_hand(model: Loaded, head: Tensor) -> Tensor:
    """The logits that a head gives to a model's last states.  # (B, T, V)"""
    base: Any = model.model.base_model
    with torch.no_grad():
        return base(IDS, use_cache=False).last_hidden_state @ head.to(model.model.dtype).T


@pytest.mark.parametrize("layers", ["memory", "file"])
def test_a_head_of_its_own_is_kept(tmp_path: Path, layers: Layers) -> None:
    """Where a config says that embedding and head are one, and the file holds two."""
    folder = tmp_path / "model"
    made(folder, tie_word_embeddings=True)
    state = stored(folder)
    own = state[EMBEDDING] + torch.randn(state[EMBEDDING].shape, generator=torch.Generator().manual_seed(1))
    store(folder, state | {HEAD: own})
    loaded = load_model(folder, device="cpu", layers=layers)
    torch.testing.assert_close(logits(loaded), by_hand(loaded, own), rtol=0, atol=1e-5)
    facts = facts_at_hand(str(folder))
    assert facts is not None
    assert facts.shapes == loaded.facts.shapes
    assert HEAD in facts.shapes
    written = prune(plan_of(loaded.facts, keeping((), *(WHOLE,) * 3)), tmp_path / "small")
    assert torch.equal(stored(written)[HEAD], own)
    assert json.loads((written / "config.json").read_text())["tie_word_embeddings"] is False
    plain = AutoModelForCausalLM.from_pretrained(written, trust_remote_code=True)
    assert torch.equal(plain.lm_head.weight, own)


def test_a_head_that_is_the_embedding_stays_one(tmp_path: Path) -> None:
    """Also where the file holds it twice."""
    folder = tmp_path / "model"
    expected = logits(made(folder, tie_word_embeddings=True))
    store(folder, stored(folder) | {HEAD: stored(folder)[EMBEDDING].clone()})
    loaded = load_model(folder, device="cpu")
    assert torch.equal(logits(loaded), expected)
    assert HEAD not in loaded.facts.shapes


def test_a_head_that_is_missing_is_named(tmp_path: Path) -> None:
    """Where the config says that there is one; and what the sentence advises works."""
    folder = tmp_path / "model"
    expected = logits(made(folder, tie_word_embeddings=True))
    config(folder, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"'lm_head.weight' is missing.*tie_word_embeddings=false.*write true there"):
        load_model(folder, device="cpu")
    config(folder, tie_word_embeddings=True)
    assert torch.equal(logits(load_model(folder, device="cpu")), expected)


def test_tokens_beyond_the_embedding_are_named(tmp_path: Path) -> None:
    """By the load and the look before; and what the sentence advises works."""
    folder = tmp_path / "model"
    loaded = made(folder)
    loaded.tokenizer.add_tokens([f"<tool{number}>" for number in range(12)])
    loaded.tokenizer.save_pretrained(folder)
    beyond = len(loaded.tokenizer) - 264
    for read in (load_model, load_tokenizer):
        with pytest.raises(
            InputError, match=rf"{beyond} tokens, '<tool.>' the first, beyond the 264 rows.*\({264 + beyond}\)"
        ):
            read(str(folder))
    grown = AutoModelForCausalLM.from_pretrained(folder)
    grown.resize_token_embeddings(264 + beyond)
    grown.save_pretrained(folder)
    assert load_model(folder, device="cpu").model.config.vocab_size == 264 + beyond


MIXED = {
    "bfloat16 beside float32": (torch.bfloat16, torch.float32),
    "float16 beside float32": (torch.float16, torch.float32),
    "float32 beside bfloat16": (torch.float32, torch.bfloat16),
    "bfloat16 beside float16": (torch.bfloat16, torch.float16),
}
"""The format of projections and embedding, and that of norms and head."""


@pytest.mark.parametrize("name", MIXED)
def test_every_tensor_keeps_its_number_format(tmp_path: Path, name: str) -> None:
    """Through a cut, and when new weights are saved; sizes count with it, and the record says so."""
    most, others = MIXED[name]
    folder = tmp_path / "model"
    made(folder)
    before = {key: value.to(others if "norm" in key or key == HEAD else most) for key, value in stored(folder).items()}
    store(folder, before)
    facts = load_model(folder, device="cpu").facts
    assert facts.numbers == f"{str(most)[6:]}, 10 tensors in {str(others)[6:]}"
    looked = facts_at_hand(str(folder))
    assert looked is not None
    assert (looked.dtype, looked.formats, looked.bytes) == (facts.dtype, facts.formats, facts.bytes)
    plan = plan_of(facts, keeping(None, (), *(WHOLE,) * 2))
    after = stored(prune(plan, tmp_path / "small"))
    for key, value in after.items():
        number = re.search(r"layers\.(\d)", key)
        old = before[key if number is None else key.replace(number[0], f"layers.{int(number[1]) + 1}", 1)]
        if value.numel():
            assert value.dtype == old.dtype
            assert torch.equal(value, old)
    assert sum(value.nbytes for value in after.values()) == plan.after.bytes
    changed = before[Q.replace("1", "2")].double() + 0.1
    checkpoint.rewrite(tmp_path / "small", tmp_path / "again", {Q: changed}, Recovery())
    again = stored(tmp_path / "again")
    assert torch.equal(again[Q], changed.to(most))
    assert all(torch.equal(again[key], value) for key, value in after.items() if key != Q)


def renamed(rule: Callable[[str], str]) -> Callable[[Path], None]:
    """Gives the tensors in a folder other names."""
    return lambda folder: store(folder, {rule(name): tensor for name, tensor in stored(folder).items()})


def more(**tensors: Tensor) -> Callable[[Path], None]:
    """Adds tensors to those of a folder, whose names have dots for double underscores."""
    return lambda folder: store(
        folder, stored(folder) | {name.replace("__", "."): one for name, one in tensors.items()}
    )


def leftover(method: str) -> Callable[[Path], None]:
    """Names in a config how the weights were once quantised."""
    return lambda folder: config(folder, quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})


def codes(folder: Path) -> None:
    """Weights as AutoGPTQ stored them, without a word in config.json."""
    state = stored(folder)
    module = Q.removesuffix("weight")
    state.pop(Q)
    more = {"qweight": torch.zeros(3, 48, dtype=torch.int32), "scales": torch.ones(1, 48, dtype=torch.float16)}
    store(folder, state | {module + name: tensor for name, tensor in more.items()})
    (folder / "quantize_config.json").write_text('{"bits": 4}')


def adapter(folder: Path) -> None:
    """Leave what peft saves of an adapter."""
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name", "peft_type": "LORA"}')


RIGHT: dict[str, Callable[[Path], None]] = {
    "compiled": renamed(lambda name: f"_orig_mod.{name}"),
    "layers compiled": renamed(lambda name: re.sub(r"(layers\.\d)", r"\1._orig_mod", name)),
    "parallel": renamed(lambda name: f"module.{name}"),
    "compiled in parallel": renamed(lambda name: f"module._orig_mod.{name}"),
    "merged in peft": renamed(lambda name: f"base_model.model.{name}"),
    "with a value head": renamed(lambda name: f"pretrained_model.{name}"),
    "without the head's part": renamed(lambda name: name.removeprefix("model.")),
    "once loaded in 4 bits": leftover("bitsandbytes"),
    "once GPTQ": leftover("gptq"),
    "frequencies of old": more(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)),
    "another head": more(v_head__summary__weight=torch.ones(1, 24)),
}
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "GPTQ of old": (codes, r"quantised \('.*q_proj.qweight' is stored as I32\): choose one with plain weights"),
    "one layer in 8 bits": (
        lambda folder: store(folder, stored(folder) | {Q: stored(folder)[Q].to(torch.float8_e4m3fn)}),
        "quantised .* is stored as F8_E4M3",
    ),
    "scales": (more(model__layers__0__mlp__up_proj__weight_scale=torch.ones(1)), "up_proj.weight_scale' has no place"),
    "a bias": (more(model__layers__0__self_attn__q_proj__bias=torch.ones(48)), "q_proj.bias' has no place .* setting"),
    "a norm": (more(model__layers__0__self_attn__q_norm__weight=torch.ones(8)), "q_norm.weight' has no place"),
    "fewer layers": (lambda folder: config(folder, num_hidden_layers=3), "num_hidden_layers=3 .* 4 layers.* write 4"),
    "more layers": (lambda folder: config(folder, num_hidden_layers=5), "num_hidden_layers=5 .* 4 layers.* write 4"),
    "not merged": (
        more(model__layers__0__self_attn__q_proj__lora_A__default__weight=torch.ones(2, 24)),
        "holds an adapter beside its weights .* `merge_and_unload",
    ),
    "an adapter": (adapter, "is an adapter .* `merge_and_unload"),
    "another type": (lambda folder: config(folder, hidden_size="big"), "hidden_size.*expected int, got str"),
    "another width": (lambda folder: config(folder, hidden_size=25), "hidden size .25. is not a multiple"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A folder without oddities, which tests copy."""
    return made(tmp_path_factory.mktemp("plain") / "model")


@pytest.mark.parametrize("name", RIGHT)
def test_an_odd_folder_is_loaded(plain: Loaded, tmp_path: Path, name: str) -> None:
    """With its layers in memory or in files: the logits of the plain folder."""
    folder = shutil.copytree(plain.facts.source, tmp_path / "model")
    RIGHT[name](folder)
    for layers in ("memory", "file"):
        assert torch.equal(logits(load_model(folder, device="cpu", layers=layers)), logits(plain))


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_folder_is_refused(plain: Loaded, tmp_path: Path, name: str) -> None:
    """In one sentence with the reason and what to do."""
    folder = shutil.copytree(plain.facts.source, tmp_path / "model")
    edit, words = REFUSED[name]
    edit(folder)
    with pytest.raises(InputError, match=words):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_checkpoint_that_computes_something_else_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Whatever went wrong between the cut and the files, also in a folder that had to be made."""
    original = save_pico(make_pico("llama", dtype=dtype), tmp_path / "model")
    finished = checkpoint._finish_config

    def damaged(folder: Path, *rest: Any) -> None:
        finished(folder, *rest)
        state = stored(folder)
        store(folder, state | {"model.norm.weight": state["model.norm.weight"] * 1.02})

    plan = plan_of(original.facts, keeping((), *(WHOLE,) * 3))
    prune(plan, tmp_path / "good")
    there = sorted(tmp_path.iterdir())
    monkeypatch.setattr(checkpoint, "_finish_config", damaged)
    with pytest.raises(SlimError, match=r"nothing was kept.* computes other logits than the original"):
        prune(plan, tmp_path / "new" / "small")
    with pytest.raises(SlimError, match=r"nothing was kept.* computes other logits than the model in memory"):
        checkpoint.rewrite(tmp_path / "good", tmp_path / "new" / "again", {}, Recovery())
    assert sorted(tmp_path.iterdir()) == there


def test_a_tokenizer_without_merges_is_not_exported(plain: Loaded, tmp_path: Path) -> None:
    """llama.cpp would refuse the file."""
    with pytest.raises(InputError, match=r"has no merges.*slim serve"):
        export_gguf(plain.facts.source, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())
