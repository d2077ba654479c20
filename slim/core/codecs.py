"""Values with a structure as one text: the form that an option, a link and a command in a report have."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from slim.core.errors import InputError
from slim.core.formatting import number_text
from slim.core.request import Text

DIGITS = 9
"""Digits at most of the number of a layer or head."""


def pairs(example: str) -> Text:
    """Return the form `name=value,name=value` of a mapping of texts."""

    def read(option: str, text: str) -> dict[str, str]:
        found = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not (name and equals and value):
                raise InputError(f"{option}={part!r}: it is not of the form name=value; write {example}.")
            found[name] = value
        return found

    return Text(example, read, lambda found: ",".join(f"{name}={value}" for name, value in found.items()))


def numbers(example: str) -> Text:
    """Return the form `name=number,name=number` of a mapping of finite numbers."""
    plain = pairs(example)

    def read(option: str, text: str) -> dict[str, float]:
        return {name: _number(option, name, value, example) for name, value in plain.read(option, text).items()}

    return Text(example, read, _numbers_text)


def numbers_by_layer(example: str) -> Text:
    """Return the form `layer=number,layer=number` of a mapping."""
    plain = numbers(example)

    def read(option: str, text: str) -> dict[int, float]:
        return {_index(option, layer, example): value for layer, value in plain.read(option, text).items()}

    return Text(example, read, _numbers_text)


def places(example: str) -> Text:
    """Return the form `3:1,7` of ((3, 1), (7, 0)): layers, each with the number of a unit in it."""

    def read(option: str, text: str) -> tuple[tuple[int, int], ...]:
        parts = [part.strip().partition(":") for part in text.split(",")]
        return tuple((_index(option, layer, example), _index(option, unit or "0", example)) for layer, _, unit in parts)

    return Text(example, read, lambda found: ",".join(f"{layer}:{unit}" for layer, unit in found))


def whole_numbers(example: str) -> Text:
    """Return the form `0,29` of (0, 29)."""

    def read(option: str, text: str) -> tuple[int, ...]:
        return tuple(_index(option, part.strip(), example) for part in text.split(","))

    return Text(example, read, lambda found: ",".join(map(str, found)))


def names(example: str) -> Text:
    """Return the form `one,other` of a tuple of texts; blanks around them are left out."""
    return Text(example, lambda option, text: tuple(filter(None, map(str.strip, text.split(",")))), ",".join)


def _number(option: str, name: str, value: str, example: str) -> float:
    try:
        found = float(value)
    except ValueError:
        raise InputError(f"{option}={name}={value}: {value!r} is not a number; write {example}.") from None
    if not isfinite(found):
        raise InputError(f"{option}={name}={value}: the number is not finite; write {example}.")
    return found


def _index(option: str, text: str, example: str) -> int:
    if not (text.isdecimal() and len(text) <= DIGITS):
        raise InputError(f"{option}={text!r}: it is not a whole number; write {example}.")
    return int(text)


def _numbers_text(found: Mapping[Any, float]) -> str:
    return ",".join(f"{name}={number_text(value)}" for name, value in found.items())
