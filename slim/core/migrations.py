"""Records of other versions of Slim: an older one is brought up to date as it is read, a newer one says so.

Every record is read here. A step takes the plain JSON of one version to the next; the file itself stays as it is. To
change a record's fields: raise its `schema_version` and add one row to STEPS.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

import pydantic_core
from safetensors import SafetensorError

from slim.core.errors import InputError
from slim.core.paths import is_file
from slim.core.records import Record, why_invalid

Raw = dict[str, Any]
"""A record as JSON has it."""
R = TypeVar("R", bound=Record)
LARGEST = 2**28
"""Bytes of a file beyond which it is taken for no record."""
LARGEST_NUMBER = 2**63
"""The bound of a record's whole numbers: all counts are below it, and arrays can hold them."""
_RELEASE = re.compile(r"\d[\w.+]{0,30}")


class Outdated(Exception):
    """A version that cannot be brought up to date: which release of Slim reads it, what it lacks, and the way on."""

    def __init__(self, release: str, lacks: str, remedy: str) -> None:
        super().__init__(f"{lacks}: {remedy}, or open it with Slim {release}.")


def read_record(kind: type[R], file: Path, name: str) -> R:
    """The record of a `kind` in a file, whichever version wrote it; `name` is how messages speak of it.

    Raises InputError for a version that cannot be read, ValueError (pydantic's among them) for a file that is not such
    a record, and OSError for a missing file.
    """
    if file.exists() and not file.is_file():
        raise ValueError("it is not a file")
    if file.stat().st_size > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MB")
    return from_json(kind, file.read_bytes(), name)


def read_run_record(kind: type[R], folder: Path, verb: str) -> R:
    """The record of a run that is a folder and was made by `slim verb`. Raises InputError where it holds none."""
    name, record = f"{_own(kind)[0]} {str(folder)!r}", folder / "record.json"
    if not is_file(record):
        raise InputError(f"{name} was not found: run `slim {verb} --output {folder}` first.")
    with readable(name, verb):
        return read_record(kind, record, name)


@contextmanager
def readable(name: str, verb: str) -> Iterator[None]:
    """Turn failures in the block into an InputError: the files that `slim verb` made are damaged."""
    try:
        yield
    except (SafetensorError, LookupError, ValueError, OSError) as error:
        raise InputError(f"{name} cannot be read ({why_invalid(error)}): run `slim {verb}` again.") from error


def from_json(kind: type[R], content: bytes, name: str) -> R:
    """The same from what a file holds."""
    try:
        raw = pydantic_core.from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"Invalid JSON: {error}") from error
    return from_plain(kind, raw, name)


def from_plain(kind: type[R], raw: Any, name: str) -> R:
    """The same from JSON that was read already; one that says no version is of the first."""
    if not isinstance(raw, dict):
        raise ValueError("it is not a JSON object")
    _check_numbers(raw)
    own, current = _own(kind)
    found = raw.get("kind", own)
    if found != own:
        raise ValueError(f"kind: it is {found!r}, not {own!r}")
    version = raw.get("schema_version", 1)
    if type(version) is not int or version < 1:
        raise ValueError(f"schema_version: {version!r} is not a version")
    if version > current:
        raise InputError(
            f"{name} was written by {_writer(raw)} (schema version {version}, this one reads up to {current}): "
            "update Slim."
        )
    for earlier in range(version, current):
        raw = _next(own, earlier, raw, name)
    return kind.model_validate(raw | {"kind": own, "schema_version": current})


def _own(kind: type[Record]) -> tuple[str, int]:
    """Return the name of a record's kind in its file, and the version that is written."""
    fields = kind.model_fields
    return fields["kind"].default, fields["schema_version"].default


def _next(kind: str, version: int, raw: Raw, name: str) -> Raw:
    try:
        step: Callable[[Raw], Raw] = resolve_name(STEPS[kind, version])
        return step(raw)
    except Outdated as error:
        raise InputError(f"{name} has schema version {version}, {error}") from None
    except (InputError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not a {kind} of schema version {version} ({error})") from error


def _writer(raw: Raw) -> str:
    """Which Slim wrote a record, as far as it says."""
    versions = raw.get("versions")
    release = versions.get("slim") if isinstance(versions, dict) else None
    known = isinstance(release, str) and _RELEASE.fullmatch(release)
    return f"a newer Slim, {release}" if known else "a newer Slim"


def _check_numbers(raw: Raw) -> None:
    """Raises ValueError for a number that nothing could be computed with: 1e999 is infinite, although it is JSON."""
    left: list[tuple[str, Any]] = list(raw.items())
    while left:
        field, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{field}.{name}", one) for name, one in value.items()]
        elif isinstance(value, list):
            left += [(f"{field}.{place}", one) for place, one in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field}: the number is not finite")
        elif isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
            raise ValueError(f"{field}: the number is beyond 64 bits")


STEPS: Mapping[tuple[str, int], str] = {
    ("calibration", 1): "slim.calibration.facts:_calibration_1",
    ("calibration", 2): "slim.calibration.facts:_calibration_2",
    ("plan", 1): "slim.planning.files:_plan_1",
    ("plan", 2): "slim.planning.files:_plan_2",
    ("recovery", 1): "slim.pruning.history:_recovery_1",
}
"""(kind, version) → the function that makes the next version of it, which is imported once such a record is met."""
