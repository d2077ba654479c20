"""The rows of a request: where they come from, and how they are read."""

from typing import Annotated, Any, Self

from pydantic import Field

from slim.core.codecs import pairs
from slim.core.records import DatasetFacts, Record
from slim.core.request import NameOrPath

DATASET = (
    "bundled:briefs, bundled:triage, bundled:everyday, bundled:general, a .jsonl, .csv, .parquet or .txt file, "
    "or a Hub id"
)


class RowOptions(Record):
    """How the rows of a source are found and read; what is not given is guessed from the names of the columns."""

    config: str | None = Field(default=None, title="Configuration", description="configuration of a Hub dataset")
    split: str | None = Field(
        default=None, title="Split", description="split to draw rows from (default: train; held-out rows: test)"
    )
    revision: str | None = Field(default=None, title="Revision", description="revision of a Hub dataset")
    template: str | None = Field(
        default=None, title="Template", description="kind of task: summarisation, maths, classification, chat …"
    )
    columns: Annotated[dict[str, str] | None, pairs("question=ask,answer=reply")] = Field(
        default=None, title="Columns", description="role of each column, for instance question=ask,answer=reply"
    )
    prompt: str | None = Field(default=None, title="Prompt", description="wording of the prompt, with {column} in it")

    @property
    def row_options(self) -> dict[str, Any]:
        """These options alone, whatever else the record holds."""
        return {name: getattr(self, name) for name in RowOptions.model_fields}


class DataSource(RowOptions):
    """Rows by where they come from and how they are read."""

    source: NameOrPath = Field(default="bundled:briefs", description=DATASET)

    @classmethod
    def of(cls, source: "str | DataSource", **options: Any) -> Self:
        """Return the rows of a source, `options` in place of its own. Raises InputError for one that cannot be."""
        given: dict[str, Any] = source.model_dump() if isinstance(source, DataSource) else {"source": source}
        return cls.checked(**given | options)

    @classmethod
    def of_facts(cls, facts: DatasetFacts) -> Self:
        """Return the rows that a record was made from."""
        options: dict[str, Any] = {name: getattr(facts, name) for name in RowOptions.model_fields}
        options["columns"] = facts.columns or None  # of rows that need no columns
        return cls(source=facts.source, **options)


class ReadsRows(RowOptions):
    """The part of a request that names its rows."""

    dataset: NameOrPath = Field(default="bundled:briefs", title="Task data", description=DATASET)

    @property
    def data(self) -> DataSource:
        return DataSource(source=self.dataset, **self.row_options)


class MayReadRows(RowOptions):
    """The part of a request whose rows need not be named."""

    dataset: NameOrPath | None = Field(default=None, title="Task data", description=DATASET)

    @property
    def data(self) -> DataSource | None:
        """The rows that are named; None where none are, and the options are not used."""
        return None if self.dataset is None else DataSource(source=self.dataset, **self.row_options)
