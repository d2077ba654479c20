"""Requests: the names, defaults, bounds and help of everything a user may set for a stage, written down once.

A request is a frozen record. Command line, forms, jobs, the commands in a report and the Python functions are derived
from its fields, so none of them can drift from another. Facts of a field beyond its type and default stand beside it in
`Annotated`, as one of the markers below.
"""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar, Union, get_args, get_origin

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo

from slim.core.errors import InputError
from slim.core.formatting import number_text
from slim.core.paths import local
from slim.core.records import Record

M = TypeVar("M")
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Argument:
    """On the command line the field is an argument, shown as `metavar`, and not an option."""

    metavar: str


@dataclass(frozen=True)
class Named:
    """On the command line the field has these names; the first is its own, the others are understood as well."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """How a value with a structure is read from one text and written as one; `form` is an example of it."""

    form: str
    read: Callable[[str, str], Any]
    """Takes the name of the option, for errors, and the text."""
    write: Callable[[Any], str]


class Located:
    """The field may name a file or folder, which a job needs in full."""


if TYPE_CHECKING:
    NameOrPath = str | os.PathLike[str]
else:
    NameOrPath = Annotated[
        str, BeforeValidator(lambda it: os.fspath(it) if isinstance(it, os.PathLike) else it), Located()
    ]
"""A model, a dataset or a run by its name or its path; a saved record stands for its own path."""


@dataclass(frozen=True)
class Option:
    """A field of a request, or of a record within it, as everything derived from the request sees it."""

    name: str
    info: FieldInfo
    field: str
    within: str | None = None

    def marker(self, kind: type[M]) -> M | None:
        """Return the marker of a kind that the field, or a part of its type, has; None without one."""
        every = (*self.info.metadata, *_nested_metadata(self.info.annotation))
        return next((one for one in every if isinstance(one, kind)), None)

    @property
    def required(self) -> bool:
        return self.info.is_required()

    @property
    def default(self) -> Any:
        return None if self.required else self.info.get_default(call_default_factory=True)

    @property
    def title(self) -> str:
        """Its name in a form."""
        return self.info.title or self.name.replace("_", " ").capitalize()

    @property
    def help(self) -> str:
        return self.info.description or ""

    @property
    def spellings(self) -> tuple[str, ...]:
        """Its names on the command line."""
        named = self.marker(Named)
        return named.names if named else (f"--{self.name.replace('_', '-')}",)

    @property
    def kind(self) -> Any:
        """Its type without None and without annotations, for instance int, a Literal, or a tuple of texts."""
        return _kind(self.info.annotation)

    @property
    def bounds(self) -> tuple[Any, Any]:
        """The least and the largest number that it may be, or that it must stay above or below; None without one."""
        return self._bound("ge", "gt"), self._bound("le", "lt")

    def _bound(self, *names: str) -> Any:
        found = (getattr(one, name, None) for one in self.info.metadata for name in names)
        return next((one for one in found if one is not None), None)


class Request(Record):
    """Everything a user may set for one run of a stage."""

    verb: ClassVar[str]
    """The command, and the kind of its job."""
    earlier: ClassVar[Mapping[str, str]] = {}
    """Names of arguments in jobs of Slim 0.1, each with its name of today."""

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """Return the fields, those of records within the request among them, in the order of forms and help."""
        return _options(cls)

    @classmethod
    def option(cls, name: str) -> Option:
        """Return an option by its name. Raises KeyError for a name that is not among them."""
        return {option.name: option for option in cls.options()}[name]

    @classmethod
    def asked(cls, **values: Any) -> Self:
        """Return the request for values by the names of its options; None stands for the default.

        A record within the request may be given whole as well. Raises InputError naming the first value that cannot be.
        """
        known = {option.name: option for option in cls.options()}
        parts = {option.within for option in known.values()}
        raw: dict[str, Any] = {name: dict(value) for name, value in values.items() if name in parts}
        values = {name: value for name, value in values.items() if name not in parts}
        if unknown := values.keys() - known.keys():
            raise InputError(f"{min(unknown)}: `slim {cls.verb}` has no such option; it has {', '.join(known)}.")
        for name, value in values.items():
            option = known[name]
            if value is None and (option.required or option.default is not None):
                continue
            place = raw if option.within is None else raw.setdefault(option.within, {})
            place[option.field] = value
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise _refused(cls, error) from error

    @classmethod
    def of_job(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the request of a job, whichever version stored it. Raises InputError for one that cannot be."""
        return cls.asked(**dict(_flat_names(cls, arguments)))

    def flat(self) -> dict[str, Any]:
        """Return the value of every option, by its name."""
        return {
            option.name: getattr(self if option.within is None else getattr(self, option.within), option.field)
            for option in self.options()
        }

    def changed(self) -> dict[str, Any]:
        """Return the values that differ from the defaults, by the names of their options."""
        defaults = {option.name: option.default for option in self.options()}
        return {name: value for name, value in self.flat().items() if value != defaults[name]}

    def arguments(self) -> dict[str, Any]:
        """Return the values that differ from the defaults, as JSON and with whole paths, for a job to store."""
        dumped, changed = self.model_dump(mode="json"), self.changed()
        found = {}
        for option in self.options():
            if option.name in changed:
                value = (dumped if option.within is None else dumped[option.within])[option.field]
                placed = option.marker(Located) is not None
                found[option.name] = _placed(value, new=option.name == "output") if placed else value
        return found

    def command(self, *, always: tuple[str, ...] = (), **others: Any) -> str:
        """Return the command that asks for this: options that differ from the defaults, and those named in `always`.

        `others` take the place of values, for instance a path that is shown by its name alone.
        """
        values, changed = self.flat() | others, self.changed() | others
        arguments, options = [], []
        for option in self.options():
            value = values[option.name]
            if value is None or (option.name not in changed and option.name not in always):
                continue
            if option.marker(Argument):
                arguments += map(str, value if isinstance(value, list | tuple) else [value])
            else:
                options += _words(option, value)
        return shlex.join(["slim", self.verb, *arguments, *options])

    def part(self, kind: type[R]) -> R:
        """Return the values that a record has fields for, as that record."""
        return kind.model_validate({name: getattr(self, name) for name in kind.model_fields})


class Saves(Record):
    """The part of a request that says where its run is saved; by default in the workspace."""

    output: Annotated[Path | None, Located()] = Field(
        default=None, title="Output", description="new file or folder (default: in the workspace)"
    )


@cache
def _options(request: type[Request]) -> tuple[Option, ...]:
    found = []
    for name in _ordered(request):
        info = request.model_fields[name]
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Record):
            found += [Option(_own_name(one, at), at, one, name) for one, at in kind.model_fields.items()]
        else:
            found.append(Option(name, info, name))
    return tuple(found)


def _ordered(request: type[Request]) -> Iterator[str]:
    """The request's own fields first, then those of each record that it extends, in the order it names them."""
    seen: set[str] = set()
    for kind in request.__mro__:
        for name in vars(kind).get("__annotations__", {}):
            if name in request.model_fields and name not in seen:
                seen.add(name)
                yield name


def _kind(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _kind(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation


def _nested_metadata(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _nested_metadata(part)


def _own_name(field: str, info: FieldInfo) -> str:
    """A field of a record within a request may have another name as an option."""
    named = next((one for one in info.metadata if isinstance(one, Named)), None)
    return named.names[0].removeprefix("--").replace("-", "_") if named else field


def _flat_names(request: type[Request], arguments: Mapping[str, Any], within: str | None = None) -> Iterator[tuple]:
    """Values by the names of options; those of Slim 0.1 had other names and stood in groups."""
    options = {(option.within, option.field): option.name for option in request.options()}
    names, parts = set(options.values()), {option.within for option in request.options()}
    for name, value in arguments.items():
        if isinstance(value, Mapping) and name not in names:
            yield from _flat_names(request, value, name if name in parts else None)
        else:
            yield options.get((within, name), request.earlier.get(name, name)), value


def _refused(request: type[Request], error: ValidationError) -> InputError:
    """The first value that cannot be, by the name of its option."""
    first = error.errors()[0]
    place = tuple(map(str, first["loc"]))
    names = {(option.within, option.field): option.name for option in request.options()}
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if first["type"] == "missing" else f"={first['input']!r}"
    if not place:
        return InputError(f"{message}.")
    name, *rest = place
    if name in {option.within for option in request.options()}:
        name, *rest = (names[name, rest[0]], *rest[1:])
    return InputError(f"{'.'.join((name, *rest))}{shown}: {message}.")


def _words(option: Option, value: Any) -> list[str]:
    spelling = option.spellings[0]
    if isinstance(value, bool):
        on, _, off = spelling.partition("/")
        return [on] if value else [off] if off else []
    if text := option.marker(Text):
        return [spelling, text.write(value)]
    return [spelling, number_text(value) if isinstance(value, float) else str(value)]


def _placed(value: Any, new: bool) -> Any:
    """Whole paths of files and folders that are there, or will be; names of anything else stay as they are."""
    if isinstance(value, list):
        return [_placed(one, new) for one in value]
    if isinstance(value, str):
        with suppress(InputError):  # what can be no path, or may not be looked at, is the stage's to refuse
            path = local(value)
            if new or path.exists():
                return str(path.absolute())
    return value
