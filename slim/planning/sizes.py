"""The size model: what a model takes once a plan is executed, from its shapes alone, exact to the parameter.

A layer's share of every size is a straight line in its numbers of query heads, KV heads and MLP channels, so a few
numbers per layer give the size of any plan. The board in the browser computes with the same numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slim.core.records import ModelFacts
from slim.models.architectures import architecture_of
from slim.models.columns import channel_mask, kept_channels
from slim.models.units import ALL, NO_ATTENTION, Keep, LayerKeep, head_counts, whole_layer, whole_model
from slim.planning.quantities import QUANTITIES
from slim.planning.record import Size
from slim.planning.slicing import channels_of, check_tensor_shapes, slice_of, whole_blocks_only

CONTEXT = 512
"""Tokens of the prompt that work and reading are counted for."""


@dataclass(frozen=True)
class SizeModel:
    """size = fixed + Σ over the layers that stay of
    rest + [has attention] · block + queries · query + keys · key − removed channels · channel.
    """

    fixed: int
    rest: NDArray[np.int64]  # (L,) what stays of a layer without attention
    block: NDArray[np.int64]  # (L,) what any attention needs: its norms, its output bias
    query: NDArray[np.int64]  # (L,) per query head
    key: NDArray[np.int64]  # (L,) per KV head
    channel: NDArray[np.int64]  # (L,) per MLP channel
    channels: NDArray[np.int64]  # (L,) MLP channels of the original

    def of_layer(self, layer: int, kept: LayerKeep, group: int) -> int:
        """A layer's share."""
        if not kept.layer:
            return 0
        queries, keys = head_counts(kept, group)
        found = self.rest[layer] + (queries > 0) * self.block[layer]
        found += queries * self.query[layer] + keys * self.key[layer]
        if kept.channels != ALL:
            channels = int(self.channels[layer])
            found -= (channels - len(kept_channels(kept, channels))) * self.channel[layer]
        return int(found)

    def of(self, keep: Keep, group: int) -> int:
        """The size of a whole plan."""
        return self.fixed + sum(self.of_layer(layer, kept, group) for layer, kept in enumerate(keep))


class Sizes(Protocol):
    """A size that a budget may limit: what never goes, a layer's share, and the size of a whole plan."""

    @property
    def fixed(self) -> int: ...
    def of_layer(self, layer: int, kept: LayerKeep, group: int) -> int: ...
    def of(self, keep: Keep, group: int) -> int: ...


SizeModels = Mapping[str, SizeModel]
"""By the `field` of a quantity: those of `Size`, and `heads`."""


@dataclass(frozen=True)
class Speedup:
    """How many times faster a plan is, where its work alone (prefill) or its reading alone (decoding) sets the pace."""

    prefill: float
    decode: float


def size_of(facts: ModelFacts, keep: Keep) -> Size:
    """Return the size of `facts`' model pruned to `keep`.

    Raises InputError where single heads of a family cannot go.
    """
    if architecture_of(facts.model_type).whole_blocks and any(0 < len(kept.heads) < facts.heads for kept in keep):
        raise whole_blocks_only(facts.model_type)
    return size_by(size_models(facts), keep, facts.group)


def size_by(models: SizeModels, keep: Keep, group: int) -> Size:
    """The same from size models that are at hand."""
    return Size(**{name: models[name].of(keep, group) for name in Size.model_fields})


def speedup(before: Size, after: Size, rows: int = 1, tokens: int = CONTEXT) -> Speedup:
    """Return the speed-up that removed work and removed reading promise.

    Decoding `rows` answers at once goes over the weights once, and over the cache of `tokens` tokens in every row.
    """

    def read(size: Size) -> int:
        return size.bytes_read_per_token + (rows * tokens - CONTEXT) * size.kv_bytes_per_token

    return Speedup(prefill=QUANTITIES["prefill"].times_faster(before, after), decode=read(before) / read(after))


def size_models(facts: ModelFacts) -> SizeModels:
    """The size models of everything that may stay of `facts`' model.

    Attention works on half of CONTEXT tokens on average; sliding windows are not taken off. Decoding reads the layers,
    the output head and the cache. Raises InputError for facts that are not of one model.
    """
    check_tensor_shapes(facts)
    inside = {name for names in _layer_names(facts) for name in names}
    outside = [shape for name, shape in facts.shapes.items() if name not in inside]
    head = max((prod(shape) for shape in outside if len(shape) == 2), default=0)
    weights = _weights(facts, matrices=False, fixed=sum(map(prod, outside)))
    used = _weights(facts, matrices=True, fixed=head)
    cache = _per_head(facts, key=2 * facts.head_dim * facts.itemsize)
    attended = _per_head(facts, query=2 * 2 * facts.head_dim * (CONTEXT // 2))
    stored, read = _scaled(weights, facts.itemsize), _scaled(used, facts.itemsize)
    if facts.formats:
        each = {name: facts.itemsize_of(name) for name in facts.shapes}
        outside_bytes = {name: prod(facts.shapes[name]) * each[name] for name in facts.shapes if name not in inside}
        head_bytes = max((size for name, size in outside_bytes.items() if len(facts.shapes[name]) == 2), default=0)
        stored = _weights(facts, matrices=False, fixed=sum(outside_bytes.values()), each=each)
        read = _weights(facts, matrices=True, fixed=head_bytes, each=each)
    return {
        "heads": _per_head(facts, query=1),
        "parameters": weights,
        "bytes": stored,
        "kv_bytes_per_token": cache,
        "flops_per_token": _plus(_scaled(used, 2), attended),
        "bytes_read_per_token": _plus(read, _scaled(cache, CONTEXT)),
    }


def _per_head(facts: ModelFacts, query: int = 0, key: int = 0) -> SizeModel:
    """Return a size model that counts heads alone."""
    one, channels = np.ones(facts.layers, dtype=np.int64), [channels_of(facts, layer) for layer in range(facts.layers)]
    return SizeModel(0, 0 * one, 0 * one, query * one, key * one, 0 * one, np.array(channels))


def _layer_names(facts: ModelFacts) -> list[list[str]]:
    prefix = f"{architecture_of(facts.model_type).layers}."
    found: list[list[str]] = [[] for _ in range(facts.layers)]
    for name in facts.shapes:
        if name.startswith(prefix):
            found[int(name.removeprefix(prefix).partition(".")[0])].append(name)
    return found


def _weights(
    facts: ModelFacts, *, matrices: bool, fixed: int, each: Mapping[str, int] = MappingProxyType({})
) -> SizeModel:
    """The model of parameters, of matrices alone or of everything, read off the smallest shapes a layer can have.

    `each` says what a parameter of a tensor counts for, 1 where it does not.
    """
    whole = bool(architecture_of(facts.model_type).whole_blocks)
    names = _layer_names(facts)
    rows = []
    for layer in range(facts.layers):

        def count(kept: LayerKeep, here: list[str] = names[layer]) -> int:
            names = (name for name in here if not matrices or len(facts.shapes[name]) == 2)
            return sum(_left(facts, name, kept) * each.get(name, 1) for name in names)

        def with_heads(*heads: int) -> int:
            return count(LayerKeep(heads=heads))

        rest = count(NO_ATTENTION)
        channels = channels_of(facts, layer)
        channel = (rest - count(LayerKeep(channels=channel_mask([], channels)))) // max(1, channels)
        if whole or facts.heads == 1:
            rows.append((rest, count(whole_layer(facts)) - rest, 0, 0, channel, channels))
            continue
        first = with_heads(0)
        query = with_heads(0, 1) - first if facts.group > 1 else 0
        key = (with_heads(0, facts.group) - first if facts.kv_heads > 1 else first - rest) - query
        rows.append((rest, first - rest - query - key, query, key, channel, channels))
    return SizeModel(fixed, *np.array(rows, dtype=np.int64).T)


def _left(facts: ModelFacts, name: str, kept: LayerKeep) -> int:
    """Parameters that stay of one tensor where its layer keeps `kept`."""
    stays = slice_of(name, architecture_of(facts.model_type), facts, (kept,) * facts.layers)
    if stays == "none":
        return 0
    count = prod(facts.shapes[name])
    return count if stays == "all" else count // facts.shapes[name][stays.dim] * len(stays.entries)


def _scaled(model: SizeModel, factor: int) -> SizeModel:
    return _mapped(model, lambda name, part: part * factor)


def _plus(one: SizeModel, other: SizeModel) -> SizeModel:
    return _mapped(one, lambda name, part: part + getattr(other, name))


def _mapped(model: SizeModel, change: Callable[[str, Any], Any]) -> SizeModel:
    """The model with every part changed but its number of channels."""
    parts = {field.name: change(field.name, getattr(model, field.name)) for field in fields(model)}
    return replace(model, **parts | {"channels": model.channels})


def original_size(facts: ModelFacts) -> Size:
    """Return the sizes of the model before anything is removed."""
    return size_of(facts, whole_model(facts))
