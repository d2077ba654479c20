"""Finished parts of a calibration, kept by what they depend on: the same question is not computed twice.

A row's figures depend on the model, the row's tokens, the settings and the code alone, so they are kept row by row. A
run that was stopped goes on where it was, and one with more rows computes the new ones only.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from diskcache import Cache
from numpy.typing import NDArray
from safetensors import SafetensorError

from slim.core import workspace
from slim.core.json_disk import JsonDisk

if TYPE_CHECKING:
    from torch import Tensor

Arrays = dict[str, NDArray]
LIMIT = 2**31
"""Bytes; what was used longest ago goes first."""


class RowCache:
    """One kind of result: `basis` is everything but the row that its figures depend on."""

    def __init__(self, cache: Cache | None, **basis: Any) -> None:
        self.cache = cache
        self.basis = json.dumps(basis, sort_keys=True)

    def get(self, row: "Tensor", start: int) -> Arrays | None:
        """Return the cached arrays of a row of token ids (T,) that counts from token `start` on; None without any."""
        text = None if self.cache is None else self.cache.get(self._key(row, start))
        if not isinstance(text, str):
            return None
        try:
            arrays = safetensors.numpy.load(base64.b64decode(text))
        except (SafetensorError, ValueError):
            return None
        return arrays

    def put(self, row: "Tensor", start: int, arrays: Arrays) -> None:
        if self.cache is not None:
            plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # views lose their order
            self.cache.set(self._key(row, start), base64.b64encode(safetensors.numpy.save(plain)).decode())

    def _key(self, row: "Tensor", start: int) -> str:
        return hashlib.sha256(f"{self.basis}/{start}/".encode() + row.numpy().tobytes()).hexdigest()


class JointCache:
    """Several kinds of result that one pass gives: a row is cached where all of them are."""

    def __init__(self, parts: Mapping[str, RowCache]) -> None:
        self.parts = parts

    def get(self, row: "Tensor", start: int) -> Arrays | None:
        """Return all arrays of a row, as PART.NAME each; None where a part has none."""
        found = {name: part.get(row, start) for name, part in self.parts.items()}
        kept = {name: arrays for name, arrays in found.items() if arrays is not None}
        if len(kept) < len(found):
            return None
        return {f"{name}.{key}": array for name, arrays in kept.items() for key, array in arrays.items()}

    def put(self, row: "Tensor", start: int, arrays: Arrays) -> None:
        """Cache arrays of a row, named as PART.NAME, each part for itself."""
        for name, part in self.parts.items():
            part.put(row, start, part_of(arrays, name))


def part_of(arrays: Arrays, name: str) -> Arrays:
    """Return the arrays of a part by their own names."""
    return {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}


@contextmanager
def open_cache() -> Iterator[Cache]:
    """The workspace's cache. It holds JSON, never a pickle."""
    cache = Cache(
        str(workspace.subfolder("results")),
        disk=JsonDisk,
        disk_compress_level=1,
        size_limit=LIMIT,
        eviction_policy="least-recently-used",
    )
    try:
        yield cache
    finally:
        cache.close()
