"""The shapes a layer may have, and the best one for what a person wants to remove.

Grouped-query attention needs equally many query heads in every KV group that stays. What a person wants is given as a
gain per head: positive to keep it, negative to let it go; the best legal set has the largest sum of gains over what it
keeps, which without constraints would be exactly the heads with a positive gain.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from slim.core.records import Keep
from slim.planning.record import Change

PINNED = 1e6
"""The gain of a head that is pinned: more than all the others together."""


def best_set(gains: NDArray[np.float64], groups: int, per_group: int) -> tuple[int, ...]:
    """The heads of a set with `per_group` query heads in each of exactly `groups` KV groups, largest sum of `gains`.

    `gains` (K, G). Choosing the best heads of every group and then the best groups is the optimum. Ties keep the lower
    index.
    """
    order = np.argsort(-gains, axis=1, kind="stable")[:, :per_group]
    sums = np.take_along_axis(gains, order, 1).sum(1)
    first = np.sort(np.argsort(-sums, kind="stable")[:groups])
    return tuple(int(group) * gains.shape[1] + int(head) for group in first for head in np.sort(order[group]))


def valid_heads(gains: NDArray[np.float64], kv_heads: int) -> tuple[int, ...]:
    """The legal set of heads with the largest sum of `gains` (H,), nothing at all where no set has a positive one.

    Trying every number of query heads per group is exact. Ties keep the heads with the lower index, and as few per
    group as reach the sum.
    """
    by_group = gains.reshape(kv_heads, -1)  # (K, G)
    descending = -np.sort(-by_group, axis=1)
    best, chosen = 0.0, (0, 0)
    for per_group in range(1, by_group.shape[1] + 1):
        sums = descending[:, :per_group].sum(1)
        value = float(sums[sums > 0].sum())
        if value > best:
            best, chosen = value, (int((sums > 0).sum()), per_group)
    return best_set(by_group, *chosen)


def uniform_heads(gains: NDArray[np.float64], kv_heads: int, shapes: Iterator[tuple[int, int]]) -> Keep:
    """One of `shapes`, (KV groups, query heads per group), for all layers: the one with the largest sum of `gains`."""
    best, found = -np.inf, None
    for groups, per_group in shapes:
        keep = tuple(best_set(row.reshape(kv_heads, -1), groups, per_group) for row in gains)
        value = float(np.sum([row[list(heads)].sum() for row, heads in zip(gains, keep, strict=True)]))
        if value > best:
            best, found = value, keep
    if found is None:
        raise ValueError("no shape to choose from")
    return found


def valid_shapes(kv_heads: int, group: int) -> Iterator[tuple[int, int]]:
    """(KV groups, query heads per group) of every layer that keeps some attention."""
    return product(range(1, kv_heads + 1), range(1, group + 1))


def changes(wanted: NDArray[np.bool_], keep: Keep) -> tuple[Change, ...]:
    """The heads where what was `wanted` to stay (L, H) and the legal shape differ."""
    found = []
    for layer, row in enumerate(wanted):
        for head, stays in enumerate(row):
            if stays != (head in (keep[layer] or ())):
                found.append(Change(layer=layer, head=head, change="removed" if stays else "kept"))
    return tuple(found)
