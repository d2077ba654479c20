"""Texts that name a place on disk, as people type them and files hold them."""

from pathlib import Path

from slim.errors import InputError


def place_of(field: str, text: str) -> Path:
    """The path that a text names, with its `~` resolved, whether or not something is there.

    Raises InputError naming the `field` for a text that no file can be called, or a folder one may not look into.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long or closed, a zero byte, a home of nobody
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{field} {text!r} cannot be looked for ({reason}): name another place.") from error
    return path


def is_file(path: Path) -> bool:
    """Whether a file is there that may be looked for; False, too, for what no file can be called."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
