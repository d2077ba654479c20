"""Files that a browser sent: kept in the workspace under their own names, and told apart by what they hold."""

import hashlib
import os
import re
from pathlib import Path

from slim.core import workspace
from slim.core.errors import InputError
from slim.data.sources import FORMATS

LONGEST_NAME = 120
"""Bytes of a name that are kept; file systems take 255 with all that is put to it."""


def keep_upload(name: str, content: bytes | memoryview) -> Path:
    """Where an uploaded file is kept: under its own name, and told apart from others of that name by its content.

    Raises InputError for a file that is not of rows, which a page offers only, but anybody may send.
    """
    stem, _, ending = os.path.basename(name).rpartition(".")
    if f".{ending.lower()}" not in FORMATS:
        raise InputError(f"upload {name[:200]!r} is not a file of rows: name a {', '.join(FORMATS)} file.")
    stem = re.sub(r"[^\w.-]+", "-", stem).encode()[:LONGEST_NAME].decode(errors="ignore").strip("-.") or "rows"
    path = workspace.subfolder("uploads") / f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.{ending.lower()}"
    if not path.exists():
        workspace.write_file(path, content)
    return path


def kept_uploads() -> list[Path]:
    """The uploaded files, newest first."""
    files = [path for path in workspace.subfolder("uploads").iterdir() if not path.name.startswith(".")]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)
