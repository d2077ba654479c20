"""Which part of which tensor stays: the one place that knows, for the projection and for the surgery alike."""

from dataclasses import dataclass
from typing import Literal

from slim.architectures import Architecture
from slim.records import Keep, ModelFacts


@dataclass(frozen=True)
class Cut:
    """The entries of one dimension that stay."""

    dim: int
    entries: tuple[int, ...]


def kv_groups(heads: tuple[int, ...], group: int) -> tuple[int, ...]:
    """The KV heads that query heads read from, ascending."""
    return tuple(sorted({head // group for head in heads}))


def shape_of(heads: tuple[int, ...], group: int) -> tuple[int, int]:
    """(query heads, KV heads) of a layer."""
    return len(heads), len(kv_groups(heads, group))


def cut_of(name: str, architecture: Architecture, facts: ModelFacts, keep: Keep) -> Cut | Literal["all", "none"]:
    """What stays of the parameter `name`: everything, nothing, or some entries of one dimension."""
    prefix = f"{architecture.layers}."
    if not name.startswith(prefix):
        return "all"
    number, _, rest = name.removeprefix(prefix).partition(".")
    heads = keep[int(number)]
    module, _, kind = rest.rpartition(".")
    if not heads:
        gone = any(module == part or module.startswith(f"{part}.") for part in architecture.only_for_attention)
        return "none" if gone else "all"
    if len(heads) == facts.heads:
        return "all"
    cut: Cut | Literal["all"] = "all"
    if module in architecture.queries:
        cut = Cut(0, _entries(heads, facts.head_dim))
    elif module in architecture.keys_values:
        cut = Cut(0, _entries(kv_groups(heads, facts.group), facts.head_dim))
    elif module == architecture.output and kind == "weight":
        cut = Cut(1, _entries(heads, facts.head_dim))
    return cut


def pruned_shapes(architecture: Architecture, facts: ModelFacts, keep: Keep) -> dict[str, tuple[int, ...]]:
    """The parameters that remain and their shapes."""
    shapes = {}
    for name, shape in facts.shapes.items():
        cut = cut_of(name, architecture, facts, keep)
        if cut == "none":
            continue
        shapes[name] = shape
        if isinstance(cut, Cut):
            shapes[name] = (*shape[: cut.dim], len(cut.entries), *shape[cut.dim + 1 :])
    return shapes


def _entries(blocks: tuple[int, ...], width: int) -> tuple[int, ...]:
    return tuple(block * width + offset for block in blocks for offset in range(width))
