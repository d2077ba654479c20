"""The bytes that a plan's tensors take in the number format of a target."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from slim.core.records import ModelFacts
from slim.models.architectures import architecture_of
from slim.models.units import Keep, LayerKeep, head_counts, whole_model
from slim.planning.record import Served
from slim.planning.slicing import slice_of
from slim.targets.matrices import KINDS, Matrix
from slim.targets.target import Target

WIDE = 4
"""Query heads for each KV head of the first layer, from which some mixtures store values with more bits."""


def served(facts: ModelFacts, keep: Keep, target: Target) -> Served:
    """Return the model and what stays of it as a target reads them."""
    return Served(
        target=target.name,
        before=served_bytes(facts, whole_model(facts), target),
        after=served_bytes(facts, keep, target),
        fallbacks=len(fallen_back(facts, keep, target)),
    )


def served_bytes(facts: ModelFacts, keep: Keep, target: Target) -> int:
    """Return the bytes of all tensors of the file that is served, without its header."""
    return _bytes(facts, matrices(facts, keep, target.runtime.form == "gguf"), target)


def fallen_back(facts: ModelFacts, keep: Keep, target: Target) -> dict[str, str]:
    """Return the types that tensors are stored in because their rows do not fit the target's format, by name."""
    found = {}
    for one in matrices(facts, keep, target.runtime.form == "gguf"):
        if target.format and (type_ := target.format.falls_back(one)):
            found[one.name] = type_
    return found


class ServedSizes:
    """The bytes of a format as a size that a budget may limit.

    A layer's share is that beside whole layers; the size of a plan is exact, as some formats count the layers.
    """

    def __init__(self, facts: ModelFacts, target: Target) -> None:
        self.facts, self.target, self.known = facts, target, dict[tuple[Any, ...], int]()
        self.whole = whole_model(facts)
        shares = (self.of_layer(layer, kept, facts.group) for layer, kept in enumerate(self.whole))
        self.fixed = self.of(self.whole, facts.group) - sum(shares)

    def of_layer(self, layer: int, kept: LayerKeep, group: int) -> int:
        key = (layer, kept.layer, kept.channels, *head_counts(kept, group))
        if key not in self.known:
            keep = (*self.whole[:layer], kept, *self.whole[layer + 1 :])
            names = _names(self.facts)[layer] if kept.layer else []
            found = matrices(self.facts, keep, self.target.runtime.form == "gguf", names)
            self.known[key] = _bytes(self.facts, found, self.target)
        return self.known[key]

    def of(self, keep: Keep, group: int) -> int:
        return served_bytes(self.facts, keep, self.target)


def _bytes(facts: ModelFacts, tensors: Iterable[Matrix], target: Target) -> int:
    if target.format is None:
        return sum(prod(one.shape) * facts.itemsize_of(one.name) for one in tensors)
    return sum(target.format.bytes_of(one) for one in tensors)


def matrices(facts: ModelFacts, keep: Keep, silent: bool = False, names: Sequence[str] | None = None) -> list[Matrix]:
    """Return every tensor that stays, or those of these `names`, layer by layer.

    With `silent` a first layer without attention has one head that adds nothing, as files for llama.cpp have.
    """
    first = next((layer for layer, kept in enumerate(keep) if kept.layer), 0)
    if silent and not keep[first].attention:
        keep = (*keep[:first], LayerKeep(heads=(0,), channels=keep[first].channels), *keep[first + 1 :])
    queries, groups = head_counts(keep[first], facts.group)
    tied = not any(kind_of(name) == "head" for name in facts.shapes)
    counted = {
        "value": sum(kept.attention for kept in keep),
        "down": sum(kept.layer for kept in keep),
    }
    wide = groups > 0 and queries // groups >= WIDE
    found = []
    for name in facts.shapes if names is None else names:
        if (shape := shape_of(facts, name, keep)) is None:
            continue
        kind, layer = kind_of(name), _layer(facts, name)
        place = sum(kept.attention if kind == "value" else kept.layer for kept in keep[: max(0, layer)])
        kind = "head" if kind == "embedding" and tied else kind
        found.append(Matrix(name, kind, shape, place, counted.get(kind, 1), wide))
    return found


def shape_of(facts: ModelFacts, name: str, keep: Keep) -> tuple[int, ...] | None:
    """Return the shape of a tensor where the model keeps `keep`; None where it goes."""
    stays, shape = slice_of(name, architecture_of(facts.model_type), facts, keep), facts.shapes[name]
    if stays == "none":
        return None
    if stays == "all":
        return shape
    return tuple(len(stays.entries) if dim == stays.dim else size for dim, size in enumerate(shape))


def kind_of(name: str) -> str:
    """Return the kind of a tensor by its name."""
    return KINDS.get(name.rsplit(".", 2)[-2], "other")


def _names(facts: ModelFacts) -> list[list[str]]:
    """Return the names of each layer's tensors."""
    found: list[list[str]] = [[] for _ in range(facts.layers)]
    for name in facts.shapes:
        if (layer := _layer(facts, name)) >= 0:
            found[layer].append(name)
    return found


def _layer(facts: ModelFacts, name: str) -> int:
    prefix = f"{architecture_of(facts.model_type).layers}."
    return int(name.removeprefix(prefix).partition(".")[0]) if name.startswith(prefix) else -1
