"""A layer's kept units as a record, masks of its channels, and the units as they divide a layer, by the definition."""

import base64
import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from slim.core.records import ModelFacts
from slim.models.columns import channel_mask, head_columns, kept_channels, removed_columns, removed_heads, unit_columns
from slim.models.load import Loaded
from slim.models.units import (
    ALL,
    NO_ATTENTION,
    NO_LAYER,
    UNITS,
    LayerKeep,
    UnitName,
    figure_shape,
    head_counts,
    whole_layer,
    whole_model,
)
from tests.pico import keeping, shorthand

COUNTS = [(6, 2), (6, 6), (4, 1), (8, 4)]


@pytest.fixture(params=COUNTS, ids=str)
def facts(request: pytest.FixtureRequest, pico: Callable[..., Loaded]) -> ModelFacts:
    """Of llamas with and without grouped heads."""
    heads, kv_heads = request.param
    return pico("llama", heads=heads, kv_heads=kv_heads, layers=3).facts


def subsets(count: int) -> list[tuple[int, ...]]:
    return [chosen for size in range(count + 1) for chosen in itertools.combinations(range(count), size)]


def test_a_layer_says_what_it_keeps(facts: ModelFacts) -> None:
    """Heads, none of them, or nothing at all; equal ones are one key."""
    assert LayerKeep() == NO_ATTENTION != NO_LAYER
    assert (NO_ATTENTION.layer, NO_ATTENTION.attention, NO_ATTENTION.channels) == (True, False, ALL)
    assert (NO_LAYER.layer, NO_LAYER.attention, NO_LAYER.heads) == (False, False, ())
    assert whole_layer(facts) == LayerKeep(heads=tuple(range(facts.heads)))
    assert whole_model(facts) == (whole_layer(facts),) * 3
    assert len(dict.fromkeys([LayerKeep(heads=(0, 2)), LayerKeep(heads=(0, 2)), LayerKeep(heads=(0,))])) == 2
    for kept in (NO_LAYER, NO_ATTENTION, LayerKeep(heads=(0, 2), channels=channel_mask([1], 5))):
        assert LayerKeep.model_validate_json(kept.model_dump_json()) == kept
    assert shorthand(keeping((), None, (0, 3))) == ((), None, (0, 3))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"heads": [1, 0]}, r"heads=\[1, 0\]: name each head once, in ascending order"),
        ({"heads": [2, 2]}, r"heads=\[2, 2\]: name each head once, in ascending order"),
        ({"heads": [-1]}, "greater than or equal to 0"),
        ({"heads": [0.5]}, "integer"),
        ({"heads": None}, "tuple"),
        ({"layer": False, "heads": [0]}, "layer=false: nothing of a removed layer can stay"),
        ({"layer": False, "channels": "/w=="}, "layer=false: nothing of a removed layer can stay"),
        ({"layer": None}, "boolean"),
        ({"channels": "some of them"}, "channels: it is neither `all` nor base64"),
        ({"channels": "AAA"}, "channels: it is neither `all` nor base64"),
        ({"channels": "AA\n=="}, "channels: it is neither `all` nor base64"),
        ({"channels": "ÄÖÜß"}, "channels: it is neither `all` nor base64"),
        ({"channels": None}, "string"),
        ({"neurons": 3}, "Extra inputs"),
    ],
    ids=str,
)
def test_what_a_layer_cannot_keep(said: dict[str, object], words: str) -> None:
    """The message names the field."""
    with pytest.raises(ValidationError, match=words):
        LayerKeep.model_validate(said)


def mask_by_hand(kept: tuple[int, ...], channels: int) -> str:
    """Channel 0 is the lowest bit of the first byte."""
    bits = sum(1 << channel for channel in kept)
    return base64.b64encode(bits.to_bytes(-(-channels // 8), "little")).decode()


@pytest.mark.parametrize("channels", range(1, 21))
def test_masks_of_few_channels(channels: int) -> None:
    """There and back, all subsets of up to eleven and many of more; only the whole set has a word of its own."""
    rng, every = np.random.default_rng(channels), tuple(range(channels))
    some = [tuple(np.flatnonzero(rng.random(channels) < 0.5).tolist()) for _ in range(500)]
    for kept in [*(subsets(channels) if channels < 12 else some), (), every, every[1:], every[:-1]]:
        mask = channel_mask(kept, channels)
        assert mask == (ALL if kept == every else mask_by_hand(kept, channels))
        assert tuple(kept_channels(LayerKeep(channels=mask), channels).tolist()) == kept
    assert channel_mask(np.array(every), channels) == ALL


def test_masks_of_many_channels() -> None:
    """As many as large models have, whole bytes or not."""
    rng = np.random.default_rng(0)
    for channels in (8192, 11_007, 28_672, 65_537):
        kept = np.flatnonzero(rng.random(channels) < rng.random())
        mask = channel_mask(kept.tolist(), channels)
        assert mask == mask_by_hand(tuple(kept.tolist()), channels)
        np.testing.assert_array_equal(kept_channels(LayerKeep(channels=mask), channels), kept)


@pytest.mark.parametrize("other", [0, 1, 8, 11, 17, 40])
def test_a_mask_of_another_length_is_refused(other: int) -> None:
    """More or fewer bytes than the layer's channels take, or a bit that stands for none of them."""
    with pytest.raises(ValueError, match=f"a mask of 16 bits does not fit the layer's {other} channels"):
        kept_channels(LayerKeep(channels=channel_mask([0, 11], 12)), other)


def test_removed_columns_are_those_of_the_plan(facts: ModelFacts) -> None:
    """A head that goes, or the block where none stays, and the MLP of a layer that goes; of any three layers."""
    rng, heads = np.random.default_rng(0), facts.heads
    every = [None, *subsets(heads)]
    for _ in range(200):
        kept = [every[place] for place in rng.integers(0, len(every), 3)]
        keep = keeping(*kept)
        gone = [[head not in (stays or ()) for head in range(heads)] for stays in kept]
        assert removed_heads(keep, heads).tolist() == gone
        expected = [
            [*(one and bool(stays) for one in row), not stays, stays is None]
            for row, stays in zip(gone, kept, strict=True)
        ]
        assert removed_columns(keep, heads).tolist() == expected
        without_layers = [[*row[:-1], False] for row in expected]
        assert head_columns(removed_heads(keep, heads)).tolist() == without_layers
        for stays, layer in zip(kept, keep, strict=True):
            groups = {head // facts.group for head in stays or ()}
            assert head_counts(layer, facts.group) == (len(stays or ()), len(groups))


def test_columns_of_every_unit(facts: ModelFacts) -> None:
    """One row for each that a layer has, together every head once, or the block, or the block and the MLP."""
    heads, group = facts.heads, facts.group
    expected = {
        "head": [{head} for head in range(heads)],
        "group": [set(range(start, start + group)) for start in range(0, heads, group)],
        "block": [{heads}],
        "layer": [{heads, heads + 1}],
    }
    assert [*UNITS] == [*expected]
    for name, unit in UNITS.items():
        found = unit_columns(unit, facts)
        assert unit.name == name
        assert found.shape == (unit.count(facts), heads + 2)
        assert [set(np.flatnonzero(row).tolist()) for row in found] == expected[name]
        assert figure_shape(unit, facts) == ((3,) if name in ("block", "layer") else (3, len(expected[name])))


def test_shapes_of_every_unit(facts: ModelFacts) -> None:
    """Each (KV groups, heads in each) that some set of the unit's has where all groups that stay keep equally many."""
    for unit in UNITS.values():
        takes = [set(np.flatnonzero(row).tolist()) - {facts.heads + 1} for row in unit_columns(unit, facts)]
        shapes = set()
        for chosen in subsets(len(takes)):
            gone = set().union(*(takes[index] for index in chosen))
            stays = [head for head in range(facts.heads) if head not in gone and facts.heads not in gone]
            left = Counter(head // facts.group for head in stays)
            if len(set(left.values())) == 1:
                shapes.add((len(left), max(left.values())))
        assert set(unit.shapes(facts)) == shapes
        assert len(unit.shapes(facts)) == len(shapes)


def test_what_is_left_when_a_unit_is_gone() -> None:
    """A layer's MLP stays but where layers go; which units cut slices, and of which a layer has one."""
    assert {name: unit.gone for name, unit in UNITS.items()} == {
        "head": NO_ATTENTION,
        "group": NO_ATTENTION,
        "block": NO_ATTENTION,
        "layer": NO_LAYER,
    }
    assert [name for name, unit in UNITS.items() if unit.slices] == ["head", "group"]
    assert [name for name, unit in UNITS.items() if unit.single] == ["block", "layer"]
    assert [name for name, unit in UNITS.items() if unit.whole_layers] == ["layer"]


def test_a_unit_that_is_not_there_is_refused() -> None:
    """With the names of those that are."""
    names = TypeAdapter(UnitName)
    assert [names.validate_python(name) for name in UNITS] == [*UNITS]
    for name in ("neuron", "", "HEAD", None, 3):
        with pytest.raises(ValidationError, match=r"choose one of head, group, block, layer|valid string"):
            names.validate_python(name)
