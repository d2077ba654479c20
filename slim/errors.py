"""The errors a user sees as they are: one sentence that names the field, the value and the remedy."""

import re

LONGEST = 1200
"""Characters of a message. A longer one loses its middle: what it quotes may be a whole file."""
_CONTROL = re.compile(r" *[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+ *")
"""What would end the line, steer a terminal or turn the text round."""


class SlimError(Exception):
    """Work that was asked for correctly and failed on the way. `exit_code` is what the command line returns.

    Whatever a file or a library put into the message, it is one line that can be printed.
    """

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(_line(text))


class InputError(SlimError):
    """Something the user gave cannot be used."""

    exit_code = 2


class Cancelled(SlimError):
    """The user stopped the work."""

    exit_code = 130


def _line(text: str) -> str:
    text = _CONTROL.sub(" ", text).strip().encode(errors="backslashreplace").decode()  # half a surrogate pair
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST * 3 // 4]} … {text[-LONGEST // 4 + 3 :]}"
