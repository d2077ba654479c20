"""Where a head looks on a real row."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slim.models.architectures import decoder_layers
from slim.models.load import Loaded
from slim.models.probe import Probe

LONGEST = 1024
"""Tokens of a row that are looked at. The model is causal: what comes later changes nothing before it."""


def pieces(loaded: Loaded, ids: Tensor) -> list[str]:
    """Each token of a row (T,) as text."""
    return [
        str(loaded.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for token in ids.tolist()
    ]


@torch.no_grad()
def attention(loaded: Loaded, ids: Tensor, layer: int, head: int) -> NDArray[np.float32]:
    """Where a head looks on the first tokens of a row: weight of each key (column) for each query, in one forward.

    `ids` (T,) is a row, of which at most `LONGEST` tokens are read. Each query's weights sum to 1, or to less where the
    family has a sink; NaN where it cannot see a key.  # (T, T)
    """
    watch = _Watch(loaded, layer, head)
    with watch:
        loaded.model(ids[None, :LONGEST].to(loaded.model.device), use_cache=False, logits_to_keep=1)
    return watch.weights


class _Watch(Probe):
    """Writes out the softmax of one head."""

    def __init__(self, loaded: Loaded, layer: int, head: int) -> None:
        super().__init__(loaded.model, loaded.architecture)
        self.head = head
        block = decoder_layers(loaded.model, loaded.architecture)[layer]
        self.watched = block.get_submodule(loaded.architecture.attention)
        self.weights: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        if module is self.watched:
            self.weights = self._softmax(q, k, mask, options).cpu().numpy()
        return super().attend(module, q, k, v, mask, **options)

    def _softmax(self, q: Tensor, k: Tensor, mask: Tensor | None, options: Mapping[str, Any]) -> Tensor:
        query, keys = q[0, self.head].double(), k[0, self.head // (q.shape[1] // k.shape[1])].double()  # (T, D)
        scores = options["scaling"] * query @ keys.T
        if (softcap := options.get("softcap")) is not None:
            scores = softcap * (scores / softcap).tanh()
        length = len(query)
        seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril() if mask is None else mask[0, 0]
        scores = scores.masked_fill(~seen, -torch.inf)
        if (sinks := options.get("s_aux")) is not None:
            sink = sinks[self.head].double().expand(length, 1)
            scores = torch.cat([scores, sink], -1)
        return scores.softmax(-1)[:, :length].masked_fill(~seen, torch.nan).float()


def received(weights: NDArray[np.float32], query: int | None = None) -> NDArray[np.float64]:
    """The weight each key gets from one query, or on average over the queries that can see it.  # (T,)"""
    if query is not None:
        return np.nan_to_num(weights[query].astype(np.float64))
    seen = np.isfinite(weights)
    return np.nansum(weights, axis=0, dtype=np.float64) / np.maximum(1, seen.sum(0))


def coarse(weights: NDArray[np.float32], most: int = 160) -> tuple[NDArray[np.float64], int]:
    """The map in at most `most` × `most` cells, and the tokens to a side of a cell.

    A cell holds the weight its keys get together, on average over its queries; NaN where none of them is seen.
    """
    side = -(-len(weights) // most)
    count = -(-len(weights) // side)
    room = count * side - len(weights)
    padded = np.pad(weights.astype(np.float64), ((0, room), (0, room)), constant_values=np.nan)
    cells = padded.reshape(count, side, count, side)
    seen = np.isfinite(cells)
    queries = np.maximum(1, seen.any(3).sum(1))  # (count, count): the queries of a cell that see a key of it
    total = np.where(seen, cells, 0).sum((1, 3)) / queries
    return np.where(seen.any((1, 3)), total, np.nan), side
