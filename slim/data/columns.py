"""Layouts: a template fitted to the columns of a dataset, and how a row becomes an example by it."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from slim.core.errors import InputError
from slim.core.text import without_surrogates
from slim.data.templates import TEMPLATES, Example, Template, Turn

Values = Mapping[str, Any]
"""A row as it was read: column to value."""
LABELS = "labels"
"""The placeholder for every label of the dataset, where the template has a role `label`."""
MOST_LABELS = 40
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}\s][^{}\n]*)\}")
_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ColumnMapping:
    """A template fitted to the columns of a dataset: role to column, and the wording of the prompt.

    `source` is the dataset's name in messages.
    """

    template: Template
    columns: Mapping[str, str]
    prompt: str
    source: str = "of rows"

    @cached_property
    def placeholders(self) -> tuple[str, ...]:
        """The roles, columns and `labels` that the wording names."""
        return tuple(match[1] for match in _PLACEHOLDER.finditer(self.prompt) if match[1])

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The columns that a row cannot do without: those of the roles that are used."""
        used = {self.template.answer, *self.placeholders}
        if self.template.name == "choices":
            used.add("choices")
        return tuple(column for role, column in self.columns.items() if role in used)

    @cached_property
    def read(self) -> tuple[str, ...]:
        """All columns that are read: those needed, and further ones that the wording names."""
        return tuple(dict.fromkeys((*self.needed, *self._further)))

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

    def example(self, row: Values, number: int, labels: str) -> Example | None:
        """The row `number` as an example; None where a needed column is missing or blank."""
        if any(not as_text(row.get(column)).strip() for column in self.needed):
            return None
        if self.template.name == "chat":
            return self._conversation(row, number)
        said = {role: as_text(row.get(column)) for role, column in self.columns.items()}
        said |= {column: as_text(row.get(column)) for column in self._further} | {LABELS: labels}
        choices: list[str] = []
        if self.template.name == "choices":
            choices, chosen = self._choice(row, number)
            said["choices"] = "\n".join(f"{letter}. {text}" for letter, text in zip(_LETTERS, choices, strict=False))
            said["key"] = chosen
        prompt = _PLACEHOLDER.sub(lambda match: said[match[1]] if match[1] else match[0][0], self.prompt)
        return Example(prompt, said[self.template.answer].strip(), choices=tuple(choice.strip() for choice in choices))

    def _conversation(self, row: Values, number: int) -> Example | None:
        """The turns up to the last one of the assistant, which is the answer; None where it says nothing."""
        column = self.columns["messages"]
        value = row[column]
        turns: list[Turn] = []
        for turn in value if isinstance(value, list) else (value,):
            speaker = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
            if not isinstance(speaker, str):
                raise InputError(
                    f"dataset {self.source!r}: {column!r} of row {number} is not a list of turns with role and "
                    "content: map another column, or choose another template."
                )
            content = as_text(turn.get("content", turn.get("value")))
            if content.strip():
                turns.append((_SPEAKERS.get(speaker.lower(), speaker.lower()), content))
        while turns and turns[-1][0] != "assistant":
            turns.pop()
        if not turns:
            return None
        said, answer = tuple(turns[:-1]), turns[-1][1].strip()
        return Example(next((text for who, text in reversed(said) if who == "user"), ""), answer, said)

    def _choice(self, row: Values, number: int) -> tuple[list[str], str]:
        """The choices as text and the one that the key names, by place, letter or label."""
        choices, key = row[self.columns["choices"]], row[self.columns["key"]]
        texts, marks = choices, list(_LETTERS)
        if isinstance(choices, Mapping):
            texts, marks = choices.get("text"), [str(mark) for mark in choices.get("label", ())]
        if not isinstance(texts, list) or not texts:
            raise InputError(
                f"dataset {self.source!r}: {self.columns['choices']!r} of row {number} is not a list of choices: "
                "map another column to it."
            )
        texts = [str(text) for text in texts]
        if str(key) in marks[: len(texts)]:
            return texts, texts[marks.index(str(key))]
        try:
            place = int(key)
            if place != float(key) or place < 0:
                raise ValueError
            return texts, texts[place]
        except (ValueError, TypeError, IndexError, OverflowError):
            raise InputError(
                f"dataset {self.source!r}: {self.columns['key']}={key!r} of row {number} is not the place of one of "
                f"the choices {texts}: correct the row, or map another column."
            ) from None


def suggest_mapping(
    template: Template,
    names: Collection[str],
    columns: Mapping[str, str] | None = None,
    prompt: str | None = None,
    source: str = ColumnMapping.source,
) -> ColumnMapping:
    """The likeliest columns for the roles of a template, besides those given; roles that none fits have none."""
    columns = columns or {}
    taken = set(columns.values())
    found = {}
    for role, options in template.roles.items():
        column = columns.get(role) or next((name for name in options if name in names and name not in taken), None)
        if column is not None:
            found[role] = column
            taken.add(column)
    return ColumnMapping(template, found, template.prompt if prompt is None else prompt, source)


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
            roles = layout.template.roles if complete else (layout.template.answer,)
            if all(role in layout.columns for role in roles) and (complete or prompt is not None):
                return _checked(layout, names, columns)
    wanted = "; ".join(" + ".join(options[0] for options in one.roles.values()) for one in TEMPLATES.values())
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
    required = {template.answer} | ({"choices"} if template.name == "choices" else set())
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


def as_text(value: Any) -> str:
    """A value as text: of several accepted answers the first, of a record its `text` or `value`, of nothing blank."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return as_text(value[0]) if value else ""
    if isinstance(value, Mapping):
        inner = next((value[key] for key in ("text", "value") if key in value), None)
        return as_text(inner) if inner is not None else str(value)
    return str(value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
