"""`manifest.json` of an archive of runs: its runs, and the size and hash of each file."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from slim.core.records import Record
from slim.core.workspace import Kind
from slim.runs.files import REQUIRED, belongs

MANIFEST = "manifest.json"
MOST_RUNS, MOST_FILES = 1000, 10_000
"""Limits of an archive, far above real use."""
Name = Annotated[str, Field(min_length=1, max_length=255)]


class PackedFile(Record):
    """A file of a run in an archive."""

    name: Name = Field(description="within the run")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class PackedRun(Record):
    """A run in an archive. Its files are in the folder of its number."""

    number: int = Field(ge=1, le=MOST_RUNS)
    kind: Kind
    file_name: Name = Field(description="name of the run on disk, without a suffix")
    name: str | None = Field(default=None, description="name given by the user")
    tags: tuple[str, ...] = Field(default=(), max_length=100)
    files: tuple[PackedFile, ...] = Field(min_length=1, max_length=MOST_FILES)

    @model_validator(mode="after")
    def _has_its_files(self) -> Self:
        names = [file.name for file in self.files]
        if strange := [name for name in names if not belongs(self.kind, name)]:
            raise ValueError(f"run {self.number} holds {strange[0]!r}, which does not belong to a {self.kind}")
        if lacking := [name for name in REQUIRED[self.kind] if name not in names]:
            raise ValueError(f"run {self.number} lacks {lacking[0]!r}, which every {self.kind} has")
        return self

    @property
    def members(self) -> dict[str, PackedFile]:
        """The files by their names in the archive."""
        return {f"{self.number}/{file.name}": file for file in self.files}


class Manifest(Record):
    """The runs of an archive."""

    schema_version: Literal[1] = 1
    kind: Literal["runs"] = "runs"
    slim: str = Field(description="version that wrote it")
    created: str
    runs: tuple[PackedRun, ...] = Field(min_length=1, max_length=MOST_RUNS)
    places: dict[str, int] = Field(
        default={}, description="numbers of runs by the folder names that records of other runs here use"
    )

    @model_validator(mode="after")
    def _numbered(self) -> Self:
        if [run.number for run in self.runs] != list(range(1, len(self.runs) + 1)):
            raise ValueError("runs are not numbered from 1 on")
        if any(not 1 <= number <= len(self.runs) for number in self.places.values()):
            raise ValueError("places names a run that is not in the archive")
        return self

    @property
    def members(self) -> dict[str, PackedFile]:
        """All files by their names in the archive."""
        return {name: file for run in self.runs for name, file in run.members.items()}

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.members.values())
