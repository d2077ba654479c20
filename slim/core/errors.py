"""The errors a user sees as they are: one sentence that names the field, the value and the remedy, and no secret."""

import os
import re

SECRETS = ("SLIM_JUDGE_KEY", "OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables whose values are shown to nobody."""
SHORTEST = 8
"""Characters of a secret; what is shorter could be any word."""
_USER = re.compile(r"(?<=://)[^/\s@]+(?=@)")


LONGEST = 1200
"""Characters of a message. A longer one loses its middle: what it quotes may be a whole file."""
_CONTROL = re.compile(r" *[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+ *")
"""Characters that would end the line, steer a terminal or reverse the text."""


def without_secrets(text: str) -> str:
    """The text without the keys of the environment, and without the user and password of a URL."""
    for name in SECRETS:
        if len(secret := os.environ.get(name, "").strip()) >= SHORTEST:
            text = text.replace(secret, "…")
    return _USER.sub("…", text)


class SlimError(Exception):
    """Work that was asked for correctly and failed on the way. `exit_code` is what the command line returns.

    Whatever a file or a library put into the message, it is one line that can be printed.
    """

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(_line(without_secrets(text)))


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
