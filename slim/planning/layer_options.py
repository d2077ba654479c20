"""What may stay of every layer, and what each of these options costs: what a budget chooses from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import comb
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from slim.calibration.forecast import removed_columns
from slim.calibration.sketch import MLP, LossSketch
from slim.core.records import Keep, ModelFacts, Unit
from slim.models.architectures import architecture_of
from slim.planning.build import pinned, units_per_layer
from slim.planning.record import Pins
from slim.planning.shapes import PINNED, best_set, valid_shapes
from slim.planning.slicing import shape_of

Kept = tuple[int, ...] | None
ENUMERATED = 4096
"""Legal sets of a layer up to which all are tried; beyond, the best of each shape by the heads' own costs."""


@dataclass(frozen=True)
class LayerCandidates:
    """What may stay of each layer, one option for every shape, and the score rows of what then goes."""

    kept: list[list[Kept]]
    effects: list[NDArray[np.float64]]  # per layer (options, R)
    tokens: float

    @cached_property
    def alone(self) -> list[NDArray[np.float64]]:
        """Forecast nats/token of each option if nothing else went.  # per layer (options,)"""
        return [0.5 * np.square(effect).sum(1) / self.tokens for effect in self.effects]

    def joint(self, chosen: Sequence[int]) -> float:
        """Forecast nats/token of one option per layer together."""
        return float(0.5 * np.square(self._total(chosen)).sum() / self.tokens)

    def beside(self, chosen: Sequence[int]) -> list[NDArray[np.float64]]:
        """What the joint cost would be, but for a constant, if one layer took another option and the rest stayed."""
        total = self._total(chosen)
        return [
            alone + effect @ (total - effect[option]) / self.tokens
            for alone, effect, option in zip(self.alone, self.effects, chosen, strict=True)
        ]

    def keep(self, chosen: Sequence[int]) -> Keep:
        """The plan that takes one option per layer."""
        return tuple(kept[option] for kept, option in zip(self.kept, chosen, strict=True))

    def _total(self, chosen: Sequence[int]) -> NDArray[np.float64]:
        return np.sum([effect[option] for effect, option in zip(self.effects, chosen, strict=True)], axis=0)


def layer_candidates(
    facts: ModelFacts,
    sketch: LossSketch,
    unit: Unit,
    pins: Pins,
    shape: tuple[int, int] | None = None,
    measured: "MeasuredEffects | None" = None,
) -> LayerCandidates | None:
    """The options of every layer by the rows of `sketch`; None where the pins leave a layer none.

    With a `shape`, (KV groups, query heads per group), a layer keeps that or goes whole. Effects that are `measured`
    take the place of the sketch's.
    """
    fixed = pinned(np.zeros((facts.layers, units_per_layer(unit, facts))), pins, unit, facts)
    fixed = np.repeat(fixed, facts.heads // fixed.shape[1], 1)  # (L, H)
    shapes, gone = _shapes(facts, unit, shape), None if shape or unit == "layer" else ()
    every = None if measured else _every(facts, shapes, gone)
    kept, effects = [], []
    for layer, pins_here in enumerate(fixed):
        scores = sketch.scores[:, layer]  # (R, H+2)
        if measured:
            sets = _Sets(measured.kept[layer], facts.heads)
            legal = [option == gone or shape_of(option or (), facts.group) in _counts(shapes) for option in sets.kept]
        else:
            sets = every or _Sets([gone, *_best_sets(facts, scores, pins_here, shapes)], facts.heads)
            legal = [True] * len(sets.kept)
        fits = ((pins_here <= 0) | sets.stays).all(1) & ((pins_here >= 0) | ~sets.stays).all(1) & legal
        places = np.flatnonzero(fits)
        if not len(places):
            return None
        effect = measured.effects[layer][places] if measured else sets.columns[places] @ scores.T  # (options, R)
        best: dict[tuple[int, int] | None, int] = {}
        for index in np.argsort(np.square(effect).sum(1), kind="stable"):
            option = sets.kept[places[index]]
            best.setdefault(None if option is None else shape_of(option, facts.group), int(index))
        kept.append([sets.kept[places[index]] for index in best.values()])
        effects.append(effect[list(best.values())].astype(np.float64))
    return LayerCandidates(kept, effects, float((measured or sketch).tokens.sum()))


class MeasuredEffects(Protocol):
    """Effects of what each layer may keep, however they were measured."""

    @property
    def kept(self) -> list[list[Kept]]: ...
    @property
    def effects(self) -> list[NDArray[np.float32]]: ...  # per layer (options, R)
    @property
    def tokens(self) -> NDArray[np.int64]: ...


def all_candidates(facts: ModelFacts, sketch: LossSketch) -> list[list[Kept]]:
    """What each layer may keep when heads, groups or blocks go: every legal set, or the best of each shape."""
    shapes = _shapes(facts, "block" if architecture_of(facts.model_type).whole_blocks else "head", None)
    every = _every(facts, shapes, ())
    if every:
        return [every.kept] * facts.layers
    free = np.zeros(facts.heads)
    return [[(), *_best_sets(facts, sketch.scores[:, layer], free, shapes)] for layer in range(facts.layers)]


def _counts(shapes: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """(query heads, KV heads) of shapes."""
    return {(groups * per_group, groups) for groups, per_group in shapes}


def _every(facts: ModelFacts, shapes: list[tuple[int, int]], gone: Kept) -> "_Sets | None":
    """Every legal set; None where there are too many."""
    if sum(comb(facts.kv_heads, n) * comb(facts.group, m) ** n for n, m in shapes) > ENUMERATED:
        return None
    return _Sets([gone, *(heads for n, m in shapes for heads in valid_sets(facts, n, m))], facts.heads)


class _Sets:
    """What may stay of a layer, as masks over heads (n, H) and columns of the sketch that go (n, H+2)."""

    def __init__(self, kept: list[Kept], heads: int) -> None:
        self.kept = kept
        self.stays = np.zeros((len(kept), heads), dtype=bool)
        for place, heads_kept in enumerate(kept):
            self.stays[place, list(heads_kept or ())] = True
        columns = removed_columns(~self.stays)
        columns[:, MLP] = [heads_kept is None for heads_kept in kept]
        self.columns = columns.astype(np.float32)


def valid_sets(facts: ModelFacts, groups: int, per_group: int) -> Iterator[tuple[int, ...]]:
    """Every set of query heads with `per_group` of them in each of `groups` KV groups."""
    within = [*combinations(range(facts.group), per_group)]
    for chosen in combinations(range(facts.kv_heads), groups):
        for heads in product(within, repeat=groups):
            yield tuple(at * facts.group + head for at, here in zip(chosen, heads, strict=True) for head in here)


def _shapes(facts: ModelFacts, unit: Unit, shape: tuple[int, int] | None) -> list[tuple[int, int]]:
    """(KV groups, query heads per group) that a layer which keeps some attention may have."""
    whole = (facts.kv_heads, facts.group)
    if shape or unit in ("block", "layer"):
        return [shape or whole]
    return [(n, m) for n, m in valid_shapes(*whole) if unit == "head" or m == facts.group]


def _best_sets(
    facts: ModelFacts, scores: NDArray[np.float32], pins: NDArray[np.float64], shapes: list[tuple[int, int]]
) -> list[tuple[int, ...]]:
    """The best set of each shape by the heads' own costs."""
    costs = np.square(scores[:, : facts.heads], dtype=np.float64).sum(0)
    gains = np.where(pins != 0, np.sign(pins) * PINNED * (1 + costs.sum()), costs).reshape(facts.kv_heads, -1)
    return [best_set(gains, n, m) for n, m in shapes]
