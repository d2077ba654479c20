"""Loading a model: bundled, a folder, a GGUF file or a Hub id; always safetensors, never a folder's own code."""

import hashlib
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import slim.probe  # noqa: F401  registers the attention that some families are loaded with
from slim import bundled
from slim.architectures import Architecture, architecture_of, check_config
from slim.errors import InputError
from slim.hub import reach
from slim.modeling import PerLayerAttentionMixin
from slim.progress import Progress, silent
from slim.records import ModelFacts

ROOM_FOR_WEIGHTS = 0.6
"""Share of a card's memory that weights may take; the rest is for what a forward keeps."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode with frozen weights, its tokenizer, and what is known of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: ModelFacts

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.facts.model_type)


def resolve_device(device: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises InputError when a device is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here: choose `cpu` or `auto`.") from error


def resolve_dtype(dtype: str) -> torch.dtype:
    return torch.float32 if dtype == "auto" else getattr(torch, dtype)


def locate(source: str, progress: Progress = silent) -> str:
    """The folder or Hub id that `source` stands for. Raises InputError when it is neither."""
    if source == bundled.NAME:
        return str(bundled.bundled_model(progress))
    if source.startswith("bundled:"):
        raise InputError(f"model {source!r} is not bundled: the bundled model is {bundled.NAME!r}.")
    path = Path(source).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        digest = _digest([path])[:12]
        return str(bundled.unpack(path, f"{path.stem}-{digest}", progress))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model {source!r} is a folder without a config.json: name a Hugging Face model folder.")
        return str(path)
    if path.exists() or not HUB_ID.fullmatch(source):
        raise InputError(
            f"model {source!r} was not found: name {bundled.NAME!r}, a model folder, a .gguf file "
            "or a Hub id (owner/name)."
        )
    return source


def load(
    source: str = bundled.NAME, *, device: str = "auto", dtype: str = "auto", progress: Progress = silent
) -> Loaded:
    """The model that `source` names on `device`, ready to measure, prune or generate.

    `source` is `bundled:smollm2-135m`, a model folder, a .gguf file or a Hub id. `dtype` auto is float32.

    Raises InputError for an unknown source, a folder that is no model, a family that is not supported, a model
    without safetensors weights, or a device that is not there.
    """
    place = locate(source, progress)
    target = resolve_device(device)
    offline = not Path(place).is_dir() and reach("model", place)[1] is not None  # then only what is here already
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=offline)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_unreadable(source, place, error)) from error
    architecture = check_config(config)
    stored = config.dtype
    placement = placement_of(config, device, resolve_dtype(dtype))
    try:
        model_class: Any = AutoModelForCausalLM
        if config.is_heterogeneous:
            model_class = pruned_class(config)
        model = model_class.from_pretrained(
            place,
            config=config,
            dtype=resolve_dtype(dtype),
            use_safetensors=True,
            attn_implementation=architecture.implementation,
            device_map=placement,
            local_files_only=offline,
        )
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=offline)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(_unreadable(source, place, error)) from error
    model.requires_grad_(False)
    model.eval()
    if placement is None:
        model.to(target)
    name = str(Path(source).expanduser().absolute()) if Path(source).expanduser().exists() else source
    return Loaded(model, tokenizer, facts_of(model, name, _fingerprint(place, model), stored))


def glance(source: str, config: PreTrainedConfig) -> ModelFacts:
    """What a config tells of a model without its weights. The fingerprint is empty."""
    check_config(config)
    with torch.device("meta"):
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model = (pruned_class(config) if config.is_heterogeneous else model_class)(config)
    return facts_of(model, source, "", config.dtype)


def placement_of(config: PreTrainedConfig, device: str, dtype: torch.dtype) -> str | None:
    """transformers' `device_map` for a model: one card after the other where the first cannot hold it, else none."""
    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return None
    size = sum(map(prod, glance("", config).shapes.values())) * dtype.itemsize
    room = torch.cuda.get_device_properties(0).total_memory * ROOM_FOR_WEIGHTS
    return "sequential" if size > room else None


def pruned_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The stock class of `config`'s family, with an attention of its own shape in each layer."""
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family = architecture_of(config.model_type).for_modeling()
    return type(f"Slim{stock.__name__}", (PerLayerAttentionMixin, stock), {"slim_family": family})


def facts_of(
    model: PreTrainedModel, source: str, fingerprint: str, stored: torch.dtype | str | None = None
) -> ModelFacts:
    """What the later stages need to know of `model`; `stored` is its number format on disk, whatever it runs in."""
    dtype = stored if isinstance(stored, torch.dtype) else model.dtype
    config = model.config
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
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
        shapes=shapes,
    )


def _fingerprint(place: str, model: PreTrainedModel) -> str:
    if Path(place).is_dir():
        return _digest(sorted(Path(place).glob("*.safetensors")))
    return str(getattr(model.config, "_commit_hash", None) or place)


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _unreadable(source: str, place: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(place).is_dir():
        return f"model {source!r} is not a model folder that can be read (safetensors weights and a config): {reason}"
    return f"model {source!r} could not be loaded from the Hub: check the name and the connection ({reason})."
