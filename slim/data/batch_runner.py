"""Run rows in batches: what is cached is looked up, what does not fit in memory is halved, what is done is cached."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from torch import Tensor

from slim.core.cache import Arrays, JointCache, RowCache
from slim.core.errors import SlimError
from slim.core.reporter import Step
from slim.data import tasks

MORE_TEXTS = ("out of memory", "not enough memory")
"""Missed by accelerate: CUDA's runtime, without the full stop it looks for, and PyTorch's CPU allocator on Windows."""


def run_batches(
    encoded: tasks.Encoded,
    chosen: Sequence[int],
    compute: Callable[[tasks.Batch], list[Arrays]],
    kept: RowCache | JointCache,
    batch_size: int,
    padding_side: str,
    step: Step,
) -> list[Arrays]:
    """The arrays of each of the `chosen` rows, in their order, computed in batches of rows of like length.

    `step` counts the tokens. A batch that does not fit in memory is halved, and so are those after it. Raises SlimError
    when a single row does not fit.
    """
    found: dict[int, Arrays] = {}
    for index in chosen:
        cached = kept.get(encoded.rows[index], encoded.start(index))
        if cached is not None:
            found[index] = cached
            step.advance(len(encoded.rows[index]), cached=True)
    pending = sorted((index for index in chosen if index not in found), key=lambda index: len(encoded.rows[index]))
    size = batch_size
    while pending:
        part = pending[:size]
        (batch,) = tasks.batches(subset(encoded, part), len(part), padding_side)
        try:
            arrays = compute(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(part) == 1:
                raise SlimError(
                    f"out of memory on a single row of {len(encoded.rows[part[0]]):,} tokens: "
                    "choose a smaller max_length, a smaller dtype or another device."
                ) from error
            size = max(1, len(part) // 2)
            step.note(f"{len(part)} rows at a time did not fit in memory, so it went on with {size}")
            continue
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for place, result in zip(batch.rows, arrays, strict=True):
            index = part[place]
            kept.put(encoded.rows[index], encoded.start(index), result)
            found[index] = result
            step.advance(len(encoded.rows[index]))
        pending = pending[len(part) :]
    return [found[index] for index in chosen]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):  # whatever their texts
        return True
    text = str(error)
    # As a plain error, because accelerate reads the only argument of a RuntimeError, which may be no text.
    return should_reduce_batch_size(RuntimeError(text)) or any(words in text for words in MORE_TEXTS)


def no_numbers(where: str, batch: tasks.Batch, fine: Tensor) -> SlimError:
    """Names the first row of `batch` that is not `fine` (B,)."""
    row = int((~fine).nonzero()[0, 0])
    ids = batch.ids[row][batch.valid[row]].tolist()
    return SlimError(
        f"the model gives NaN or infinite numbers in {where}, on the row of {len(ids)} tokens that starts with "
        f"{ids[:8]}: try dtype float32, or leave that row out."
    )


def stacked(rows: Sequence[Arrays]) -> Arrays:
    """The rows' arrays side by side, rows first; those of different lengths are filled up with NaN at the end."""
    return {name: _stack([row[name] for row in rows]) for name in rows[0]}


def _stack(arrays: list[NDArray]) -> NDArray:
    longest = max(array.shape[-1] if array.ndim else 0 for array in arrays)
    if all(array.shape == arrays[0].shape for array in arrays):
        return np.stack(arrays)
    widths = [[(0, 0)] * (array.ndim - 1) + [(0, longest - array.shape[-1])] for array in arrays]
    return np.stack([np.pad(a, width, constant_values=np.nan) for a, width in zip(arrays, widths, strict=True)])


def subset(encoded: tasks.Encoded, chosen: Sequence[int]) -> tasks.Encoded:
    """The chosen rows alone, in that order."""
    starts = tuple(encoded.starts[index] for index in chosen) if encoded.starts else ()
    return tasks.Encoded(tuple(encoded.rows[index] for index in chosen), 0, starts)
