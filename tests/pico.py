"""Tiny models of every supported family with random weights large enough to matter, and a real tokenizer each."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from slim.core.records import ModelFacts
from slim.models.architectures import architecture_of
from slim.models.load import Loaded, load_model, model_facts
from slim.models.units import NO_LAYER, Keep, LayerKeep, UnitName, whole_model
from slim.planning.record import ByThreshold, Plan
from slim.planning.sizes import size_of

NO_HEAD_SIZE = {"head_dim": None, "num_key_value_heads": None, "hidden_size": 48}
"""For configs that know neither a head size nor KV heads; None leaves a setting out."""
FEATURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 4,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "starcoder2": {"sliding_window": 5},
    "granite": {
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.6,
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.5,
        "attention_bias": True,
    },
    "gemma2": {
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 4.0,
        "query_pre_attn_scalar": 5,
        "sliding_window": 4,
        "attention_bias": True,
    },
    "gemma3_text": {
        "final_logit_softcapping": 4.0,
        "query_pre_attn_scalar": 5,
        "sliding_window": 4,
        "sliding_window_pattern": 2,
    },
    "olmo2": {"attention_bias": True},
    "phi3": {"partial_rotary_factor": 0.5, "sliding_window": 6},
    "gpt2": {**NO_HEAD_SIZE, "n_inner": 48, "scale_attn_by_inverse_layer_idx": True},
    "gpt_neox": {**NO_HEAD_SIZE, "rotary_pct": 0.5},
    "opt": {**NO_HEAD_SIZE, "ffn_dim": 40, "word_embed_proj_dim": 20},
}
"""Features switched on in each supported family so that it matters: windows shorter than rows, caps that bite."""
FAMILIES = tuple(FEATURES)
SPECIAL = ("<pad>", "<bos>", "<eos>")
BYTES = 264
"""Special tokens, 256 bytes, and a few ids that no text uses."""


def pico_tokenizer(vocab: int = BYTES) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, or one of whole words `w0 w1 …` where the vocabulary is smaller than that."""
    if vocab >= 256 + len(SPECIAL):
        pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokenizer = Tokenizer(BPE({piece: index for index, piece in enumerate(pieces)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        pieces = [*SPECIAL, *(f"w{index}" for index in range(vocab - len(SPECIAL)))]
        tokenizer = Tokenizer(WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<eos>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def make_pico(
    model_type: str = "llama",
    *,
    heads: int = 6,
    kv_heads: int = 2,
    layers: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **extra: Any,
) -> Loaded:
    """A model of `model_type` built from its config, every weight random, as `load_model` would give it."""
    settings = {
        "vocab_size": BYTES,
        "hidden_size": 24,
        "intermediate_size": 48,
        "head_dim": 8,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    settings = {name: value for name, value in (settings | FEATURES[model_type] | extra).items() if value is not None}
    config = AutoConfig.for_model(model_type, **settings)
    implementation = architecture_of(model_type).implementation
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name or "ln_" in name else 0.0
            parameter.copy_(centre + 0.25 * torch.randn(parameter.shape, generator=generator))
    model.tie_weights()
    model.to(dtype).eval().requires_grad_(False)
    return Loaded(
        model, pico_tokenizer(config.vocab_size), model_facts(model, f"pico-{model_type}", f"{model_type}-{seed}")
    )


def save_pico(loaded: Loaded, folder: Path) -> Loaded:
    """The same model after a trip through a folder and the real `slim.models.load.load_model`."""
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return load_model(str(folder), device="cpu", dtype=loaded.facts.dtype)


Heads = tuple[int, ...] | None
"""A layer's kept heads as shorthand: empty where its attention block is gone, None where all of it is."""


def keeping(*layers: Heads | LayerKeep) -> Keep:
    """The units that a plan keeps, from those of each layer, as shorthand or as records."""
    return tuple(
        kept if isinstance(kept, LayerKeep) else NO_LAYER if kept is None else LayerKeep(heads=kept) for kept in layers
    )


def shorthand(keep: Keep) -> tuple[Heads, ...]:
    """The kept heads of each layer as shorthand, which cannot express removed MLP channels."""
    assert {kept.channels for kept in keep} <= {"all"}
    return tuple(kept.heads if kept.layer else None for kept in keep)


def plan_of(facts: ModelFacts, keep: Keep, unit: UnitName = "head") -> Plan:
    """A plan that keeps exactly `keep`."""
    return Plan(
        model=facts,
        calibration="",
        unit=unit,
        reason=ByThreshold(threshold=0.5, weights={"kl_output": 1.0}, scores=()),
        keep=keep,
        before=size_of(facts, whole_model(facts)),
        after=size_of(facts, keep),
    )


def random_rows(lengths: tuple[int, ...], vocab: int = BYTES, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Rows of ordinary token ids with the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(len(SPECIAL), min(vocab, 256), (length,), generator=generator) for length in lengths)
