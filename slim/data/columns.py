"""Layouts: a template fitted to the columns of a dataset, and the prompt that it words."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from slim.core.errors import InputError
from slim.core.text import without_surrogates
from slim.data.templates import TEMPLATES, Template

Values = Mapping[str, Any]
"""A row as it was read: column to value."""
LABELS = "labels"
"""The placeholder for every label of the dataset, where the template has a role `label`."""
MOST_LABELS = 40
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}\s][^{}\n]*)\}")
BESIDE = frozenset({"system", "history", "tools"})
"""Optional roles that are turns or tools of their own, besides the prompt."""


@dataclass(frozen=True)
class ColumnMapping:
    """A template fitted to the columns of a dataset: role to column, and the wording of the prompt.

    `source` is the dataset's name in messages; `guessed` says whether the template or a column was not given.
    """

    template: Template
    columns: Mapping[str, str]
    prompt: str
    source: str = "of rows"
    guessed: bool = field(default=False, compare=False)

    @cached_property
    def placeholders(self) -> tuple[str, ...]:
        """The roles, columns and `labels` that the wording names."""
        return tuple(match[1] for match in _PLACEHOLDER.finditer(self.prompt) if match[1])

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The columns that a row cannot do without: those of the roles that are used."""
        used = {self.template.answer, *self.placeholders, *self.template.required} - self.template.optional
        return tuple(column for role, column in self.columns.items() if role in used)

    @cached_property
    def read(self) -> tuple[str, ...]:
        """All columns that are read: those needed, optional ones, and further ones that the wording names."""
        optional = [
            column
            for role, column in self.columns.items()
            if role in self.template.optional and (role in self.placeholders or role in BESIDE)
        ]
        return tuple(dict.fromkeys((*self.needed, *optional, *self._further)))

    def unread(self, names: Iterable[str]) -> tuple[str, ...]:
        """The columns among `names` that are not read."""
        return tuple(name for name in names if name not in self.read)

    @cached_property
    def _further(self) -> tuple[str, ...]:
        return tuple(name for name in self.placeholders if name not in self.columns and name != LABELS)

    def labels(self, rows: Iterable[Values]) -> str:
        """Every label among `rows` as a list in words; empty where the wording asks for none."""
        if LABELS not in self.placeholders:
            return ""
        column = self.columns["label"]
        found = sorted({text for row in rows if (text := as_text(row.get(column)).strip())})
        if len(found) > MOST_LABELS:
            raise InputError(
                f"prompt: {{{LABELS}}} stands for {len(found):,} different values of the column {column!r}, "
                f"more than {MOST_LABELS}: map another column to the label, or write a prompt without it."
            )
        return " or ".join(part for part in (", ".join(found[:-1]), *found[-1:]) if part)

    def worded(self, row: Values, said: Mapping[str, str]) -> str:
        """Return the prompt of a row, with `said` for its roles. A paragraph of an optional role alone may be empty."""
        said = dict(said) | {column: as_text(row.get(column)) for column in self._further}
        wording = self.prompt
        for role in self.template.optional:
            if not said.get(role, "").strip():
                wording = _without_paragraph(wording, role)
        return _PLACEHOLDER.sub(lambda match: said[match[1]] if match[1] else match[0][0], wording)


def suggest_mapping(
    template: Template,
    names: Collection[str],
    columns: Mapping[str, str] | None = None,
    prompt: str | None = None,
    source: str = ColumnMapping.source,
) -> ColumnMapping:
    """The likeliest columns for the roles of a template, besides those given; roles that none fits have none.

    Columns for optional roles are guessed unless all others are given.
    """
    columns = columns or {}
    taken = set(columns.values())
    complete = all(role in columns for role in template.roles if role not in template.optional)
    found = {}
    for role, options in template.roles.items():
        column = columns.get(role)
        if column is None and not (complete and role in template.optional):
            column = next((name for name in options if name in names and name not in taken), None)
        if column is not None:
            found[role] = column
            taken.add(column)
    if prompt is None:
        prompt = template.prompt
        for role in template.optional - found.keys():
            prompt = _without_paragraph(prompt, role)
    return ColumnMapping(template, found, prompt, source, guessed=found != columns)


def fit_mapping(
    names: Collection[str],
    template: str | None = None,
    columns: Mapping[str, str] | None = None,
    prompt: str | None = None,
    source: str = ColumnMapping.source,
) -> ColumnMapping:
    """The layout for a dataset with the columns `names`: what is not given is guessed.

    Raises InputError for an unknown template, role or column, a placeholder that names none, or when nothing fits.
    """
    columns = {role: column for role, column in (columns or {}).items() if column}
    if prompt is not None and prompt != without_surrogates(prompt):
        raise InputError("prompt: it holds half of a character: write it anew.")
    if template is not None and template not in TEMPLATES:
        raise InputError(f"template {template!r} does not exist: choose {', '.join(TEMPLATES)}.")
    for role, column in columns.items():
        if column not in names:
            raise InputError(
                f"columns: {role}={column!r} is not a column of dataset {source!r}: choose {_listed(names)}."
            )
    if template is not None:
        return _checked(suggest_mapping(TEMPLATES[template], names, columns, prompt, source), names, columns)
    layouts = [
        suggest_mapping(one, names, columns, prompt, source)
        for one in TEMPLATES.values()
        if columns.keys() <= one.roles.keys()
    ]
    if columns and not layouts:
        raise InputError(f"columns: no template has the roles {_listed(columns)} together: name a template as well.")
    # With a wording of one's own a template may fit although its question is not among the columns.
    for complete in (True, False):
        for layout in layouts:
            roles = layout.template.roles.keys() - layout.template.optional if complete else {layout.template.answer}
            if roles <= layout.columns.keys() and (complete or prompt is not None):
                return replace(_checked(layout, names, columns), guessed=True)
    wanted = "; ".join(
        " + ".join(options[0] for role, options in one.roles.items() if role not in one.optional)
        for one in TEMPLATES.values()
    )
    raise InputError(
        f"dataset {source!r} has the columns {sorted(names)}, and no template fits them (these would: {wanted}): "
        "name a template and which column is what, or rename the columns."
    )


def _checked(layout: ColumnMapping, names: Collection[str], given: Mapping[str, str]) -> ColumnMapping:
    """Raises InputError unless every role that is used has a column and every placeholder a meaning."""
    template = layout.template
    for role in given:
        if role not in template.roles:
            raise InputError(f"columns: template {template.name!r} has no role {role!r}: {_listed(template.roles)}.")
    if template.name == "chat" and layout.prompt:
        raise InputError("prompt: the turns of a chat are used as they are: leave the prompt out.")
    required = {template.answer, *template.required}
    for role in template.roles:
        asked = role in layout.placeholders and role not in names
        if role not in layout.columns and (role in required or asked):
            raise InputError(
                f"columns: template {template.name!r} needs a column for {role!r}: choose one of {_listed(names)}."
            )
    meanings = {*layout.columns, *names, *({LABELS} if "label" in layout.columns else ())}
    for name in layout.placeholders:
        if name not in meanings:
            raise InputError(
                f"prompt: {{{name}}} names no column: use {_listed(f'{{{one}}}' for one in meanings)}, "
                f"or {{{{{name}}}}} for the braces themselves."
            )
    return layout


def as_text(value: Any, first: bool = False) -> str:
    """A value as text: a record's `text` or `value`, the items of a list line by line, JSON of what else is not text.

    Of several accepted answers only the `first` is wanted.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        if first:
            return as_text(value[0], first) if value else ""
        return "\n".join(as_text(one) for one in value)
    if isinstance(value, Mapping):
        inner = next((value[key] for key in ("text", "value") if value.get(key) is not None), None)
        return as_text(inner, first) if inner is not None else as_json(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else as_json(value).strip('"')


def as_json(value: Any) -> str:
    """A value as JSON; dates and the like as their text."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _without_paragraph(wording: str, role: str) -> str:
    """The wording without a paragraph that is one role alone."""
    return re.sub(rf"(^|\n\n)\{{{re.escape(role)}\}}(?=\n\n|$)", "", wording)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
