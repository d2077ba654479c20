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
    """The rows of a `datasets` object in Arrow batches: pictures and sounds stay bytes; labels get their names."""
    from datasets import ClassLabel

    names = {key: kind.names for key, kind in (dataset.features or {}).items() if isinstance(kind, ClassLabel)}
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=BATCH):
        for values in table.to_pylist():
            for column, labels in names.items():
                value = values[column]
                values[column] = labels[value] if value is not None and 0 <= value < len(labels) else None
            number += 1
            yield Row(values, number, number / max(count, number))
