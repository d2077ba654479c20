"""The candidates of every layer and their costs, which a budget chooses from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import comb
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from slim.calibration.loss_sketch import LossSketch
from slim.core.records import ModelFacts
from slim.models.architectures import architecture_of
from slim.models.columns import removed_columns, removed_heads
from slim.models.units import NO_ATTENTION, UNITS, Keep, LayerKeep, Shape, UnitName, head_counts
from slim.planning.build import pinned
from slim.planning.record import Pins
from slim.planning.shapes import best_set
from slim.planning.valid_choices import ValidChoice

ENUMERATED = 4096
"""Valid sets of a layer up to which all are tried; beyond, the best of each shape by the heads' own costs."""


@dataclass(frozen=True)
class LayerCandidates:
    """The candidates of each layer, one for every shape, and the score rows of the parts that then go."""

    kept: list[list[LayerKeep]]
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
        """Return the joint cost, but for a constant, if one layer took another option and the rest stayed."""
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
    unit: UnitName,
    pins: Pins,
    choice: ValidChoice,
    measured: "MeasuredEffects | None" = None,
) -> LayerCandidates | None:
    """The candidates of every layer by the rows of `sketch`; None where the pins leave a layer none.

    A layer keeps what `choice` allows. Effects that are `measured` take the place of
    the sketch's.
    """
    fixed = pinned(pins, unit, facts)
    fixed = np.repeat(fixed, facts.heads // fixed.shape[1], 1)  # (L, H)
    shapes, gone = choice.shapes, choice.gone
    counts = {(groups * per_group, groups) for groups, per_group in shapes}
    every = None if measured else _every(facts, shapes, gone)
    kept, effects = [], []
    for layer, pins_here in enumerate(fixed):
        scores = sketch.scores[:, layer]  # (R, H+2)
        if measured:
            sets = _Sets(measured.kept[layer], facts.heads)
            valid = [option == gone or head_counts(option, facts.group) in counts for option in sets.kept]
        else:
            best_sets = _best_sets(facts, scores, pins_here, shapes)
            sets = every or _Sets([*([gone] if gone else []), *best_sets], facts.heads)
            valid = [True] * len(sets.kept)
        fits = ((pins_here <= 0) | sets.stays).all(1) & ((pins_here >= 0) | ~sets.stays).all(1) & valid
        places = np.flatnonzero(fits)
        if not len(places):
            return None
        effect = measured.effects[layer][places] if measured else sets.columns[places] @ scores.T  # (options, R)
        best: dict[tuple[bool, int, int], int] = {}
        for index in np.argsort(np.square(effect).sum(1), kind="stable"):
            option = sets.kept[places[index]]
            best.setdefault((option.layer, *head_counts(option, facts.group)), int(index))
        kept.append([sets.kept[places[index]] for index in best.values()])
        effects.append(effect[list(best.values())].astype(np.float64))
    return LayerCandidates(kept, effects, float((measured or sketch).tokens.sum()))


class MeasuredEffects(Protocol):
    """Effects of what each layer may keep, however they were measured."""

    @property
    def kept(self) -> list[list[LayerKeep]]: ...
    @property
    def effects(self) -> list[NDArray[np.float32]]: ...  # per layer (options, R)
    @property
    def tokens(self) -> NDArray[np.int64]: ...


def all_candidates(facts: ModelFacts, sketch: LossSketch) -> list[list[LayerKeep]]:
    """Return each layer's candidates where heads, groups or blocks go: all valid sets, or the best of each shape."""
    shapes = UNITS["block" if architecture_of(facts.model_type).whole_blocks else "head"].shapes(facts)
    every = _every(facts, shapes, NO_ATTENTION)
    if every:
        return [every.kept] * facts.layers
    free = np.zeros(facts.heads, dtype=np.int64)
    return [[NO_ATTENTION, *_best_sets(facts, sketch.scores[:, layer], free, shapes)] for layer in range(facts.layers)]


def _every(facts: ModelFacts, shapes: Sequence[Shape], gone: LayerKeep | None) -> "_Sets | None":
    """Every valid set; None where there are too many."""
    if sum(comb(facts.kv_heads, n) * comb(facts.group, m) ** n for n, m in shapes) > ENUMERATED:
        return None
    sets = (LayerKeep(heads=heads) for n, m in shapes for heads in valid_sets(facts, n, m))
    return _Sets([*([gone] if gone else []), *sets], facts.heads)


class _Sets:
    """The candidates of a layer, as masks over heads (n, H) and columns of the sketch that go (n, H+2)."""

    def __init__(self, kept: list[LayerKeep], heads: int) -> None:
        self.kept = kept
        self.stays = ~removed_heads(kept, heads)
        self.columns = removed_columns(kept, heads).astype(np.float32)


def valid_sets(facts: ModelFacts, groups: int, per_group: int) -> Iterator[tuple[int, ...]]:
    """Every set of query heads with `per_group` of them in each of `groups` KV groups."""
    within = [*combinations(range(facts.group), per_group)]
    for chosen in combinations(range(facts.kv_heads), groups):
        for heads in product(within, repeat=groups):
            yield tuple(at * facts.group + head for at, here in zip(chosen, heads, strict=True) for head in here)


def _best_sets(
    facts: ModelFacts, scores: NDArray[np.float32], pins: NDArray[np.int64], shapes: Sequence[Shape]
) -> list[LayerKeep]:
    """The best set of each shape by the heads' own costs."""
    damage = np.square(scores[:, : facts.heads], dtype=np.float64).sum(0)
    decided = -pins * (1 + damage.sum()) * (1 + facts.heads)
    costs = np.where(pins != 0, decided, -damage).reshape(facts.kv_heads, -1)
    return [LayerKeep(heads=best_set(costs, n, m)) for n, m in shapes]
