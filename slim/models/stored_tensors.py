"""The tensors in a model's files, held against the parameters of its class, before any of them is read."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from slim.core.errors import InputError
from slim.models.architectures import Architecture, architecture_of

NUMBERS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Number formats of weights that can be cut, by safetensors' name."""
COMPUTED = re.compile(r"rotary_emb\.|\.attn\.(masked_)?bias$|\.attention\.(masked_)?bias$")
"""Names inside layers of what older versions stored beside the weights and newer ones compute."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its name there, its shape, and its number format as safetensors calls it."""

    place: str
    shape: tuple[int, ...]
    kind: str


def named(source: str) -> str:
    return f"model {source!r}"


def check_weights(source: str, model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> None:
    """Raises InputError where a parameter of `model`, without storage yet, is missing or has another shape on disk, and
    where a tensor on disk belongs to a part of the model that would compute without it.
    """
    taken: set[str] = set()
    for tied, places in places_of(model):
        shape = tuple(model.get_parameter(tied[0]).shape)
        found = [place for place in places if place in stored]
        if not found:
            raise InputError(f"{named(source)}: {_why_missing(model, tied[0], stored)}")
        for place in found:
            if stored[place].shape != shape:
                raise InputError(
                    f"{named(source)}: tensor {place!r} is {list(stored[place].shape)} and its config asks for "
                    f"{list(shape)}: the two do not belong together."
                )
        taken.update(found)
    for name in sorted(stored.keys() - taken):
        if "lora_" in name:
            raise InputError(f"{named(source)}: {_unmerged(name)}")
        if _belongs(name, model):
            raise InputError(
                f"{named(source)}: tensor {name!r} has no place in a model of its config: correct the setting in "
                "config.json that leaves it out, or choose another model."
            )


def places_of(model: PreTrainedModel) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the names of each parameter of `model`, more than one where it is tied, and those it may have in files."""
    family = architecture_of(model.config.model_type)
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for tied in names.values():
        yield tied, sorted({place for name in tied for place in _places(name, family, type(model))})


def _places(name: str, family: Architecture, model_class: Any) -> tuple[str, ...]:
    """Return the names that a parameter may have in files: its own, that in the family's base model, and another."""
    return name, name.removeprefix(f"{model_class.base_model_prefix}."), family.stored_as.get(name, name)


def _why_missing(model: PreTrainedModel, name: str, stored: Mapping[str, StoredTensor]) -> str:
    """Return why a parameter is not among the stored tensors, and what to do."""
    module, _, kind = name.rpartition(".")
    near = sorted(other for other in stored if other.startswith(f"{module}.") and other != f"{module}.bias")
    if any("lora_" in other or ".base_layer." in other for other in near):
        return _unmerged(near[0])
    if near and kind == "weight":
        return quantised(near[0], stored[near[0]].kind)
    if name in _tied(type(model)):
        return (
            f"tensor {name!r} is missing, and its config says tie_word_embeddings=false: where embedding and head are "
            "the same, write true there; else save the model again with both."
        )
    return f"tensor {name!r} is missing: copy or download it again."


def _unmerged(name: str) -> str:
    return f"it holds an adapter beside its weights ({name!r}): merge it first, with peft's `merge_and_unload()`."


def quantised(name: str, kind: str) -> str:
    return f"its weights are quantised ({name!r} is stored as {kind}): choose one with plain weights."


def _belongs(name: str, model: PreTrainedModel) -> bool:
    """Return whether a tensor that no parameter takes is part of what `model` computes: one in a layer, or in a module
    that has weights.
    """
    layers = f"{architecture_of(model.config.model_type).layers}."
    module, _, kind = name.rpartition(".")
    for full in (module, f"{model.base_model_prefix}.{module}"):
        try:
            found = model.get_submodule(full) if module else None
        except AttributeError:
            continue
        if found is not None and next(found.children(), None) is None and next(found.parameters(), None) is not None:
            return True
    inside = name.startswith(layers) or f"{model.base_model_prefix}.{name}".startswith(layers)
    return inside and kind in ("weight", "bias") and not COMPUTED.search(name)


def _tied(model_class: Any) -> dict[str, str]:
    """Return the name of the embedding by that of the head, in families where the two can be one."""
    return dict(model_class._tied_weights_keys or {})


def has_own_head(config: PreTrainedConfig, tensors: Mapping[str, StoredTensor], files: list[Path]) -> bool:
    """Return whether the files hold a head that is not the embedding."""
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family = architecture_of(config.model_type)
    for tied in _tied(stock).items():
        one, other = (
            next((tensors[place] for place in _places(name, family, stock) if place in tensors), None) for name in tied
        )
        if one is not None and other is not None and one.place != other.place and not _equal(one, other, files):
            return True
    return False


def _equal(one: StoredTensor, other: StoredTensor, files: list[Path]) -> bool:
    """Return whether two stored tensors hold the same numbers."""
    if one.shape != other.shape:
        return False
    read: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for place in {one.place, other.place} & set(opened.keys()):
                read[place] = opened.get_tensor(place)
    first, second = read[one.place], read[other.place]
    wide = torch.promote_types(first.dtype, second.dtype)
    return torch.equal(first.to(wide), second.to(wide))
