"""Omissions of a reading: rows by reason, parts of rows, and columns; and the sentences that say so."""

from collections.abc import Iterable, Mapping, Sequence

from slim.core.records import DatasetFacts, Omission
from slim.data.templates import TEMPLATES

MOST_REASONS = 20
"""Different reasons that are counted apart; further ones, which a chat template can make up, are counted together."""
OTHER = "other reasons"
MOST_NAMED = 12
"""Columns that a sentence names."""


class RowLeftOut(Exception):
    """Why a row cannot be read. The reason names nothing of the row itself, so that rows of one reason are counted."""


class Tally:
    """Rows that are left out, and rows that are read in part, by reason."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, bool], tuple[int, int]] = {}

    def add(self, reason: str, row: int, whole: bool = True) -> None:
        """Count the row with number `row`: all of it, or else a part, is not read."""
        key = (reason, whole)
        if key not in self._found and len(self._found) >= MOST_REASONS:
            key = (OTHER, whole)
        count, first = self._found.get(key, (0, row))
        self._found[key] = (count + 1, min(first, row))

    def replace(self, other: "Tally") -> None:
        """Take the counts of another tally."""
        self._found = other._found

    @property
    def omissions(self) -> tuple[Omission, ...]:
        """The counts, whole rows first, most rows first."""
        found = [
            Omission(reason=reason, rows=rows, first=first, whole=whole)
            for (reason, whole), (rows, first) in self._found.items()
        ]
        return tuple(sorted(found, key=lambda one: (not one.whole, -one.rows, one.first)))


def merged(*parts: Iterable[Omission]) -> tuple[Omission, ...]:
    """Return the counts of several readings of one dataset, whole rows first."""
    found = [one for part in parts for one in part]
    return tuple(sorted(found, key=lambda one: not one.whole))


def left_out(omissions: Iterable[Omission]) -> int:
    """Return the number of rows that are left out as a whole."""
    return sum(one.rows for one in omissions if one.whole)


def omitted(omissions: Iterable[Omission]) -> list[str]:
    """Return a sentence, without its stop, for each reason why rows or parts of them are not read."""
    return [_sentence(one) for one in omissions]


def _sentence(one: Omission) -> str:
    rows, were = (f"{one.rows:,} rows", "were") if one.rows > 1 else ("1 row", "was")
    place = f"(the first is row {one.first:,})" if one.rows > 1 else f"(row {one.first:,})"
    how = f"{were} left out" if one.whole else f"{were} read in part"
    return f"{rows} {how}: {one.reason} {place}" if one.first else f"{rows} {how}: {one.reason}"


def columns_read(kind: str, columns: Mapping[str, str], guessed: bool, unread: Sequence[str]) -> str:
    """Return in a sentence, without its stop, how the columns were read and which were not."""
    said = f"Rows read as {TEMPLATES[kind].title.lower() if kind in TEMPLATES else kind}"
    if guessed:
        said += ", guessed from the names of the columns"
    said += ": " + ", ".join(f"{role} = {column!r}" for role, column in columns.items())
    return f"{said}; not read: {_listed(unread)}" if unread else f"{said}; every column is read"


def reading(facts: DatasetFacts) -> list[str]:
    """Return all sentences, without their stops, on how the rows of a record were read and what of them was not."""
    columns = (columns_read(facts.kind, facts.columns, facts.guessed, facts.unread_columns),) if facts.columns else ()
    return [*columns, *omitted(facts.omissions)]


def _listed(names: Sequence[str]) -> str:
    named = ", ".join(repr(name[:60]) for name in names[:MOST_NAMED])
    return named + (f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else "")
