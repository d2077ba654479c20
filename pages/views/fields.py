"""Widgets made of requests: a field's title, bounds, default and help are those of the command line."""

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import streamlit as st

from slim.core.fields import Positions
from slim.core.request import Option, Request

KEEP = "session"
"""Values of fields last as long as the session, on every page."""
LARGEST = 2**31 - 1
"""The upper bound of a whole number without a bound of its own."""
POSITIONS: dict[Positions, str] = {"all": "Every token", "answer": "The answer only"}


def ask(
    request: type[Request],
    name: str,
    key: str,
    place: Any = st,
    *,
    value: Any = None,
    labels: Mapping[Any, str] | None = None,
    radio: bool = False,
    **widget: Any,
) -> Any:
    """Return the user's input for an option of a request; the widget follows from the option's type.

    `value` takes the place of the default, `labels` says how choices are shown, `radio` shows them side by side, and
    the rest goes to the widget.
    """
    option = request.option(name)
    kind, given = option.kind, option.default if value is None else value
    widget = {"label": option.title, "help": _capital(option.help), "key": key, "persist_state": KEEP} | widget
    if kind is bool:
        return place.checkbox(value=bool(given), **widget)
    if get_origin(kind) is Literal:
        choices, shown = list(labels or get_args(kind)), dict(labels or {})
        made = place.radio if radio else place.selectbox
        if radio:
            widget = {"horizontal": True} | widget
        return made(
            options=choices, index=choices.index(given), format_func=lambda one: shown.get(one, str(one)), **widget
        )
    if kind in (int, float):
        return place.number_input(value=given, **(_bounds(option, kind) | widget))
    return place.text_input(value=given or "", **widget).strip() or None


def _capital(text: str) -> str | None:
    return text[:1].upper() + text[1:] or None


def _bounds(option: Option, kind: type) -> dict[str, Any]:
    low, high = option.bounds
    if kind is int:
        return {"min_value": low, "max_value": LARGEST if high is None else high, "step": 1}
    return {"min_value": None if low is None else float(low), "max_value": None if high is None else float(high)}
