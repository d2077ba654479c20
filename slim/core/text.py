"""Text as it can be kept: JSON can name half of a surrogate pair, which is not a character and can be neither written
down nor tokenized."""

import json
import re
from typing import Any

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def without_surrogates(text: str) -> str:
    """The text with a question mark for every half of a surrogate pair."""
    return text.encode(errors="replace").decode()


def parsed(text: str) -> Any:
    """The value of a JSON text, its texts sound. Raises ValueError where it is not JSON."""
    value = json.loads(text)
    return _whole(value) if _HALF.search(text) else value


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(one) for name, one in value.items()}
    return value
