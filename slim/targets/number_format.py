"""Number formats of files that are served: which type each matrix gets, which rows it takes, and the bytes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

from slim.targets.matrices import Matrix

Better = Callable[[Matrix], str | None]
"""The type of a matrix that a mixture stores with more bits; None where it does not."""
BLOCKS: Mapping[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
}
"""Numbers in a block of each type, which a row must be a multiple of, and the bytes of a block (ggml-common.h)."""
SMALLER_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
"""The types of matrices whose rows are not a multiple of 256. Others become F16, as do rows of not a multiple of 32."""


class NumberFormat(Protocol):
    """One way to store a model's numbers."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def source(self) -> str:
        """Where the rules were read, and of which version."""
        ...

    def bytes_of(self, matrix: Matrix) -> int:
        """Return the bytes that a tensor takes."""
        ...

    def refuses(self, matrix: Matrix) -> str | None:
        """Return why a tensor cannot be stored so, in words that end a sentence; None where it can."""
        ...

    def falls_back(self, matrix: Matrix) -> str | None:
        """Return what a tensor is stored as because its rows do not fit, where that is not what was asked for."""
        ...


@dataclass(frozen=True)
class Ggml:
    """A format of llama.cpp's files: a type for most matrices, and better types for some."""

    name: str
    title: str
    type: str
    better: Mapping[str, Better] = field(default_factory=dict)
    """By the kind of a matrix (slim.targets.matrices)."""
    source: str = "llama.cpp, src/llama-quant.cpp, October 2026"

    def bytes_of(self, matrix: Matrix) -> int:
        block, size = BLOCKS[self.type_of(matrix)]
        return prod(matrix.shape) // block * size

    def refuses(self, matrix: Matrix) -> str | None:
        return None

    def falls_back(self, matrix: Matrix) -> str | None:
        found = self.type_of(matrix)
        return None if found == self.wanted(matrix) else found

    def type_of(self, matrix: Matrix) -> str:
        """Return the type that a tensor is stored in."""
        wanted = self.wanted(matrix)
        if matrix.row % BLOCKS[wanted][0] == 0:
            return wanted
        smaller = SMALLER_BLOCKS.get(wanted, "F16")
        return smaller if matrix.row % BLOCKS[smaller][0] == 0 else "F16"

    def wanted(self, matrix: Matrix) -> str:
        """Return the type that a tensor would be stored in if its rows fitted."""
        if len(matrix.shape) < 2:
            return "F32"
        if not self.better and self.type in ("F32", "F16", "BF16"):
            return self.type
        if matrix.kind == "head":
            return "Q8_0" if matrix.row % BLOCKS[self.type][0] or self.type == "Q8_0" else "Q6_K"
        better = self.better.get(matrix.kind)
        return (better(matrix) if better else None) or self.type


@dataclass(frozen=True)
class Grouped:
    """A format whose layers' matrices have fewer bits and a scale for each group of numbers; the rest is float16."""

    name: str
    title: str
    bits: int
    group: int
    """Numbers of a row with one scale."""
    rows: int = 1
    """Rows that share a scale."""
    scale_bytes: int = 2
    source: str = ""

    def bytes_of(self, matrix: Matrix) -> int:
        size = prod(matrix.shape)
        if len(matrix.shape) < 2 or matrix.kind in ("embedding", "head"):
            return 2 * size
        scales = -(-matrix.row // self.group) * -(-(size // matrix.row) // self.rows)
        return size * self.bits // 8 + scales * self.scale_bytes

    def refuses(self, matrix: Matrix) -> str | None:
        if matrix.row % self.group:
            return f"{self.title} needs rows of a multiple of {self.group} numbers, not {matrix.row}"
        if matrix.shape[0] % self.rows:
            return f"{self.title} needs a multiple of {self.rows} outputs, not {matrix.shape[0]}"
        return None

    def falls_back(self, matrix: Matrix) -> str | None:
        return None


def in_half(kind: str) -> Better:
    """Return the rule that stores some layers as `kind`: the first and last eighth, and every third between."""

    def better(matrix: Matrix) -> str | None:
        eighth = matrix.of // 8
        inside = eighth <= matrix.index < 7 * matrix.of // 8
        return None if inside and (matrix.index - eighth) % 3 != 2 else kind

    return better
