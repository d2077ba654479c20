"""The errors a user sees as they are: one sentence that names the field, the value and the remedy, and no secret."""

import os
import re

SECRETS = ("SLIM_JUDGE_KEY", "OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables whose values are told to nobody."""
SHORTEST = 8
"""Characters of a secret; what is shorter could be any word."""
_USER = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def without_secrets(text: str) -> str:
    """The text without the keys of the environment, and without the user and password of a URL."""
    for name in SECRETS:
        if len(secret := os.environ.get(name, "").strip()) >= SHORTEST:
            text = text.replace(secret, "…")
    return _USER.sub("…", text)


class SlimError(Exception):
    """Work that was asked for correctly and failed on the way. `exit_code` is what the command line returns."""

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(without_secrets(text))


class InputError(SlimError):
    """Something the user gave cannot be used."""

    exit_code = 2


class Cancelled(SlimError):
    """The user stopped the work."""

    exit_code = 130
