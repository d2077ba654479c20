"""The runs that the workspace knows: where each lies and what it is called."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from slim.core.records import Record
from slim.core.workspace import Kind, subfolder, write_file


class Reference(Record):
    """The workspace's entry of a run: its path, and the name and tags that users gave it."""

    model_config = ConfigDict(extra="ignore")  # of a newer Slim on the same workspace: a run is not lost for it

    kind: Kind
    path: str
    created: str
    name: str | None = Field(default=None, description="shown in place of the file's name")
    tags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The identifier of the run, as long as it lies where it does."""
        return hashlib.sha256(self.path.encode()).hexdigest()[:16]


def remember(path: Path, kind: Kind, name: str | None = None, tags: tuple[str, ...] = ()) -> Reference:
    """Makes a run known to the workspace, wherever it lies. One made anew in its place keeps name and tags."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")  # stages of small models take less than a second
    entry = Reference(kind=kind, path=str(path.absolute()), created=now, name=name, tags=tags)
    held = reference(entry.key)
    if held is not None and held.kind == kind:
        entry = entry.model_copy(update={"name": name or held.name, "tags": tags or held.tags})
    return put_reference(entry)


def put_reference(entry: Reference) -> Reference:
    """Keeps a reference in place of the one that the same run had."""
    write_file(_reference_file(entry.key), entry.model_dump_json())
    return entry


def drop_reference(key: str) -> None:
    """Forgets a run; the run itself stays."""
    _reference_file(key).unlink(missing_ok=True)


def reference(key: str) -> Reference | None:
    """Return the reference of a run; None where it is missing or damaged."""
    try:
        found = Reference.model_validate_json(_reference_file(key).read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.key == key else None


def references() -> list[Reference]:
    """The references of all runs, those that are gone included, the newest first. Damaged ones are passed over."""
    found = [reference(file.stem) for file in subfolder("runs").glob("[0-9a-f]*.json")]
    return sorted((one for one in found if one), key=lambda one: one.created, reverse=True)


def runs(kind: Kind) -> list[Path]:
    """The known runs of a kind that still exist, newest first."""
    paths = [Path(entry.path) for entry in references() if entry.kind == kind]
    there = [(path.stat().st_mtime_ns, path) for path in paths if path.exists()]
    return [path for _, path in sorted(there, reverse=True)]


def _reference_file(key: str) -> Path:
    return subfolder("runs") / f"{key}.json"
