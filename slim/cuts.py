"""Which part of which tensor stays: the one place that knows, for the projection and for the surgery alike."""

from dataclasses import dataclass
from typing import Literal

from slim.architectures import Architecture
from slim.errors import InputError
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
    """What stays of the parameter `name`: everything, nothing, or some entries of one dimension.

    Raises InputError when single heads go in a family where only whole blocks can.
    """
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
    if architecture.whole_blocks:
        raise InputError(
            f"model type {facts.model_type!r}: single heads cannot be removed, as {architecture.whole_blocks}: "
            "plan whole blocks, with unit `block`."
        )
    cut: Cut | Literal["all"] = "all"
    across = architecture.transposed and kind == "weight"
    if module in architecture.projections:
        cut = Cut(int(across), _outputs(architecture.projections[module], facts, heads))
    elif module == architecture.output and kind == "weight":
        cut = Cut(int(not across), tuple(_entries(heads, facts.head_dim)))
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


def _outputs(parts: tuple[str, ...], facts: ModelFacts, heads: tuple[int, ...]) -> tuple[int, ...]:
    """The outputs that stay of a projection whose parts stand one after the other."""
    entries: list[int] = []
    start = 0
    for part in parts:
        by_query = part.startswith("q")
        width = len(part) * facts.head_dim
        blocks = heads if by_query else kv_groups(heads, facts.group)
        entries += [start + entry for entry in _entries(blocks, width)]
        start += (facts.heads if by_query else facts.kv_heads) * width
    return tuple(entries)


def _entries(blocks: tuple[int, ...], width: int) -> list[int]:
    return [block * width + offset for block in blocks for offset in range(width)]
