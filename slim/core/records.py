"""The frozen records of every stage. Each is checked when it is made and survives a trip through JSON unchanged."""

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slim.core.errors import InputError

MOST = 2**16
"""Of layers, heads or entries of a head: a file that says more is not that of a model."""

FORMAT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number in the formats that weights may be stored in."""


class Record(BaseModel):
    # the validators are built at the first use: a command that starts needs few of its records
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Return a record of user input. Raises InputError naming the first value that cannot be."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{'.'.join(map(str, first['loc']))}={first['input']!r}: {first['msg']}.") from error


R = TypeVar("R", bound=Record)


def why_invalid(error: Exception) -> str:
    """Return why a file is not a record: the first field that cannot be, or the first sentence of a library's
    message, which may start under a heading.
    """
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg'].removeprefix('Value error, ')}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = next((place for place, line in enumerate(lines, start=1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:end]).rstrip(".") or type(error).__name__


class _HasPath(Protocol):
    @property
    def path(self) -> Path | None: ...


class StandsForPath:
    """Saved results, each of which may be given wherever its path is asked for."""

    def __fspath__(self: _HasPath) -> str:
        if self.path is None:
            raise ValueError(f"the {type(self).__name__.lower()} was not saved")
        return str(self.path)


@dataclass(frozen=True)
class Saved(StandsForPath, Generic[R]):
    """A record and the file that it is saved in."""

    record: R
    path: Path


NamedBy = Literal["tokenizer", "chat template", "generation config", "config"]
"""Parts of a model folder that may name a token which ends an answer."""


class StopToken(Record):
    """A token that ends an answer, and which parts of the model name it."""

    id: int = Field(ge=0)
    text: str
    named_by: tuple[NamedBy, ...]

    def __str__(self) -> str:
        return f"{self.text} ({', '.join(self.named_by)})"


class ModelFacts(Record):
    """Facts of a model that the later stages need without loading it."""

    source: str
    fingerprint: str
    model_type: str
    layers: int = Field(ge=1, le=MOST)
    heads: int = Field(ge=1, le=MOST)
    kv_heads: int = Field(ge=1, le=MOST)
    head_dim: int = Field(ge=1, le=MOST)
    dtype: str = Field(description="number format of the stored weights")
    itemsize: int = Field(ge=1, le=16, description="bytes of one number")
    formats: dict[str, Literal["float64", "float32", "float16", "bfloat16"]] = Field(
        default={},
        description="number formats of the tensors that are stored in another than `dtype`",
        exclude_if=lambda formats: not formats,
    )
    shapes: dict[str, tuple[Annotated[int, Field(ge=0, le=2**40)], ...]] = Field(
        description="every stored tensor once, tied weights counted once"
    )
    stops: tuple[StopToken, ...] = Field(
        default=(), description="tokens that end an answer; empty where an older Slim wrote the record"
    )

    @model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        return self

    @property
    def ends(self) -> str:
        """Where an answer ends, in words: each token, and which parts of the model name it."""
        return ", ".join(map(str, self.stops))

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.shapes.values()))

    @property
    def numbers(self) -> str:
        """The number formats of the stored weights in words: that of most, and those of the others."""
        others = Counter(self.formats.values())
        return ", ".join([self.dtype, *(f"{count} tensors in {name}" for name, count in sorted(others.items()))])

    @property
    def bytes(self) -> int:
        """Bytes of all stored weights."""
        return sum(prod(shape) * self.itemsize_of(name) for name, shape in self.shapes.items())

    def format_of(self, name: str) -> str:
        """Return the stored number format of a tensor."""
        return self.formats.get(name, self.dtype)

    def itemsize_of(self, name: str) -> int:
        """Return the bytes of one number of a tensor."""
        return FORMAT_BYTES[self.formats[name]] if name in self.formats else self.itemsize


class Omission(Record):
    """Rows of a dataset that are left out, or read in part, for one reason."""

    reason: str
    rows: int = Field(ge=1)
    first: int = Field(ge=0, description="number of the first such row; 0 where rows have none")
    whole: bool = Field(default=True, description="the rows are left out, not read in part")


class DatasetFacts(Record):
    source: str
    config: str | None = None
    revision: str | None = None
    split: str
    kind: str
    template: str | None = None
    columns: dict[str, str] = {}
    prompt: str | None = None
    rows: int = Field(ge=1)
    tokens: int = Field(ge=1)
    truncated_rows: int = Field(ge=0)
    lost_tokens: int = Field(default=0, ge=0, description="cut off the truncated rows")
    left_out: int = Field(default=0, ge=0, description="drawn rows that are not among the rows")
    guessed: bool = Field(default=False, description="the template or a column was guessed")
    unread_columns: tuple[str, ...] = ()
    omissions: tuple[Omission, ...] = Field(default=(), description="rows left out or read in part, by reason")


Place = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
"""(layer, head or KV group); the second is 0 for blocks and layers."""
