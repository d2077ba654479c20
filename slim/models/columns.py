"""Layers and units as arrays: masks of channels, heads and columns.

Apart from units.py, which says the same without numpy, so that a command starts without it.
"""

import base64
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from slim.core.records import ModelFacts
from slim.models.units import ALL, MLP, LayerKeep, Unit, decoded


def unit_columns(unit: Unit, facts: ModelFacts) -> NDArray[np.bool_]:
    """Return the columns of a layer that each of a unit takes.  # (count, H+2)"""
    columns = unit.columns(facts)
    found = np.zeros((len(columns), facts.heads + 2), dtype=bool)
    for row, taken in zip(found, columns, strict=True):
        row[list(taken)] = True
    return found


def channel_mask(kept: Iterable[int], channels: int) -> str:
    """The channels that stay, of so many in the layer, as `LayerKeep.channels` has them."""
    stays = np.zeros(channels, dtype=bool)
    stays[list(kept)] = True
    return ALL if stays.all() else base64.b64encode(np.packbits(stays, bitorder="little").tobytes()).decode()


def kept_channels(kept: LayerKeep, channels: int) -> NDArray[np.int64]:
    """The channels that stay, ascending, of so many in the layer. Raises ValueError for a mask of another length."""
    if kept.channels == ALL:
        return np.arange(channels)
    stays = np.unpackbits(np.frombuffer(decoded(kept.channels), np.uint8), bitorder="little").astype(bool)
    if not channels <= len(stays) < channels + 8 or stays[channels:].any():
        raise ValueError(f"channels: a mask of {len(stays)} bits does not fit the layer's {channels} channels")
    return np.flatnonzero(stays)


def removed_heads(keep: Sequence[LayerKeep], heads: int) -> NDArray[np.bool_]:
    """The query heads that go, those of removed blocks and layers among them.  # (L, H)"""
    removed = np.ones((len(keep), heads), dtype=bool)
    for layer, kept in enumerate(keep):
        removed[layer, list(kept.heads)] = False
    return removed


def head_columns(removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Removed heads (L, H) as columns (L, H+2): where none stays, the block's column stands for all of theirs."""
    blocks = removed.all(1, keepdims=True)
    return np.concatenate((removed & ~blocks, blocks, np.zeros_like(blocks)), 1)


def removed_columns(keep: Sequence[LayerKeep], heads: int) -> NDArray[np.bool_]:
    """The columns that a plan removes.  # (L, H+2)"""
    removed = head_columns(removed_heads(keep, heads))
    removed[:, MLP] = [not kept.layer for kept in keep]
    return removed
