"""A model folder is never trusted: what it claims is checked before anything is built or allocated.

Its config is read as data and the shapes of its weights from their headers alone. Its code is never looked at.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from slim.core.errors import InputError
from slim.core.paths import is_file
from slim.core.records import why_invalid
from slim.models.architectures import Architecture, architecture_of, check_config
from slim.models.source import WEIGHTS
from slim.models.stored_tensors import NUMBERS, StoredTensor, has_own_head, named, places_of, quantised

WRAPPER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Names that a compiler or a trainer puts between the parts of a weight's name."""
ADAPTER = "adapter_config.json"
"""The file that makes a folder that of an adapter."""
LAYERS = ("num_hidden_layers", "n_layer")
"""Names that families give to their number of layers."""
OF_A_LAYER = {"num_attention_heads", "num_key_value_heads", "skip"}
"""Settings that a layer may have of its own."""
ROUNDS_AS_IT_RUNS = "bitnet"
"""The method of a `quantization_config` under which a model rounds plain weights whenever it runs."""


QUANTISED = (".weight", ".qweight", ".weight_packed")
"""Endings of what holds a layer's matrix; whole numbers there are codes of it."""


@dataclass(frozen=True)
class Folder:
    """Facts of a model folder, checked as far as that can be without its weights."""

    config: PreTrainedConfig
    """As the weights have it: its head is tied to the embedding where the files hold no other."""
    tensors: dict[str, StoredTensor]
    """Every stored tensor, from the headers, by its name without what a wrapper added."""
    files: list[Path]
    dtype: torch.dtype
    """The format of most of its numbers."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all stored tensors."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def parameters(self) -> int:
        """Numbers in all stored tensors."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    @property
    def widest(self) -> torch.dtype:
        """The number format that holds every stored weight exactly."""
        kinds = {tensor.kind for tensor in self.tensors.values()}
        return reduce(torch.promote_types, (NUMBERS[kind] for kind in kinds & NUMBERS.keys()))

    @property
    def wrapped(self) -> bool:
        """Whether a wrapper changed names, so that transformers would not find the weights."""
        return any(name != tensor.place for name, tensor in self.tensors.items())

    def formats(self, model: PreTrainedModel) -> dict[str, torch.dtype]:
        """Return the stored number format of each parameter of `model` that holds numbers, tied ones once."""
        found = {}
        for names, places in places_of(model):
            place = next((place for place in places if place in self.tensors), None)
            if place is not None and model.get_parameter(names[0]).numel():
                found[names[0]] = NUMBERS[self.tensors[place].kind]
        return found


def read_folder(source: str, folder: Path) -> Folder:
    """Read the folder of the model `source`. Raises InputError where it is not a model that can be used."""
    raw = _json(source, folder / "config.json")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"{named(source)}: its config.json names no model_type.")
    try:
        architecture = architecture_of(model_type)
    except InputError as error:
        raise InputError(f"{named(source)}: {error}") from error
    _check_plain(source, folder, raw)
    files = weight_files(source, folder)
    tensors = _unwrapped(_headers(source, files), architecture)
    dtype = _most(source, tensors)
    for name in LAYERS:
        if name in raw:
            _check_layers(source, name, raw[name], tensors, architecture)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        check_config(config)
        own = [_heads(layer) for layer in config.per_layer_config] if config.is_heterogeneous else []
    except InputError as error:
        raise InputError(f"{named(source)}: {error}") from error
    except Exception as error:  # each family's class checks its numbers in its own way
        raise InputError(unreadable(source, error)) from error
    _check_layers(source, "num_hidden_layers", config.num_hidden_layers, tensors, architecture)
    for layer, (queries, keys) in enumerate(own):
        if not (1 <= keys <= queries and queries % keys == 0):
            raise InputError(
                f"{named(source)}: per_layer_config[{layer}] has {queries} query heads and {keys} KV heads: "
                "the first must be a multiple of the second."
            )
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")  # left over from how it was once loaded: the weights are plain
    if getattr(config, "tie_word_embeddings", False) and has_own_head(config, tensors, files):
        config.tie_word_embeddings = False
    config._attn_implementation = architecture.implementation  # whatever the file says: a name can be a download
    return Folder(config, tensors, files, dtype)


def unreadable(source: str, error: Exception) -> str:
    """The sentence for a folder that a library refuses."""
    why = why_invalid(error)
    return f"{named(source)} is not a model folder that can be read (safetensors weights and a config): {why}"


def _json(source: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{named(source)}: {file.name} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{named(source)}: {file.name} is not a JSON object.")
    return found


def _check_plain(source: str, folder: Path, raw: dict[str, Any]) -> None:
    """Refuses what is not a model's own plain weights, and layers with more of their own than heads."""
    if raw.get("transformers_weights") is not None:
        raise InputError(
            f"{named(source)}: it names weights that are not its own (transformers_weights in config.json): choose "
            "one with plain weights."
        )
    how = raw.get("quantization_config")
    if isinstance(how, dict) and how.get("quant_method") == ROUNDS_AS_IT_RUNS:
        raise InputError(
            f"{named(source)}: its weights are quantised whenever it runs (quantization_config in config.json): "
            "choose one with plain weights."
        )
    if (folder / ADAPTER).exists():
        raise InputError(
            f"{named(source)} holds an adapter ({ADAPTER}): merge it into its model first, or where its "
            "weights are merged already, take the adapter's files out of the folder."
        )
    per_layer = raw.get("per_layer_config") or {}
    if not isinstance(per_layer, dict):
        raise InputError(f"{named(source)}: per_layer_config in config.json is not an object.")
    for layer, own in per_layer.items():
        known = isinstance(own, dict) and own.keys() <= OF_A_LAYER and own.get("skip", ["attention"]) == ["attention"]
        if not known or any(type(own[name]) is not int for name in own.keys() - {"skip"}):
            raise InputError(
                f"{named(source)}: per_layer_config[{layer}] is not what Slim writes: "
                "numbers of heads, or an attention block that is skipped."
            )


def _heads(layer: PreTrainedConfig) -> tuple[int, int]:
    """(query heads, KV heads) of one layer's config."""
    return layer.num_attention_heads, getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads


def _headers(source: str, files: list[Path]) -> list[StoredTensor]:
    """Return all tensors of the files, without their numbers."""
    found = []
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  it is not a dict
                    part = opened.get_slice(name)
                    found.append(StoredTensor(name, tuple(part.get_shape()), part.get_dtype()))
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{named(source)}: {file.name} is cut off or damaged ({error}): copy or download it again."
            ) from error
    return found


def _unwrapped(tensors: list[StoredTensor], architecture: Architecture) -> dict[str, StoredTensor]:
    """Return tensors by the names that they had before a compiler, a trainer or an adapter wrapped the model.

    Every name loses the part that stands before the layers. Names that two tensors would share stay as they
    are.
    """
    names = {tensor.place: WRAPPER.sub("", tensor.place) for tensor in tensors}
    short = architecture.layers.partition(".")[2]
    for layers in (architecture.layers, short):
        before = {name.partition(f"{layers}.0.")[0] for name in names.values() if f"{layers}.0." in name}
        if before:
            wrapper = min(before, key=len) if len(before) == 1 else ""
            names = {place: name.removeprefix(wrapper) for place, name in names.items()}
            break
    if len(set(names.values())) < len(names):
        names = {place: place for place in names}
    return {names[tensor.place]: tensor for tensor in tensors}


def _most(source: str, tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    """Return the format of most numbers. Raises InputError for weights that are not plain numbers."""
    counted: Counter[str] = Counter()
    for name, tensor in tensors.items():
        counted[tensor.kind] += torch.Size(tensor.shape).numel()
        if tensor.kind not in NUMBERS and name.endswith(QUANTISED):
            raise InputError(f"{named(source)}: {quantised(tensor.place, tensor.kind)}")
    most = max(counted, key=lambda kind: counted[kind], default="nothing")
    if most not in NUMBERS:
        raise InputError(
            f"{named(source)}: its weights are stored as {most}: choose one that has {', '.join(NUMBERS)}."
        )
    return NUMBERS[most]


def _check_layers(
    source: str, name: str, layers: Any, tensors: Mapping[str, StoredTensor], architecture: Architecture
) -> None:
    """Raises InputError where a config counts other layers than the files hold."""
    prefixes = {f"{architecture.layers}.", f"{architecture.layers.partition('.')[2]}."}
    parts = {
        stored.removeprefix(prefix).partition(".")[0]
        for stored in tensors
        for prefix in prefixes
        if stored.startswith(prefix)
    }
    held = len({part for part in parts if part.isdecimal()})
    if type(layers) is not int or layers < 1 or layers != held:
        raise InputError(
            f"{named(source)}: config.json says {name}={layers} and its weights hold {held} layers: the two do not "
            f"belong together; copy or download both again, or write {held} there where a tool wrote another number."
        )


def weight_files(source: str, folder: Path) -> list[Path]:
    """The files with the weights, as transformers looks for them."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        raise InputError(
            f"{named(source)} has no safetensors weights, and other formats may hold a program that runs as they are "
            "read: where you trust it, load it with transformers and save it with `save_pretrained`."
        )
    listed = _json(source, index).get("weight_map")
    files = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
    for file in files:
        if Path(file).name != file or not is_file(folder / file):
            raise InputError(f"{named(source)}: {index.name} names {file!r}, which is not a file in the folder.")
    return [folder / file for file in files]
