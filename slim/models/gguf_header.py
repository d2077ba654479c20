"""The header of a GGUF file, walked before any library reads it: what it counts must lie within the file.

The gguf package believes the counts: a damaged list of 2**60 numbers is 2**60 steps that read nothing.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from slim.core.errors import InputError

MAGIC, VERSIONS = b"GGUF", (2, 3)
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number by the type that the format gives it."""
STRING, ARRAY = 8, 9
DIMENSIONS = 4
"""A tensor has at most."""
KEYS = 2**16
"""Settings or tensors that any model could have."""
ENTRIES = 2**22
"""Of a list: the largest vocabularies have a sixteenth of it."""


def check_gguf(file: Path) -> None:
    """Raises InputError for a file without a header, or one whose header counts more than the file holds."""
    try:
        with file.open("rb") as opened:
            _Header(opened, file.stat().st_size).walk()
    except (OSError, ValueError, struct.error) as error:
        raise InputError(
            f"model file {str(file)!r} is not a GGUF that can be read ({error}): copy or download it again."
        ) from error


class _Header:
    def __init__(self, opened: BinaryIO, size: int) -> None:
        self.opened, self.size = opened, size

    def walk(self) -> None:
        if self.opened.read(4) != MAGIC:
            raise ValueError("it does not start as one")
        (version,) = self.numbers("<I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, and {' and '.join(map(str, VERSIONS))} are read")
        tensors, settings = self.numbers("<QQ")
        if max(tensors, settings) > KEYS:
            raise ValueError(f"it counts {max(tensors, settings):,} entries")
        for _ in range(settings):
            self.text()
            self.value(self.numbers("<I")[0])
        for _ in range(tensors):
            self.text()
            (dimensions,) = self.numbers("<I")
            if dimensions > DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions:,} dimensions")
            *_, offset = self.numbers(f"<{dimensions}QIQ")
            if offset > self.size:
                raise ValueError("a tensor lies beyond its end")

    def value(self, kind: int) -> None:
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            self.array()
        else:
            self.skip(_size(kind))

    def array(self) -> None:
        kind, count = self.numbers("<IQ")
        if count > ENTRIES:
            raise ValueError(f"a list has {count:,} entries")
        if kind != STRING:
            self.skip(_size(kind) * count)
            return
        for _ in range(count):
            self.text()

    def text(self) -> None:
        self.skip(self.numbers("<Q")[0])

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.opened.read(struct.calcsize(form)))

    def skip(self, count: int) -> None:
        if count > self.size - self.opened.tell():
            raise ValueError("it is cut off")
        self.opened.seek(count, 1)


def _size(kind: int) -> int:
    if kind not in SIZES:
        raise ValueError(f"a value is of the unknown type {kind}")
    return SIZES[kind]
