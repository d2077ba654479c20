"""Where a model comes from: an id of the Hub, and files of weights."""

import hashlib
import re
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WEIGHTS = "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
CARRIED = (".json", ".jinja", ".model", ".txt")
"""Endings of the files that a rewritten checkpoint copies: config, tokenizer, plan. Code is never copied."""


def weights_of(folder: Path) -> list[Path]:
    """The files with weights in a folder; no pipe, which would be waited for."""
    return sorted(file for file in folder.glob("*.safetensors") if file.is_file())


def digest(files: list[Path]) -> str:
    """Return a hash of the contents of `files`, in their order."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
