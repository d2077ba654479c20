"""Where rows come from: a bundled dataset, a local file or the Hub. They are read one by one, never all at once.

CSV, JSON lines and text are read with the standard library: it keeps every value as written (007 stays 007, NA is an
answer) and knows the line where something is wrong. Parquet and the Hub are read with `datasets`, which runs no code
of a dataset.
"""

import csv
import re
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from slim.core import paths
from slim.core.errors import InputError
from slim.core.records import why_invalid
from slim.core.text import parsed
from slim.data.source import Row, Source, arrow_rows

SPLITS = ("train", "validation", "test")
DATA = Path(__file__).parent / "bundled"
BUNDLED = ("briefs", "triage", "everyday")
GENERAL = "general"
"""Plain prose to hold a task against: the passages of `briefs`, without a question."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
LONGEST = 2**24
"""Characters of a line or field beyond which a file is taken for broken."""
LARGEST_JSON = 2**28
"""Bytes of a file that is one JSON value, which has to be read whole."""


def open_source(
    source: str, config: str | None = None, split: str | None = None, revision: str | None = None
) -> Source:
    """`bundled:NAME`, a file, or a Hub id. Raises InputError for one that is not there; rows are not read yet."""
    path = paths.local(source, "dataset")
    if (
        not source.startswith("bundled:")
        and not path.exists()
        and HUB_ID.fullmatch(source)
        and path.suffix.lower() not in FORMATS
    ):
        from slim.data.hub_rows import open_hub

        return open_hub(source, config, split or "train", revision)
    for field, value in (("config", config), ("revision", revision)):
        if value is not None:
            raise InputError(
                f"{field}={value!r}: only a Hub dataset has one, and {source!r} is not from the Hub: leave it out."
            )
    if source.startswith("bundled:"):
        path, split = _bundled(source, split or "train"), split or "train"
        if source == f"bundled:{GENERAL}":
            return Source(source, split, lambda: _passages(path, source))
    elif not path.is_file():
        raise InputError(
            f"dataset {source!r} was not found: name {', '.join(map(_named, BUNDLED))}, a {', '.join(FORMATS)} file "
            "or a Hub id."
        )
    elif path.suffix.lower() not in FORMATS:
        raise InputError(f"dataset {source!r} has the ending {path.suffix!r}: name a {', '.join(FORMATS)} file.")
    elif split not in (None, "train"):
        raise InputError(f"split {split!r}: a single file such as {source!r} has only the split 'train'.")
    elif path.stat().st_size == 0:
        raise InputError(f"dataset {source!r} is an empty file: name one with rows.")
    return Source(source, split or "train", lambda: _read(path, source))


def is_hub_id(source: str) -> bool:
    """Whether a name can only be one of the Hub. Raises InputError for a path that may not be read."""
    path = paths.local(source, "dataset")
    return bool(HUB_ID.fullmatch(source)) and not path.exists() and path.suffix.lower() not in FORMATS


def _named(name: str) -> str:
    return f"bundled:{name}"


def _bundled(source: str, split: str) -> Path:
    name = source.removeprefix("bundled:")
    if name not in (*BUNDLED, GENERAL):
        raise InputError(
            f"dataset {source!r} is not bundled: choose {', '.join(map(_named, BUNDLED))} or {_named(GENERAL)}."
        )
    if split not in SPLITS:
        raise InputError(f"split {split!r} of {source!r} does not exist: choose {', '.join(SPLITS)}.")
    return DATA / (BUNDLED[0] if name == GENERAL else name) / f"{split}.jsonl"


def _passages(path: Path, source: str) -> Iterator[Row]:
    return (Row({"text": row.values["passage"]}, row.number, row.share) for row in _read(path, source))


class _Damaged(Exception):
    """The error in a file, and its place."""


def _read(path: Path, source: str) -> Iterator[Row]:
    kind = path.suffix.lower().removeprefix(".")
    try:
        if kind == "parquet":
            yield from _parquet(path)
            return
        size = path.stat().st_size
        with path.open("rb") as raw:
            for number, values in FORMATS[path.suffix.lower()](TextIOWrapper(raw, "utf-8-sig", newline="")):
                yield Row(values, number, raw.tell() / size)
    except UnicodeDecodeError as error:
        raise InputError(f"dataset {source!r} is not UTF-8 ({_bad_byte(path)}): save it as UTF-8.") from error
    except (_Damaged, csv.Error, OSError, RecursionError) as error:
        raise InputError(f"dataset {source!r} could not be read as {kind}: {error}.") from error


def _csv(text: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LONGEST)
    first = text.readline(LONGEST)
    text.seek(0)
    mark = next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.reader(text, delimiter=mark, strict=True)  # a quote that is never closed would swallow the rest
    header: list[str] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise _Damaged(f"its header has the column {twice!r} twice")
        for fields in reader:
            if len(fields) > len(header):
                raise _Damaged(
                    f"line {reader.line_num} has {len(fields)} fields and the header {len(header)}; "
                    f"a field that holds {mark!r} must be quoted"
                )
            if fields:
                yield reader.line_num, dict(zip_longest(header, fields))
    except csv.Error as error:
        raise _Damaged(f"line {reader.line_num}: {error}") from error


def _lines(text: TextIO) -> Iterator[tuple[int, str]]:
    number = 0
    while line := text.readline(LONGEST):
        number += 1
        if len(line) == LONGEST and not line.endswith("\n"):
            raise _Damaged(f"line {number} is longer than {LONGEST:,} characters")
        yield number, line.rstrip("\r\n")


def _txt(text: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(text):
        yield number, {"text": line}


def _jsonl(text: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(text):
        if line.strip():
            yield number, _object(line, f"line {number}")


def _json(text: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """A list of objects, or one object a line."""
    start = text.read(1)
    while start.isspace():
        start = text.read(1)
    text.seek(0)
    if start != "[":
        yield from _jsonl(text)
        return
    whole = text.read(LARGEST_JSON)
    if len(whole) == LARGEST_JSON:
        raise _Damaged("it is one very long list; save it as .jsonl, one row a line")
    try:
        rows = parsed(whole)
    except ValueError as error:
        raise _Damaged(str(error)) from error
    for number, values in enumerate(rows, 1):
        if not isinstance(values, dict):
            raise _Damaged(f"item {number} is not an object")
        yield number, values


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        values = parsed(line)
    except ValueError as error:
        raise _Damaged(f"{place} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise _Damaged(f"{place} is not an object of column names and values")
    return values


def _parquet(path: Path) -> Iterator[Row]:
    from datasets import load_dataset
    from pyarrow.parquet import read_metadata

    try:
        count = read_metadata(path).num_rows
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        yield from arrow_rows(rows, count)
    except OSError:
        raise
    except Exception as error:  # each part of a damaged file fails in its own way
        raise _Damaged(why_invalid(error)) from error


def _bad_byte(path: Path) -> str:
    """Return the place of the first byte that is not UTF-8."""
    with path.open("rb") as raw:
        for number, line in enumerate(_byte_lines(raw), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"byte 0x{line[error.start]:02X} in line {number}, place {error.start + 1}"
    return "it ends within a character"


def _byte_lines(raw: BinaryIO) -> Iterator[bytes]:
    while line := raw.readline(LONGEST):
        yield line


FORMATS: dict[str, Callable[[TextIO], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": lambda text: iter(()),
    ".txt": _txt,
}
