"""Which slice of which tensor stays: the one place that knows, for the sizes and for the surgery alike."""

from dataclasses import dataclass
from typing import Literal

from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.models.architectures import Architecture, architecture_of
from slim.models.columns import kept_channels
from slim.models.units import ALL, Keep, LayerKeep, head_counts, kv_groups

MODELING_FILE = "modeling_slim.py"
"""The modeling file of a checkpoint that is not a stock one."""
MOST_PARAMETERS = 2**48
"""Of a model whose sizes can be added up."""


@dataclass(frozen=True)
class Slice:
    """The entries of one dimension that stay."""

    dim: int
    entries: tuple[int, ...]


def check_tensor_shapes(facts: ModelFacts) -> None:
    """Raises InputError when the shapes are not those of a model with these numbers of layers and heads."""
    architecture = architecture_of(facts.model_type)
    prefix, across = f"{architecture.layers}.", int(architecture.transposed)
    widths = {(architecture.output, 1 - across): facts.heads * facts.head_dim}
    for module, parts in architecture.projections.items():
        blocks = (len(part) * (facts.heads if part.startswith("q") else facts.kv_heads) for part in parts)
        widths[module, across] = facts.head_dim * sum(blocks)
    numbers = set(map(str, range(facts.layers)))
    for name in facts.shapes:
        if name.startswith(prefix) and name.removeprefix(prefix).partition(".")[0] not in numbers:
            raise InputError(f"model: shapes has {name!r} and layers={facts.layers}: it is not a record of one model.")
    for layer in numbers:
        for (module, dim), width in widths.items():
            name = f"{prefix}{layer}.{module}.weight"
            shape = facts.shapes.get(name, ())
            if len(shape) != 2 or shape[dim] != width:
                raise InputError(
                    f"model: shapes has {list(shape)} for {name!r}, which does not fit heads={facts.heads}, "
                    f"kv_heads={facts.kv_heads}, head_dim={facts.head_dim}: it is not a record of one model."
                )
    if facts.parameters > MOST_PARAMETERS:
        raise InputError(f"model: shapes has more than {MOST_PARAMETERS:,} parameters: it is not a record of a model.")


def whole_blocks_only(model_type: str) -> InputError:
    """Return the error of a plan that removes single heads in a family where only whole blocks can go."""
    return InputError(
        f"model type {model_type!r}: single heads cannot be removed, as {architecture_of(model_type).whole_blocks}: "
        "plan whole blocks, with unit `block`, or layers."
    )


def slice_of(name: str, architecture: Architecture, facts: ModelFacts, keep: Keep) -> Slice | Literal["all", "none"]:
    """Return the slice of the parameter `name` that stays: everything, nothing, or some entries of one dimension.

    Raises InputError when single heads go in a family where only whole blocks can.
    """
    prefix = f"{architecture.layers}."
    if not name.startswith(prefix):
        return "all"
    number, _, rest = name.removeprefix(prefix).partition(".")
    kept = keep[int(number)]
    if not kept.layer:
        return "none"
    module, _, kind = rest.rpartition(".")
    if not kept.attention and any(
        module == part or module.startswith(f"{part}.") for part in architecture.only_for_attention
    ):
        return "none"
    across = int(architecture.transposed and kind == "weight")
    found: Slice | Literal["all"] = "all"
    if 0 < len(kept.heads) < facts.heads:
        found = _of_heads(module, kind, across, architecture, facts, kept)
    if found == "all" and kept.channels != ALL:
        found = _of_channels(module, kind, across, architecture, facts, int(number), kept)
    return found


def channels_of(facts: ModelFacts, layer: int) -> int:
    """MLP channels of a layer of the original. Raises InputError where its MLP is not known."""
    architecture = architecture_of(facts.model_type)
    name = f"{architecture.layers}.{layer}.{architecture.mlp_output}.weight"
    if len(facts.shapes.get(name, ())) != 2:
        raise InputError(f"model: shapes has no matrix {name!r}: it is not a record of one model.")
    return facts.shapes[name][int(not architecture.transposed)]


def _of_heads(
    module: str, kind: str, across: int, architecture: Architecture, facts: ModelFacts, kept: LayerKeep
) -> Slice | Literal["all"]:
    """Return an attention projection's slice: outputs of those that make heads, inputs of the one that reads them."""
    if architecture.whole_blocks:
        raise whole_blocks_only(facts.model_type)
    if module in architecture.projections:
        return Slice(across, _outputs(architecture.projections[module], facts, kept.heads))
    if module == architecture.output and kind == "weight":
        return Slice(1 - across, tuple(_entries(kept.heads, facts.head_dim)))
    return "all"


def _of_channels(
    module: str, kind: str, across: int, architecture: Architecture, facts: ModelFacts, layer: int, kept: LayerKeep
) -> Slice | Literal["all"]:
    """Return an MLP projection's slice: outputs of those that make channels, inputs of the one that reads them."""
    channels = channels_of(facts, layer)
    stays = kept_channels(kept, channels)
    if (blocks := architecture.mlp_inputs.get(module)) is not None:
        return Slice(across, tuple(int(block * channels + at) for block in range(blocks) for at in stays))
    if module == architecture.mlp_output and kind == "weight":
        return Slice(1 - across, tuple(map(int, stays)))
    return "all"


def renumbered(name: str, architecture: Architecture, keep: Keep) -> str:
    """The name of a parameter that stays, in a model whose layers are counted without those that are gone."""
    prefix = f"{architecture.layers}."
    if not name.startswith(prefix):
        return name
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{sum(kept.layer for kept in keep[: int(number)])}.{rest}"


def stock_shape(facts: ModelFacts, queries: int) -> bool:
    """Whether transformers' own class of the family takes this number of query heads in every layer.

    Some families' configs refuse a number of heads that does not divide the model's width, or know no other.
    """
    architecture = architecture_of(facts.model_type)
    width = facts.shapes[f"{architecture.layers}.0.{architecture.output}.weight"][int(architecture.transposed)]
    return queries == facts.heads or (architecture.sets_head_size and width % queries == 0)


def is_stock(facts: ModelFacts, keep: Keep) -> bool:
    """Whether a plan gives a checkpoint that every runtime of the family loads: one shape in all layers that stay."""
    shapes = {head_counts(kept, facts.group) for kept in keep if kept.layer}
    queries, _ = next(iter(shapes))
    return len(shapes) == 1 and queries > 0 and stock_shape(facts, queries)


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
