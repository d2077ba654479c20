"""The valid shapes of a layer, and the best one for what is asked to go.

Grouped-query attention needs equally many query heads in every KV group that stays. The input is a threshold and a
cost of keeping each head; a head's margin is the threshold less its cost, positive where it is to stay. The best valid
set has the largest sum of margins, which without constraints would be exactly the heads with a positive one. Costs are
integers (WeightedRanks) and so is a threshold that is a score, so sums are exact in any order, ties are ties, and the
board in the browser finds the same sets.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim.models.columns import removed_heads
from slim.models.units import Keep, LayerKeep, Shape
from slim.planning.record import Change


def best_set(costs: NDArray[Any], groups: int, per_group: int) -> tuple[int, ...]:
    """The heads of a set with `per_group` query heads in each of exactly `groups` KV groups, least sum of `costs`.

    `costs` (K, G). Choosing the best heads of every group and then the best groups is the optimum. Ties keep the lower
    index.
    """
    order = np.argsort(costs, axis=1, kind="stable")[:, :per_group]
    sums = np.take_along_axis(costs, order, 1).sum(1)
    first = np.sort(np.argsort(sums, kind="stable")[:groups])
    return tuple(int(group) * costs.shape[1] + int(head) for group in first for head in np.sort(order[group]))


def in_parts(threshold: float, whole: int) -> float:
    """Return a threshold in parts of `whole`, as costs are: the very integer where it is the score of one."""
    parts = threshold * whole
    nearest = round(parts)
    return nearest if nearest / whole == threshold else parts


def valid_heads(costs: NDArray[np.int64], threshold: float, kv_heads: int, per_group: Iterable[int]) -> tuple[int, ...]:
    """The valid set of heads with the largest sum of margins, nothing at all where no set has a positive one.

    `costs` (H,) and `threshold` are in the same parts. Trying every number of query heads in `per_group` is exact. Ties
    keep the heads with the lower index, and as few per group as reach the sum.
    """
    shapes = product(range(1, kv_heads + 1), per_group)
    return best_valid_heads(costs, threshold, kv_heads, shapes, gone=True)[1]


def best_valid_heads(
    costs: NDArray[np.int64], threshold: float, kv_heads: int, shapes: Iterable[Shape], gone: bool
) -> tuple[float, tuple[int, ...]]:
    """The largest sum of margins of a set of one of `shapes`, and that set; nothing at all counts 0 where it may be."""
    by_group = costs.reshape(kv_heads, -1)  # (K, G)
    ascending = np.sort(by_group, axis=1)
    best, chosen = (0.0, (0, 0)) if gone else (-np.inf, (0, 0))
    for groups, per_group in sorted(shapes, key=lambda shape: (shape[1], shape[0])):
        spent = np.sort(ascending[:, :per_group].sum(1))[:groups]
        value = threshold * (groups * per_group) - int(spent.sum())
        if value > best:
            best, chosen = value, (groups, per_group)
    return best, best_set(by_group, *chosen)


def uniform_heads(
    costs: NDArray[np.int64], thresholds: Sequence[float], kv_heads: int, shapes: Iterable[Shape]
) -> Keep:
    """One of `shapes` for all layers: the one with the largest sum of margins; `costs` are (L, H)."""
    together = 0.0
    for threshold in thresholds:  # one after another, as the board does
        together += threshold
    best, found = -np.inf, None
    for groups, per_group in shapes:
        sets = [best_set(row.reshape(kv_heads, -1), groups, per_group) for row in costs]
        spent = sum(int(row[list(heads)].sum()) for row, heads in zip(costs, sets, strict=True))
        value = together * (groups * per_group) - spent
        if value > best:
            best, found = value, sets
    if found is None:
        raise ValueError("no shape to choose from")
    return tuple(LayerKeep(heads=heads) for heads in found)


def changes(wanted: NDArray[np.bool_], keep: Keep) -> tuple[Change, ...]:
    """The heads where what was `wanted` to stay (L, H) and the valid shape differ."""
    stays = ~removed_heads(keep, wanted.shape[1])
    return tuple(
        Change(layer=int(layer), head=int(head), change="kept" if stays[layer, head] else "removed")
        for layer, head in np.argwhere(stays != wanted)
    )
