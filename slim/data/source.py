"""A source of rows, whatever it is read from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

BATCH = 256


class Row(NamedTuple):
    """A row: its values by column, its number (a text file's line) and the share of the source that is read by then."""

    values: dict[str, Any]
    number: int
    share: float


@dataclass(frozen=True)
class Source:
    """The rows of one split; `rows()` reads them from the start, as often as it is called."""

    name: str
    split: str
    rows: Callable[[], Iterator[Row]]
    revision: str | None = None


def arrow_rows(dataset: Any, count: int) -> Iterator[Row]:
    """The rows of a `datasets` object in Arrow batches: pictures and sounds stay bytes; labels get their names.

    Arrow gives every record of a column the fields of all of them: those without a value are dropped, so that a call
    of one tool does not have the arguments of another.
    """
    from datasets import ClassLabel

    names = {key: kind.names for key, kind in (dataset.features or {}).items() if isinstance(kind, ClassLabel)}
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=BATCH):
        for values in table.to_pylist():
            for column, labels in names.items():
                value = values[column]
                values[column] = labels[value] if value is not None and 0 <= value < len(labels) else None
            number += 1
            present = {column: _present(value) for column, value in values.items()}
            yield Row(present, number, number / max(count, number))


def _present(value: Any) -> Any:
    """Return a nested value without the fields of its records that have no value."""
    if isinstance(value, dict):
        return {name: _present(part) for name, part in value.items() if part is not None}
    return [_present(part) for part in value] if isinstance(value, list) else value
