"""Task data: the rows of a source, fitted to a template, as examples; and which of them are drawn."""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from slim.core.errors import InputError
from slim.core.fields import Positions
from slim.core.records import DatasetFacts, Omission
from slim.core.reporter import SILENT, Reporter
from slim.data.bundled_scores import beside_chance
from slim.data.columns import ColumnMapping, fit_mapping
from slim.data.encode import Batch, Encoded, batches, encode, messages_of, readable, text_of
from slim.data.omissions import RowLeftOut, Tally, columns_read, left_out, merged, omitted
from slim.data.readers import needed_of, read_row
from slim.data.request import DataSource
from slim.data.source import Row, Source
from slim.data.sources import BUNDLED, DATA, GENERAL, SPLITS, open_source
from slim.data.templates import TEMPLATES, Example, Template

__all__ = [
    "BUNDLED",
    "DATA",
    "GENERAL",
    "SPLITS",
    "TEMPLATES",
    "Batch",
    "ColumnMapping",
    "Encoded",
    "Example",
    "Positions",
    "Task",
    "Template",
    "batches",
    "choose",
    "columns_of",
    "encode",
    "load_task",
    "messages_of",
    "readable",
    "reading_of",
    "row_at",
    "text_of",
    "wording",
]

WORDINGS = {
    ("bundled:briefs", "summarisation"): "Summarise this passage in one or two sentences.\n\n{text}",
    ("bundled:triage", "classification"): (
        "Which desk should answer this customer's message? Reply with one word: {labels}.\n\n{text}"
    ),
    ("bundled:everyday", "choices"): "{question}",
}
"""Wordings of the bundled datasets, where the template's own would say less."""
PEEK = 1000
"""Rows that are looked at to see which columns there are, and rows that are shown of a source too large to keep."""
KEPT_BYTES = 2**26
"""About how much of the rows is kept in memory. Drawing from a larger source reads it once from start to end."""
ROW_BYTES = 300
"""Memory of a row besides its text."""


@dataclass(frozen=True)
class Task:
    """The rows of one split of a dataset and what they ask for.

    `examples` are all of them, or the first where the source is too large to keep. Then `stream` reads them all, each
    with the share of the source that is read by then, and `rows` is an estimate. `tally` counts, among the rows read so
    far, those that are left out and why. `revision` is the commit of a Hub dataset.
    """

    source: str
    config: str | None
    split: str
    kind: str
    examples: tuple[Example, ...]
    revision: str | None = None
    layout: ColumnMapping | None = None
    unread_columns: tuple[str, ...] = ()
    tally: Tally = field(default_factory=Tally, compare=False)
    labels: str = ""
    estimated_rows: int | None = None
    stream: Callable[[], Iterator[tuple[Example, float]]] | None = field(default=None, compare=False)

    @property
    def data(self) -> DataSource:
        """The source and options that read the same rows again."""
        found: dict[str, Any] = {"config": self.config, "split": self.split, "revision": self.revision}
        if layout := self.layout:
            found |= {"template": layout.template.name, "columns": dict(layout.columns), "prompt": layout.prompt}
        return DataSource(source=self.source, **found)

    @property
    def left_out(self) -> int:
        """How many of the rows read so far are left out."""
        return left_out(self.tally.omissions)

    @property
    def rows(self) -> int:
        """How many rows can be drawn; an estimate where `stream` is given."""
        return len(self.examples) if self.estimated_rows is None else self.estimated_rows


def load_task(data: str | DataSource = "bundled:briefs", **options: Any) -> Task:
    """Return the rows of a source: `bundled:NAME`, a .jsonl/.csv/.parquet/.txt file, or a Hub id.

    `options` are fields of DataSource, which take the place of those that `data` has. Raises InputError for a source
    that is not there or damaged, columns that no template fits, or a source without rows.
    """
    data = DataSource.of(data, **options)
    source = os.fspath(data.source)
    opened = open_source(source, data.config, data.split, data.revision)
    names = _columns(opened)
    layout = fit_mapping(names, data.template, data.columns, data.prompt, source)
    if data.prompt is None:
        layout = replace(layout, prompt=wording(source, layout))
    kept, share = _keep(opened, layout)
    labels = layout.labels(row.values for row in kept)
    tally = Tally()
    examples = tuple(_examples(kept, layout, labels, tally))
    if not examples:
        raise InputError(
            f"dataset {source!r}: no row of split {opened.split!r} can be read. "
            f"{'. '.join(omitted(tally.omissions))}: name other columns, another template or another file."
        )
    large = share is not None
    return Task(
        source=source,
        config=data.config,
        split=opened.split,
        kind=layout.template.name,
        examples=examples[:PEEK] if large else examples,
        revision=opened.revision,
        layout=layout,
        unread_columns=layout.unread(names),
        tally=tally,
        labels=labels,
        estimated_rows=round(len(examples) / share) if large else None,
        stream=(lambda: _stream(opened, layout, labels, tally)) if large else None,
    )


class ShownRow(NamedTuple):
    """A row of a task: its example, or the reason why it is left out, and its values that are not read, by column."""

    example: Example | str
    unread: dict[str, Any]


def row_at(task: Task, number: int) -> ShownRow:
    """Return the row with a number. Raises InputError for a number that no row has."""
    if task.layout is None:
        raise InputError(f"row={number}: dataset {task.source!r} has no rows of its own.")
    last = 0
    for row in open_source(task.source, task.config, task.split, task.revision).rows():
        if (last := row.number) < number:
            continue
        if last > number:
            break
        try:
            example: Example | str = read_row(task.layout, row.values, number, task.labels)
        except RowLeftOut as error:
            example = str(error)
        return ShownRow(example, {name: row.values.get(name) for name in task.layout.unread(row.values)})
    raise InputError(f"row={number}: dataset {task.source!r} has no such row; the nearest is row {last}.")


def columns_of(
    source: str, config: str | None = None, split: str | None = None, revision: str | None = None
) -> tuple[str, ...]:
    """The names of the columns of a source, in their order. Raises InputError as `load_task` does."""
    return _columns(open_source(source, config, split, revision))


def wording(source: str, layout: ColumnMapping) -> str:
    """The prompt that a layout asks with where none is given."""
    return WORDINGS.get((source, layout.template.name), layout.prompt)


def choose(task: Task, samples: int, seed: int, reporter: Reporter = SILENT) -> list[Example]:
    """`samples` rows drawn without replacement, all of them when there are fewer.

    A stream is read once (reservoir sampling; Vitter 1985, algorithm R), so that only what is drawn is in memory.
    """
    if samples < 1:
        raise InputError(f"samples={samples}: at least 1 row is needed.")
    chance = random.Random(seed)  # noqa: S311  chance need not be secret
    if task.stream is None:
        return chance.sample(task.examples, min(samples, len(task.examples)))
    drawn: list[Example] = []
    for count, (example, share) in enumerate(task.stream()):
        if count < samples:
            drawn.append(example)
        elif (place := chance.randrange(count + 1)) < samples:
            drawn[place] = example
        if count % PEEK == 0:
            reporter.progress(share, 1, "Drawing rows")
    return drawn


def _columns(source: Source) -> tuple[str, ...]:
    names = {name: None for row in islice(source.rows(), PEEK) for name in row.values}
    if not names:
        raise InputError(f"dataset {source.name!r} has no rows: name a file or a split that has some.")
    return tuple(names)


def _keep(source: Source, layout: ColumnMapping) -> tuple[list[Row], float | None]:
    """The rows that fit in memory, only what is read of them; where they are not all, their share of the source."""
    kept: list[Row] = []
    size = 0
    for row in source.rows():
        values = needed_of(layout, row.values)
        kept.append(row._replace(values=values))
        size += ROW_BYTES + sum(len(str(value)) for value in values.values())
        if size > KEPT_BYTES:
            return kept, row.share
    return kept, None


def _examples(rows: Iterable[Row], layout: ColumnMapping, labels: str, tally: Tally) -> Iterator[Example]:
    for row in rows:
        try:
            yield read_row(layout, row.values, row.number, labels)
        except RowLeftOut as error:
            tally.add(str(error), row.number)


def _stream(source: Source, layout: ColumnMapping, labels: str, tally: Tally) -> Iterator[tuple[Example, float]]:
    """Read all rows; `tally` has the counts of the last row that was read."""
    fresh = Tally()
    tally.replace(fresh)
    for row in source.rows():
        for example in _examples((row,), layout, labels, fresh):
            yield example, row.share


def reading_of(task: Task, omissions: Iterable[Omission] = ()) -> list[str]:
    """Return all sentences, without their stops, on how rows were read; `omissions` are those of the drawn ones."""
    layout, told = task.layout, omitted(merged(task.tally.omissions, omissions))
    if layout is None:
        return told
    score = beside_chance(task.source)
    return [
        columns_read(task.kind, layout.columns, layout.guessed, task.unread_columns),
        *told,
        *([score] if score is not None else []),
    ]


def dataset_facts(task: Task, encoded: Encoded) -> DatasetFacts:
    """Return the facts of the rows that a record comes from."""
    options = task.data.row_options
    options["columns"] = options["columns"] or {}
    return DatasetFacts(
        source=task.source,
        kind=task.kind,
        **options,
        rows=len(encoded.rows),
        tokens=encoded.tokens,
        truncated_rows=encoded.truncated_rows,
        lost_tokens=encoded.lost_tokens,
        left_out=encoded.left_out,
        guessed=task.layout is not None and task.layout.guessed,
        unread_columns=task.unread_columns,
        omissions=merged(task.tally.omissions, encoded.omissions),
    )
