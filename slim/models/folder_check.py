"""A model folder is never trusted: what it claims is checked before anything is built or allocated.

Its config is read as data and the shapes of its weights from their headers alone. Its code is never looked at.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from slim.core.errors import InputError
from slim.core.paths import is_file
from slim.core.records import why_invalid
from slim.models.architectures import architecture_of, check_config
from slim.models.source import WEIGHTS

NUMBERS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Number formats of weights that can be cut, by safetensors' name."""
LAYERS = ("num_hidden_layers", "n_layer")
"""Names that families give to their number of layers."""
OF_A_LAYER = {"num_attention_heads", "num_key_value_heads", "skip"}
"""Settings that a layer may have of its own."""
NOT_PLAIN = {
    "quantization_config": "its weights are quantised",
    "transformers_weights": "it names weights that are not its own",
}
"""Settings under which a folder holds something other than plain weights."""


@dataclass(frozen=True)
class Folder:
    """Facts of a model folder, checked as far as that can be without its weights."""

    config: PreTrainedConfig
    shapes: dict[str, tuple[int, ...]]
    """Of every stored tensor, from the headers."""
    dtype: torch.dtype
    """The format of most of its numbers."""


def read_folder(source: str, folder: Path) -> Folder:
    """Read the folder of the model `source`. Raises InputError where it is not a model that can be used."""
    raw = _json(source, folder / "config.json")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"{_named(source)}: its config.json names no model_type.")
    try:
        architecture = architecture_of(model_type)
    except InputError as error:
        raise InputError(f"{_named(source)}: {error}") from error
    _check_plain(source, folder, raw)
    shapes, dtype = _headers(source, folder)
    for name in LAYERS:
        layers = raw.get(name, 1)
        if not isinstance(layers, int) or not 1 <= layers <= len(shapes):
            raise InputError(
                f"{_named(source)}: config.json says {name}={layers} and its weights are {len(shapes):,} tensors: "
                "the two do not belong together."
            )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        check_config(config)
        own = [_heads(layer) for layer in config.per_layer_config] if config.is_heterogeneous else []
    except InputError as error:
        raise InputError(f"{_named(source)}: {error}") from error
    except Exception as error:  # each family's class checks its numbers in its own way
        raise InputError(unreadable(source, error)) from error
    for layer, (queries, keys) in enumerate(own):
        if not (1 <= keys <= queries and queries % keys == 0):
            raise InputError(
                f"{_named(source)}: per_layer_config[{layer}] has {queries} query heads and {keys} KV heads: "
                "the first must be a multiple of the second."
            )
    config._attn_implementation = architecture.implementation  # whatever the file says: a name can be a download
    return Folder(config, shapes, dtype)


def check_weights(source: str, model: PreTrainedModel, stored: dict[str, tuple[int, ...]]) -> None:
    """Raises InputError where a parameter of `model`, without storage yet, is missing or has another shape on disk."""
    for tied, places in places_of(model):
        shape = tuple(model.get_parameter(tied[0]).shape)
        found = [place for place in places if place in stored]
        if not found:
            raise InputError(f"{_named(source)}: tensor {tied[0]!r} is missing: copy or download it again.")
        for place in found:
            if stored[place] != shape:
                raise InputError(
                    f"{_named(source)}: tensor {place!r} is {list(stored[place])} and its config asks for "
                    f"{list(shape)}: the two do not belong together."
                )


def places_of(model: PreTrainedModel) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the names of each parameter of `model`, more than one where it is tied, and those it may have in files."""
    also, prefix = architecture_of(model.config.model_type).stored_as, f"{model.base_model_prefix}."
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for tied in names.values():
        places = {place for name in tied for place in (name, name.removeprefix(prefix), also.get(name, name))}
        yield tied, sorted(places)


def unreadable(source: str, error: Exception) -> str:
    """The sentence for a folder that a library refuses."""
    why = why_invalid(error)
    return f"{_named(source)} is not a model folder that can be read (safetensors weights and a config): {why}"


def _named(source: str) -> str:
    return f"model {source!r}"


def _json(source: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{_named(source)}: {file.name} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{_named(source)}: {file.name} is not a JSON object.")
    return found


def _check_plain(source: str, folder: Path, raw: dict[str, Any]) -> None:
    """Refuses what is not a model's own plain weights, and layers with more of their own than heads."""
    for name, reason in NOT_PLAIN.items():
        if raw.get(name) is not None:
            raise InputError(f"{_named(source)}: {reason} ({name} in config.json): choose one with plain weights.")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{_named(source)} holds an adapter (adapter_config.json): merge it into its model first.")
    per_layer = raw.get("per_layer_config") or {}
    if not isinstance(per_layer, dict):
        raise InputError(f"{_named(source)}: per_layer_config in config.json is not an object.")
    for layer, own in per_layer.items():
        known = isinstance(own, dict) and own.keys() <= OF_A_LAYER and own.get("skip", ["attention"]) == ["attention"]
        if not known or any(type(own[name]) is not int for name in own.keys() - {"skip"}):
            raise InputError(
                f"{_named(source)}: per_layer_config[{layer}] is not what Slim writes: "
                "numbers of heads, or an attention block that is skipped."
            )


def _heads(layer: PreTrainedConfig) -> tuple[int, int]:
    """(query heads, KV heads) of one layer's config."""
    return layer.num_attention_heads, getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads


def _headers(source: str, folder: Path) -> tuple[dict[str, tuple[int, ...]], torch.dtype]:
    """Shapes of all tensors, and the format of most numbers."""
    shapes: dict[str, tuple[int, ...]] = {}
    counted: dict[str, int] = {}
    for file in weight_files(source, folder):
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  it is not a dict
                    part = opened.get_slice(name)
                    shapes[name] = tuple(part.get_shape())
                    size = torch.Size(shapes[name]).numel()
                    counted[part.get_dtype()] = counted.get(part.get_dtype(), 0) + size
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{_named(source)}: {file.name} is cut off or damaged ({error}): copy or download it again."
            ) from error
    most = max(counted, key=lambda name: counted[name], default="nothing")
    if most not in NUMBERS:
        raise InputError(
            f"{_named(source)}: its weights are stored as {most}: choose one that has {', '.join(NUMBERS)}."
        )
    return shapes, NUMBERS[most]


def weight_files(source: str, folder: Path) -> list[Path]:
    """The files with the weights, as transformers looks for them."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        raise InputError(
            f"{_named(source)} has no safetensors weights, and other formats may hold a program that runs as they are "
            "read: where you trust it, load it with transformers and save it with `save_pretrained`."
        )
    named = _json(source, index).get("weight_map")
    files = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
    for file in files:
        if Path(file).name != file or not is_file(folder / file):
            raise InputError(f"{_named(source)}: {index.name} names {file!r}, which is not a file in the folder.")
    return [folder / file for file in files]
