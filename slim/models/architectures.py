"""Where each model family keeps what Slim touches. Families are data; an unknown one is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from slim.core.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def _separate(attention: str = "self_attn") -> Mapping[str, tuple[str, ...]]:
    return {f"{attention}.{letter}_proj": (letter,) for letter in "qkv"}


@dataclass(frozen=True)
class Architecture:
    """Names inside a family's CausalLM. `layers` is relative to the model, the other paths to one decoder layer."""

    layers: str = "model.layers"
    attention: str = "self_attn"
    attention_adds: str = "self_attn"
    """The module whose output is what attention adds to the residual stream: its post-norm where it has one."""
    mlp_adds: str = "mlp"
    """The same for the MLP."""
    residual_multiplier: str | None = None
    """The config's attribute that both are multiplied with before they are added."""
    projections: Mapping[str, tuple[str, ...]] = field(default_factory=_separate)
    """The blocks in the output of each projection, in order: `q` is a block per query head, `k` and `v` one
    per KV head, `qkv` a block of all three per head."""
    output: str = "self_attn.o_proj"
    """The projection that reads one block per query head."""
    mlp_output: str = "mlp.down_proj"
    """The projection that reads the MLP's channels."""
    mlp_inputs: Mapping[str, int] = field(default_factory=lambda: {"mlp.gate_proj": 1, "mlp.up_proj": 1})
    """The projections that write the MLP's channels, and how often each channel stands in their output."""
    parallel: str | None = None
    """The config's switch under which attention and MLP read the same residual."""
    transposed: bool = False
    """Whether the weights of these projections are stored (in, out)."""
    only_for_attention: tuple[str, ...] = ("self_attn", "input_layernorm")
    """Everything in a layer that goes when its attention block goes."""
    whole_blocks: str = ""
    """Why single heads cannot be cut, where they cannot."""
    sets_head_size: bool = True
    """Whether the config can say a head size other than width / heads, so that the stock class takes fewer heads."""
    divided_by_layer: str | None = None
    """The config's switch under which attention scores are divided by the number of their layer, from 1 on."""
    stored_as: Mapping[str, str] = field(default_factory=dict)
    """Weights that have another name in files than in the model."""
    implementation: str = "sdpa"
    """The attention it is loaded with, one that computes what the family defines; `slim` is registered in probe.py."""
    requires: Mapping[str, Any] = field(default_factory=dict)
    """Values of the config without which the rest of the entry is not true."""

    def for_modeling(self) -> dict[str, Any]:
        """Return the facts of the family that the class in a checkpoint needs, in plain Python values."""
        return {
            "layers": self.layers,
            "attention": self.attention,
            "norms": [name for name in self.only_for_attention if name != self.attention],
            "projections": {name: list(parts) for name, parts in self.projections.items()},
            "output": self.output,
        }


_TWO_NORMS = {
    "attention_adds": "post_attention_layernorm",
    "mlp_adds": "post_feedforward_layernorm",
    "only_for_attention": ("self_attn", "input_layernorm", "post_attention_layernorm"),
}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(),
    "mistral": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "smollm3": Architecture(),
    "starcoder2": Architecture(mlp_output="mlp.c_proj", mlp_inputs={"mlp.c_fc": 1}),
    "granite": Architecture(residual_multiplier="residual_multiplier"),
    "gemma2": Architecture(
        **_TWO_NORMS,
        implementation="slim",  # no fused kernel knows soft-capping, and eager rounds float64 and fails under padding
        requires={"use_bidirectional_attention": False},
    ),
    "gemma3_text": Architecture(**_TWO_NORMS, requires={"use_bidirectional_attention": False}),
    "olmo2": Architecture(
        attention_adds="post_attention_layernorm",
        mlp_adds="post_feedforward_layernorm",
        only_for_attention=("self_attn", "post_attention_layernorm"),
        whole_blocks="its query and key norms span all heads",
    ),
    "phi3": Architecture(
        projections={"self_attn.qkv_proj": ("q", "k", "v")},
        mlp_inputs={"mlp.gate_up_proj": 2},
        sets_head_size=False,  # its config checks the lengths of rope factors against width / heads
    ),
    "gpt2": Architecture(
        layers="transformer.h",
        attention="attn",
        attention_adds="attn",
        projections={"attn.c_attn": ("q", "k", "v")},
        output="attn.c_proj",
        mlp_output="mlp.c_proj",
        mlp_inputs={"mlp.c_fc": 1},
        transposed=True,
        only_for_attention=("attn", "ln_1"),
        sets_head_size=False,
        divided_by_layer="scale_attn_by_inverse_layer_idx",
        requires={"add_cross_attention": False},
    ),
    "gpt_neox": Architecture(
        layers="gpt_neox.layers",
        attention="attention",
        attention_adds="attention",
        projections={"attention.query_key_value": ("qkv",)},
        output="attention.dense",
        mlp_output="mlp.dense_4h_to_h",
        mlp_inputs={"mlp.dense_h_to_4h": 1},
        parallel="use_parallel_residual",
        only_for_attention=("attention", "input_layernorm"),  # the MLP has a norm of its own, parallel or not
        sets_head_size=False,
        stored_as={"lm_head.weight": "embed_out.weight"},
    ),
    "opt": Architecture(
        layers="model.decoder.layers",
        mlp_adds="fc2",
        mlp_output="fc2",
        mlp_inputs={"fc1": 1},
        output="self_attn.out_proj",
        only_for_attention=("self_attn", "self_attn_layer_norm"),
        sets_head_size=False,
        requires={"do_layer_norm_before": True, "layer_norm_elementwise_affine": True},
    ),
}

REFUSED: dict[str, str] = {
    "falcon": "its attention does not go through transformers' attention interface, so nothing of it can be seen",
    "gemma3": "it holds a vision model too, save its language model alone (gemma3_text)",
}
"""Families that users may try, and why they cannot be used."""


def architecture_of(model_type: str) -> Architecture:
    """The family's entry. Raises InputError naming the family and those that are supported."""
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        supported = ", ".join(ARCHITECTURES)
        reason = f" ({REFUSED[model_type]})" if model_type in REFUSED else ""
        raise InputError(
            f"model type {model_type!r} is not supported{reason}: choose a model of one of these families: {supported}."
        ) from None


def check_config(config: Any) -> Architecture:
    """The entry of the family of `config`. Raises InputError for a family, or a variant of one, not supported."""
    architecture = architecture_of(config.model_type)
    for name, needed in architecture.requires.items():
        found = getattr(config, name, needed)
        if bool(found) != bool(needed):
            raise InputError(
                f"model type {config.model_type!r} with {name}={found} is not supported: "
                f"choose a model whose config has {name}={needed}."
            )
    return architecture


def decoder_layers(model: "nn.Module", architecture: Architecture) -> "nn.ModuleList":
    return attrgetter(architecture.layers)(model)


def residual_multiplier(model: "nn.Module", architecture: Architecture) -> float:
    """Return the factor of everything that is added to the residual stream."""
    name = architecture.residual_multiplier
    return getattr(model.config, name) if name else 1.0
