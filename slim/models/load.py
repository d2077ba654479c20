"""Loading a model: bundled, a folder, a GGUF file or a Hub id; always safetensors, never a folder's own code."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import slim
import slim.models.probe  # noqa: F401  registers the attention that some families are loaded with
from slim.core import paths
from slim.core.errors import InputError
from slim.core.fields import Layers
from slim.core.hub import snapshot
from slim.core.records import ModelFacts
from slim.core.reporter import SILENT, Reporter
from slim.core.resources import memory_there
from slim.models import bundled
from slim.models.architectures import Architecture, architecture_of, check_config
from slim.models.folder_check import ADAPTER, Folder, read_folder, unreadable
from slim.models.folder_tokenizer import of_folder
from slim.models.modeling import PerLayerAttentionMixin
from slim.models.source import GENERATION_CONFIG, HUB_ID, digest, weights_of
from slim.models.stops import stop_at, stop_tokens
from slim.models.stored_layers import unwrapped, with_stored_layers
from slim.models.stored_tensors import check_weights

ROOM_FOR_WEIGHTS = 0.6
"""Share of a device's memory that weights may take; the rest is for what a forward keeps."""


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode with frozen weights, its tokenizer, and what is known of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: ModelFacts

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.facts.model_type)

    @property
    def stops(self) -> tuple[int, ...]:
        """The ids of the tokens that end an answer, in order."""
        found = stop_tokens(self.tokenizer, self.model.config, self.model.generation_config)
        return tuple(sorted(one.id for one in found))


def resolve_device(device: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises InputError when a device is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here: choose `cpu` or `auto`.") from error


def resolve_dtype(dtype: str) -> torch.dtype:
    """`auto` is float32. Raises InputError for a name that is not a floating-point format."""
    found = torch.float32 if dtype == "auto" else getattr(torch, dtype, None)
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(
            f"dtype={dtype!r} is not a number format of weights: name float32, bfloat16, float16 or float64."
        )
    return found


def locate(source: str, reporter: Reporter = SILENT) -> str:
    """The folder or Hub id that `source` stands for. Raises InputError when it is neither."""
    if source == bundled.NAME:
        return str(bundled.bundled_model(reporter))
    if source.startswith("bundled:"):
        raise InputError(f"model {source!r} is not bundled: the bundled model is {bundled.NAME!r}.")
    path = paths.local(source, "model")
    if path.suffix == ".gguf" and path.is_file():
        return str(bundled.unpack(path, f"{path.stem}-{digest([path])[:12]}", reporter))
    if path.is_dir():
        if (path / ADAPTER).is_file() and not (path / "config.json").is_file():
            raise InputError(
                f"model {source!r} is an adapter ({ADAPTER}) and holds no model: load it on its model with peft, save "
                "what `merge_and_unload()` gives together with the tokenizer, and name that folder."
            )
        if not (path / "config.json").is_file():
            raise InputError(f"model {source!r} is a folder without a config.json: name a Hugging Face model folder.")
        return str(path)
    if path.exists() or not HUB_ID.fullmatch(source):
        raise InputError(
            f"model {source!r} was not found: name {bundled.NAME!r}, a model folder, a .gguf file "
            "or a Hub id (owner/name)."
        )
    return source


def load_model(
    source: str | os.PathLike[str] = bundled.NAME,
    *,
    device: str = "auto",
    dtype: str = "auto",
    layers: Layers = "memory",
    exact: bool = False,
    reporter: Reporter = SILENT,
) -> Loaded:
    """The model that `source` names on `device`, ready to measure, prune or generate.

    `source` is `bundled:smollm2-135m`, a model folder, a .gguf file or a Hub id. `dtype` auto is float32; where
    the load is to be `exact`, a wider one takes its place that holds every stored weight as it is. On a CPU the weights
    of the layers can stay in their `file` until a layer runs; `auto` leaves them there where they would take most of
    the memory.

    Raises InputError for an unknown source, a folder that is not a model, a family that is not supported, a model whose
    weights are not safetensors or not those of its config, or a device that is not there.
    """
    source = os.fspath(source)
    place = Path(locate(source, reporter))
    of_hub = not place.is_dir()
    folder = snapshot(str(place)) if of_hub else place
    target, wanted = resolve_device(device), resolve_dtype(dtype)
    stored = read_folder(source, folder)
    if exact:
        wanted = torch.promote_types(wanted, stored.widest)
    placement = placement_of(stored.config, device, wanted)
    try:
        model_class, empty = checked_class(source, stored)
        model: Any
        in_file = in_files(layers, empty.num_parameters(), target, wanted)
        if in_file:
            model = with_stored_layers(model_class, stored, wanted)
        else:
            model, report = model_class.from_pretrained(
                None if stored.wrapped else str(folder),
                config=stored.config,
                state_dict=dict(unwrapped(stored)) if stored.wrapped else None,
                dtype=wanted,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=stored.config._attn_implementation,
                device_map=placement,
                local_files_only=True,
                output_loading_info=True,
            )
            if report["missing_keys"]:
                raise InputError(f"model {source!r}: tensor {min(report['missing_keys'])!r} is missing: copy it again.")
        if stored.wrapped or in_file:
            model.generation_config = generation_config(folder, stored.config)
        tokenizer = tried(of_folder(str(folder)))
        check_tokens(source, tokenizer, stored.config)
        stops = stop_at(model, tokenizer)
    except InputError:
        raise
    except Exception as error:  # numbers that no class expects fail anywhere in it
        raise InputError(unreadable(source, error)) from error
    model.requires_grad_(False)
    model.eval()
    if placement is None and model.device != target:
        model.to(target)
    named = paths.local(source, "model")
    name = str(named.absolute()) if named.exists() else source
    fingerprint = folder.name if of_hub else digest(weights_of(folder))  # a commit, or the weights
    facts = model_facts(model, name, fingerprint, stored.dtype, stored.formats(empty))
    return Loaded(model, tokenizer, facts.model_copy(update={"stops": stops}))


def generation_config(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    """Return the generation config of a model folder, from the model's `config` where it has no file of its own."""
    if (folder / GENERATION_CONFIG).is_file():
        return GenerationConfig.from_pretrained(str(folder))
    return GenerationConfig.from_model_config(config)


def model_in_files(source: str, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model in a `folder`, with its layers in their files. Raises InputError as `load_model` does."""
    stored = read_folder(source, folder)
    return with_stored_layers(checked_class(source, stored)[0], stored, dtype).requires_grad_(False).eval()


def checked_class(source: str, stored: Folder) -> tuple[Any, PreTrainedModel]:
    """Return the class of the model in a folder, and a model of it without storage.

    Raises InputError where the weights in the folder are not those of its config.
    """
    model_class: Any = class_of(stored.config)
    with torch.device("meta"):
        empty = model_class(stored.config)
    empty.tie_weights()
    check_weights(source, empty, stored.tensors)
    return model_class, empty


def in_files(layers: Layers, parameters: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the weights of a model's layers stay in their files."""
    if device.type != "cpu" or layers == "memory":
        return False
    return layers == "file" or parameters * dtype.itemsize > ROOM_FOR_WEIGHTS * memory_there(device)


def tried(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that has encoded something. Raises what its libraries do where its settings let it encode nothing."""
    tokenizer("a")
    return tokenizer


def check_tokens(source: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise InputError for a tokenizer with tokens that the embedding has no rows for."""
    rows = config.vocab_size
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        raise InputError(
            f"model {source!r}: its tokenizer has {len(beyond)} tokens, {beyond[0][1]!r} the first, beyond the "
            f"{rows:,} rows of its embedding: load the model with transformers, call "
            f"`model.resize_token_embeddings({beyond[-1][0] + 1})` and save it, or take them out of the tokenizer."
        )


def facts_from_config(source: str, config: PreTrainedConfig, folder: Folder | None = None) -> ModelFacts:
    """Return the facts of a model from its config, without its weights, and from the headers of these in its folder
    where that is at hand. The fingerprint is empty.

    Raises InputError for one that no model can be built from.
    """
    check_config(config)
    try:
        with torch.device("meta"):
            model = class_of(config)(config)
        if folder is None:
            return model_facts(model, source, "", config.dtype)
        return model_facts(model, source, "", folder.dtype, folder.formats(model))
    except InputError:
        raise
    except Exception as error:  # as in `load`
        raise InputError(unreadable(source, error)) from error


def placement_of(config: PreTrainedConfig, device: str, dtype: torch.dtype) -> str | None:
    """transformers' `device_map` for a model: one card after the other where the first cannot hold it, else none."""
    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return None
    size = facts_from_config("", config).parameters * dtype.itemsize
    room = torch.cuda.get_device_properties(0).total_memory * ROOM_FOR_WEIGHTS
    return "sequential" if size > room else None


def class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """transformers' class for `config`, or Slim's on top of it where layers differ; never one from a folder."""
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return pruned_class(config) if config.is_heterogeneous else stock


def pruned_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The stock class of `config`'s family, with an attention of its own shape in each layer."""
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family = architecture_of(config.model_type).for_modeling()
    return type(f"Slim{stock.__name__}", (PerLayerAttentionMixin, stock), {"slim_family": family})


def model_facts(
    model: PreTrainedModel,
    source: str,
    fingerprint: str,
    stored: torch.dtype | str | None = None,
    formats: Mapping[str, torch.dtype] = MappingProxyType({}),
) -> ModelFacts:
    """Return the facts of `model` for later stages; `stored` is the number format of most of it on disk, whatever it
    runs in, and `formats` those of single tensors.
    """
    dtype = stored if isinstance(stored, torch.dtype) else model.dtype
    config = model.config
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    others: dict[str, Any] = {name: str(own).removeprefix("torch.") for name, own in formats.items() if own != dtype}
    heads = config.num_attention_heads
    return ModelFacts(
        source=source,
        fingerprint=fingerprint,
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype=str(dtype).removeprefix("torch."),
        itemsize=dtype.itemsize,
        formats=others,
        shapes=shapes,
    )


def device_name(loaded: Loaded) -> str:
    """The device, and which card it is."""
    device = loaded.model.device
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
