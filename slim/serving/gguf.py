"""A checkpoint as one GGUF file for llama.cpp: in its family's architecture where all layers are alike, else `deci`."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFType,
    GGUFWriter,
    LlamaFileType,
    TensorNameMap,
    get_tensor_name_map,
    quantize,
)
from torch import Tensor

from slim.core import workspace
from slim.core.errors import InputError
from slim.core.records import StandsForPath
from slim.core.reporter import SILENT, Reporter
from slim.models.load import Loaded, load_model
from slim.models.tokenizer import facts_at_hand
from slim.serving.gguf_stops import add_stops
from slim.serving.gguf_tokenizer import add_vocabulary
from slim.serving.source_types import SourceTypes, kind_of, types_of_source
from slim.targets.runtimes.llama_cpp import RUNTIME

NumberFormat = Literal["auto", "stored", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
FORMATS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q5_0": (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q5_1": (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
}
"""The types that are written here; the others are made by llama.cpp's quantiser."""
STORED = {"float32": "f32", "float64": "f32", "float16": "f16", "bfloat16": "bf16"}
"""Number format that `auto` stands for, by the dtype of the stored model."""
FAMILIES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
"""llama.cpp's architecture of each family, for layers that are alike."""
PAIRED = (MODEL_ARCH.LLAMA, MODEL_ARCH.DECI)
"""Architectures that rotate adjacent entries of a head, and read factors of the rotation from the file."""
LAYER = "model.layers.{}."


@dataclass(frozen=True)
class Exported(StandsForPath):
    """A written file, with notes for the user."""

    path: Path
    architecture: str
    number_format: str
    bytes: int
    notes: tuple[str, ...]


def export_gguf(
    source: str, output: Path, number_format: NumberFormat = "auto", reporter: Reporter = SILENT
) -> Exported:
    """Write the model that `source` names to the new file `output`.

    `auto` takes the types of the GGUF file that the model, or the one it was cut from, was read from; without such a
    file, and with `stored`, the stored number formats. Vectors are written as float32, as llama.cpp needs, and matrices
    whose rows do not fit a type's blocks as float16.

    Raises InputError for a family or a plan that llama.cpp cannot represent, and an `output` that cannot be written.
    """
    facts = facts_at_hand(source)
    if facts is not None:
        _check_family(facts.model_type)
    workspace.check_file(output)
    reporter.progress(0, 2, "Loading the model")
    loaded = load_model(source, device="cpu", dtype=facts.dtype if facts else "auto", exact=True, reporter=reporter)
    _check_family(loaded.facts.model_type)
    if loaded.model.config.hidden_act != "silu":
        raise InputError(
            f"hidden_act={loaded.model.config.hidden_act!r}: model type {loaded.facts.model_type!r} cannot be exported "
            "with it, as llama.cpp computes silu; use `slim serve`, which serves every checkpoint."
        )
    own = types_of_source(source) if number_format == "auto" else None
    stored = number_format in ("auto", "stored")
    chosen = STORED[loaded.facts.dtype] if stored else number_format
    if own:
        chosen = next((name for name, (kind, _) in FORMATS.items() if kind == own.most), chosen)
    state = {name: parameter.data for name, parameter in loaded.model.named_parameters() if parameter.numel()}
    heads = [_heads(state, layer, loaded.facts.head_dim) for layer in range(loaded.facts.layers)]
    arch = _architecture(loaded.facts.model_type, heads)
    notes = []
    if heads[0] == (0, 0):
        heads[0] = (1, 1)
        state |= _silent_head(state, loaded.facts.head_dim)
        notes.append("layer 0 is written with one head whose output is zero, as llama.cpp reads the head size from it")
    factors = _rope_factors(loaded, arch)
    context = _context(loaded)
    if context < loaded.model.config.max_position_embeddings:
        notes.append(f"the context ends at {context} tokens, as llama.cpp does not apply the model's sliding window")
    kinds = {name: STORED[loaded.facts.format_of(name)] if stored and not own else chosen for name in state}
    types = {name: FORMATS[kind][0] for name, kind in kinds.items()}
    if own:
        types |= _types_of_kinds(types, own, get_tensor_name_map(arch, len(heads)))
    tensors = dict(_tensors(state, heads, arch, types))
    if factors is not None:
        tensors["rope_freqs.weight"] = factors, GGMLQuantizationType.F32
    reporter.progress(1, 2, "Writing the file")
    needed = sum(_bytes(tensor, kind) for tensor, kind in tensors.values())
    with (
        workspace.new_file(output, needed) as partial,
        closing(GGUFWriter(partial, MODEL_ARCH_NAMES[arch])) as writer,
    ):
        _add_metadata(writer, loaded, heads, context)
        writer.add_file_type(FORMATS[chosen][1])
        size = state["model.embed_tokens.weight"].shape[0]
        add_vocabulary(writer, loaded.tokenizer, size, source)
        texts = set(loaded.tokenizer.get_vocab().values())
        notes += add_stops(writer, loaded.facts.stops, next((id for id in range(size) if id not in texts), None))
        _write(writer, tensors)
    reporter.progress(2, 2, "Written")
    notes += [own.words(output.stat().st_size)] if own else []
    return Exported(output, MODEL_ARCH_NAMES[arch], chosen, output.stat().st_size, tuple(notes))


def _check_family(model_type: str) -> None:
    """Raise InputError for a family without a GGUF architecture here."""
    if model_type not in FAMILIES:
        raise InputError(
            f"model_type={model_type!r}: it cannot be exported, as GGUF is written for {', '.join(FAMILIES)} only; "
            "use `slim serve`, which serves every checkpoint."
        )


def _architecture(model_type: str, heads: list[tuple[int, int]]) -> MODEL_ARCH:
    """Return llama.cpp's architecture for layers with these heads. Raises InputError where it has none."""
    if len(set(heads)) == 1:
        return FAMILIES[model_type]
    if reason := RUNTIME.alike.get(model_type):
        raise InputError(
            f"model_type={model_type!r}: its layers must be alike to be exported, as {reason}; plan with --uniform."
        )
    return MODEL_ARCH.DECI


def _context(loaded: Loaded) -> int:
    """Return the length in tokens up to which the file computes the same as the model."""
    config = loaded.model.config
    longest = config.max_position_embeddings
    return min(longest, getattr(config, "sliding_window", None) or longest)


def _heads(state: dict[str, Tensor], layer: int, head_dim: int) -> tuple[int, int]:
    """Return (query heads, KV heads) of a layer, (0, 0) where its attention is removed."""
    rows = [state.get(f"{LAYER.format(layer)}self_attn.{name}_proj.weight") for name in "qk"]
    queries, keys = (0 if weight is None else weight.shape[0] // head_dim for weight in rows)
    return queries, keys


def _silent_head(state: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Return the tensors of an attention block with one head whose output is zero, for layer 0."""
    like = state["model.embed_tokens.weight"]
    width = like.shape[1]
    block = {f"self_attn.{name}_proj.weight": like.new_zeros(head_dim, width) for name in "qkv"}
    block["self_attn.o_proj.weight"] = like.new_zeros(width, head_dim)
    block["input_layernorm.weight"] = like.new_ones(width)
    return {LAYER.format(0) + name: tensor for name, tensor in block.items()}


def _rope_factors(loaded: Loaded, arch: MODEL_ARCH) -> Tensor | None:
    """Return the divisors of the rotation's angles (D/2,), or None where the angles are the plain ones.

    Raises InputError for a scaling that such divisors cannot express, or that the architecture does not read.
    """
    rotary = loaded.model.get_submodule("model.rotary_emb")
    rope = loaded.model.config.rope_parameters
    kind, size = rope["rope_type"], loaded.facts.head_dim
    found: Tensor = rotary.inv_freq.double()  # type: ignore[operator, assignment]
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    fixed = kind in ("default", "linear", "llama3") and len(found) == len(plain) and rotary.attention_scaling == 1
    if fixed and torch.allclose(found, plain, rtol=1e-5, atol=0):
        return None
    if not fixed or arch not in PAIRED:
        raise InputError(
            f"rope_type={kind!r}: model type {loaded.facts.model_type!r} cannot be exported with it to llama.cpp's "
            f"architecture {MODEL_ARCH_NAMES[arch]!r}; use `slim serve`, which serves every checkpoint."
        )
    return (plain / found).float()


def _tensors(
    state: dict[str, Tensor],
    heads: list[tuple[int, int]],
    arch: MODEL_ARCH,
    kinds: Mapping[str, GGMLQuantizationType],
) -> Iterator[tuple[str, tuple[Tensor, GGMLQuantizationType]]]:
    """Yield for every weight llama.cpp's name, the tensor in its layout, and the number format."""
    names = get_tensor_name_map(arch, len(heads))
    for name, tensor in state.items():
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise InputError(
                f"tensor={name!r}: llama.cpp's architecture {MODEL_ARCH_NAMES[arch]!r} has no place for it; "
                "use `slim serve`."
            )
        projection = name.rsplit(".", 2)[-2]
        if arch in PAIRED and projection in ("q_proj", "k_proj"):
            queries, keys = heads[int(name.split(".")[2])]
            tensor = _paired(tensor, queries if projection == "q_proj" else keys)  # noqa: PLW2901
        yield place, (tensor, _fitting(tensor, kinds[name]))


def _types_of_kinds(
    types: Mapping[str, GGMLQuantizationType], own: SourceTypes, names: TensorNameMap
) -> dict[str, GGMLQuantizationType]:
    """Return the type that the source's file has for matrices of each tensor's kind, where it has such."""
    found = {}
    for name, kind in types.items():
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        found[name] = own.kinds.get(kind_of(place), kind) if place else kind
    return found


def _paired(weight: Tensor, heads: int) -> Tensor:
    """Return the rows of each head in pairs: the entries of its two halves that transformers rotates together."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _fitting(tensor: Tensor, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    if tensor.dim() == 1:
        return GGMLQuantizationType.F32
    return GGMLQuantizationType.F16 if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _bytes(tensor: Tensor, kind: GGMLQuantizationType) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return tensor.numel() // block * size


def _add_metadata(writer: GGUFWriter, loaded: Loaded, heads: list[tuple[int, int]], context: int) -> None:
    config = loaded.model.config
    alike = len(set(heads)) == 1
    queries, keys = [one for one, _ in heads], [other for _, other in heads]
    writer.add_type(GGUFType.MODEL)
    writer.add_name(Path(loaded.facts.source).name)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(len(heads))
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(queries[0] if alike else queries)
    writer.add_head_count_kv(keys[0] if alike else keys)
    writer.add_key_length(loaded.facts.head_dim)
    writer.add_value_length(loaded.facts.head_dim)
    writer.add_rope_dimension_count(loaded.facts.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write(writer: GGUFWriter, tensors: dict[str, tuple[Tensor, GGMLQuantizationType]]) -> None:
    """Write the header with every tensor's place, then one tensor at a time, so that few are in memory twice."""
    for name, (tensor, kind) in tensors.items():
        writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.float32), _bytes(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in tensors.values():
        writer.write_tensor_data(quantize(tensor.float().numpy(), kind))
