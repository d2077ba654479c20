"""Where each model family keeps what Slim touches. Families are data; an unknown one is refused by name."""

from dataclasses import dataclass
from operator import attrgetter

from torch import nn

from slim.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """Names inside a family's CausalLM. Paths are relative to the model, the others to one decoder layer."""

    layers: str = "model.layers"
    attention: str = "self_attn"
    queries: tuple[str, ...] = ("self_attn.q_proj",)
    """One block of rows per query head."""
    keys_values: tuple[str, ...] = ("self_attn.k_proj", "self_attn.v_proj")
    """One block of rows per KV head."""
    output: str = "self_attn.o_proj"
    """One block of columns per query head."""
    only_for_attention: tuple[str, ...] = ("self_attn", "input_layernorm")
    """Everything in a layer that goes when its attention block goes."""


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(),
    "mistral": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
}


def architecture_of(model_type: str) -> Architecture:
    """The family's entry. Raises InputError naming the family and those that are supported."""
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        supported = ", ".join(ARCHITECTURES)
        raise InputError(
            f"model type {model_type!r} is not supported: choose a model of one of these families: {supported}."
        ) from None


def decoder_layers(model: nn.Module, architecture: Architecture) -> nn.ModuleList:
    return attrgetter(architecture.layers)(model)
