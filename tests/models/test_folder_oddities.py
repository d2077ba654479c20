"""Odd but common model folders: each loads as its files say, or is refused in a sentence whose remedy works."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from slim.core.errors import InputError
from slim.core.fields import Layers
from slim.models.load import Loaded, load_model
from slim.models.tokenizer import facts_at_hand, load_tokenizer
from slim.pruning.checkpoint import prune
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
