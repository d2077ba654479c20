"""The units of removal, and the parts that a layer keeps: the one place that knows the units.

A unit is a row of UNITS, which calibration, planner, board, command line and pages iterate. All of them meet in the
columns of a layer: one for every query head, then BLOCK for all that its attention block adds to the residual stream,
then MLP for all that its MLP adds. These are what the probe gates, what the loss sketch has a score for, and what a
unit takes with it.
"""

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from slim.core.records import ModelFacts, Record

BLOCK, MLP = -2, -1
"""The columns after a layer's heads."""
ALL = "all"
"""Of the MLP's channels."""
Shape = tuple[int, int]
"""(KV groups, query heads in each of them) of a layer that keeps some attention."""


class LayerKeep(Record):
    """The parts of one layer of the original that stay."""

    layer: bool = Field(default=True, description="false: the whole layer is removed, MLP and all")
    heads: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="query heads that stay, ascending; empty: the attention block is removed"
    )
    channels: str = Field(
        default=ALL,
        description="MLP channels that stay: `all`, or a base64 bit mask, channel 0 the lowest bit of its first byte",
    )

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if any(one >= other for one, other in zip(self.heads, self.heads[1:], strict=False)):
            raise ValueError(f"heads={list(self.heads)}: name each head once, in ascending order")
        if not self.layer and (self.heads or self.channels != ALL):
            raise ValueError("layer=false: nothing of a removed layer can stay; leave out heads and channels")
        if self.channels != ALL:
            decoded(self.channels)
        return self

    @property
    def attention(self) -> bool:
        """Whether the layer has an attention block."""
        return bool(self.heads)


Keep = tuple[LayerKeep, ...]
"""The parts that stay of each layer of the original, the first one first."""
# Constructed, not validated: a command that starts would build the validator for these two alone.
NO_ATTENTION, NO_LAYER = LayerKeep.model_construct(), LayerKeep.model_construct(layer=False)


def whole_layer(facts: ModelFacts) -> LayerKeep:
    """Return a layer of which nothing is removed."""
    return LayerKeep(heads=tuple(range(facts.heads)))


def whole_model(facts: ModelFacts) -> Keep:
    """The plan that removes nothing."""
    return (whole_layer(facts),) * facts.layers


def kv_groups(heads: Iterable[int], group: int) -> tuple[int, ...]:
    """The KV heads that query heads read from, ascending; `group` query heads share one."""
    return tuple(sorted({head // group for head in heads}))


def head_counts(kept: LayerKeep, group: int) -> tuple[int, int]:
    """(query heads, KV heads) that a layer keeps."""
    return len(kept.heads), len(kv_groups(kept.heads, group))


@dataclass(frozen=True)
class Unit:
    """One way to take a layer apart: what is removed as one."""

    name: str
    title: str
    noun: str
    count: Callable[[ModelFacts], int]
    """How many of it a layer has."""
    columns: Callable[[ModelFacts], tuple[tuple[int, ...], ...]]
    """The columns of a layer that each of them takes; `unit_columns` has them as an array."""
    shapes: Callable[[ModelFacts], list[Shape]]
    """The shapes of a layer of which some stay."""
    gone: LayerKeep
    """A layer without any of it."""
    single: bool = False
    """Whether a layer has one of it, so that figures of it are (L,) and not (L, count)."""
    slices: bool = False
    """Whether removing some of a layer's cuts slices out of the attention's projections."""

    @property
    def whole_layers(self) -> bool:
        """Whether a layer goes whole, so that those which stay are alike by themselves."""
        return not self.gone.layer


def _heads(facts: ModelFacts, size: int) -> tuple[tuple[int, ...], ...]:
    """Columns of `size` neighboring heads each."""
    return tuple(tuple(range(start, start + size)) for start in range(0, facts.heads, size))


UNITS: dict[str, Unit] = {
    unit.name: unit
    for unit in (
        Unit(
            "head",
            "Heads",
            "head",
            count=lambda facts: facts.heads,
            columns=lambda facts: _heads(facts, 1),
            shapes=lambda facts: [*product(range(1, facts.kv_heads + 1), range(1, facts.group + 1))],
            gone=NO_ATTENTION,
            slices=True,
        ),
        Unit(
            "group",
            "KV groups",
            "KV group",
            count=lambda facts: facts.kv_heads,
            columns=lambda facts: _heads(facts, facts.group),
            shapes=lambda facts: [(groups, facts.group) for groups in range(1, facts.kv_heads + 1)],
            gone=NO_ATTENTION,
            slices=True,
        ),
        Unit(
            "block",
            "Attention blocks",
            "attention block",
            count=lambda facts: 1,
            columns=lambda facts: ((BLOCK,),),
            shapes=lambda facts: [(facts.kv_heads, facts.group)],
            gone=NO_ATTENTION,
            single=True,
        ),
        Unit(
            "layer",
            "Layers",
            "layer",
            count=lambda facts: 1,
            columns=lambda facts: ((BLOCK, MLP),),
            shapes=lambda facts: [(facts.kv_heads, facts.group)],
            gone=NO_LAYER,
            single=True,
        ),
    )
}
"""Adding a unit is a row here."""


def _known(name: str) -> str:
    if name not in UNITS:
        raise ValueError(f"choose one of {', '.join(UNITS)}")
    return name


UnitName = Annotated[str, AfterValidator(_known)]


def figure_shape(unit: Unit, facts: ModelFacts) -> tuple[int, ...]:
    """Of a figure of every unit: (L, count), or (L,) where a layer has one."""
    return (facts.layers,) if unit.single else (facts.layers, unit.count(facts))


def decoded(mask: str) -> bytes:
    """Return the bits of a channel mask. Raises ValueError for a text that is neither `all` nor base64."""
    try:
        return base64.b64decode(mask, validate=True)
    except ValueError as error:
        raise ValueError("channels: it is neither `all` nor base64") from error
