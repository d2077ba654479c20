"""The header of a GGUF file, walked before any library reads it: what it counts must lie within the file.

The gguf package believes the counts: a damaged list of 2**60 numbers is 2**60 steps that read nothing.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

from slim.core.errors import InputError

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How a number is stored, in the words of `struct`, by the type that the format gives it."""
STRING, ARRAY = 8, 9
DIMENSIONS = 4
"""A tensor has at most."""
KEYS = 2**16
"""Settings or tensors that any model could have."""
ENTRIES = 2**22
"""Of a list: the largest vocabularies have a sixteenth of it."""


def check_gguf(file: Path) -> None:
    """Raises InputError for a file without a header, or one whose header counts more than the file holds."""
    read_settings(file, ())


def read_settings(file: Path, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings whose names begin with one of `prefixes`, without the weights.

    Raises InputError for a file without a header, or one whose header counts more than the file holds.
    """
    try:
        with file.open("rb") as opened:
            return _Header(opened, file.stat().st_size, prefixes).walk()
    except (OSError, ValueError, struct.error) as error:
        raise InputError(
            f"model file {str(file)!r} is not a GGUF that can be read ({error}): copy or download it again."
        ) from error


class _Header:
    def __init__(self, opened: BinaryIO, size: int, prefixes: tuple[str, ...]) -> None:
        self.opened, self.size, self.prefixes = opened, size, prefixes

    def walk(self) -> dict[str, Any]:
        if self.opened.read(4) != MAGIC:
            raise ValueError("it does not start as one")
        (version,) = self.numbers("<I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, and {' and '.join(map(str, VERSIONS))} are read")
        tensors, settings = self.numbers("<QQ")
        if max(tensors, settings) > KEYS:
            raise ValueError(f"it counts {max(tensors, settings):,} entries")
        found = {}
        for _ in range(settings):
            name = self.text().decode()
            kind = self.numbers("<I")[0]
            if name.startswith(self.prefixes):
                found[name] = self.value(kind)
            else:
                self.skip_value(kind)
        for _ in range(tensors):
            self.skip_text()
            (dimensions,) = self.numbers("<I")
            if dimensions > DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions:,} dimensions")
            *_, offset = self.numbers(f"<{dimensions}QIQ")
            if offset > self.size:
                raise ValueError("a tensor lies beyond its end")
        return found

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text().decode()
        if kind != ARRAY:
            return self.numbers(f"<{_number(kind)}")[0]
        kind, count = self.entries()
        if kind == STRING:
            return [self.text().decode() for _ in range(count)]
        self.check_room(count * struct.calcsize(_number(kind)))
        return list(self.numbers(f"<{count}{_number(kind)}"))

    def skip_value(self, kind: int) -> None:
        if kind == STRING:
            self.skip_text()
        elif kind == ARRAY:
            self.skip_array()
        else:
            self.skip(struct.calcsize(_number(kind)))

    def skip_array(self) -> None:
        kind, count = self.entries()
        if kind != STRING:
            self.skip(count * struct.calcsize(_number(kind)))
            return
        for _ in range(count):
            self.skip_text()

    def entries(self) -> tuple[int, int]:
        """(type, number) of a list's entries."""
        kind, count = self.numbers("<IQ")
        if count > ENTRIES:
            raise ValueError(f"a list has {count:,} entries")
        return kind, count

    def text(self) -> bytes:
        (length,) = self.numbers("<Q")
        self.check_room(length)
        return self.opened.read(length)

    def skip_text(self) -> None:
        self.skip(self.numbers("<Q")[0])

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.opened.read(struct.calcsize(form)))

    def skip(self, count: int) -> None:
        self.check_room(count)
        self.opened.seek(count, 1)

    def check_room(self, count: int) -> None:
        if count > self.size - self.opened.tell():
            raise ValueError("it is cut off")


def _number(kind: int) -> str:
    if kind not in NUMBERS:
        raise ValueError(f"a value is of the unknown type {kind}")
    return NUMBERS[kind]
