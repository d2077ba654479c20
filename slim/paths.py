"""Paths as a person gave them, and as files hold them: looked at without surprises."""

import errno
import os
import stat
from pathlib import Path

from slim.errors import InputError

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def local(text: str, field: str = "path") -> Path:
    """The path that `text` names, with `~` as the home of who runs Slim; there need be nothing there.

    Raises InputError for what can be no path, and for what is neither a file nor a folder, as a device or a pipe.
    """
    path = _expanded(text, field)
    try:
        there = path.stat()
    except OSError as error:
        if error.errno in ABSENT:
            return path
        raise InputError(f"{field} {text[:200]!r} cannot be looked at ({error.strerror}): name another.") from error
    if not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)):
        raise InputError(f"{field} {text!r} is neither a file nor a folder: name one.")
    return path


def is_file(path: Path) -> bool:
    """Whether a file is there; False, too, for what no file can be called or one may not look at."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _expanded(text: str, field: str) -> Path:
    try:
        os.fsencode(text)
        if "\0" in text:
            raise ValueError("it holds a null character")
        return Path(text).expanduser()
    except (ValueError, RuntimeError) as error:  # of signs that no file system takes; of the home of a user unknown
        raise InputError(f"{field} {text!r} can be no path ({error}): write it out in full.") from error
