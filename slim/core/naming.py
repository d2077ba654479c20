"""How a report names things: what others can look up as it is, and what lies on this machine by its last name alone."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from slim.core.records import DatasetFacts

_FOLDERS = re.compile(r"(?<![\w/.:~])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"`,;:/\\]+[/\\])+")
"""The folders before a file's name, in running text."""


def named(source: str) -> str:
    """A model, dataset or run as others may read it: a Hub id or a bundled name, or a path's last part."""
    path = Path(source).expanduser()
    local = path.is_absolute() or source.startswith(".") or source.count("/") > 1 or path.exists()
    return path.name if local and path.name else source


def without_folders(text: str, sources: Iterable[str] = ()) -> str:
    """A sentence of a record without the folders of this machine that it may name; `sources` are known to be in it."""
    for source in sorted(filter(None, sources), key=len, reverse=True):
        text = text.replace(source, named(source))
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(home + os.sep, "")
    return _FOLDERS.sub("", text)


def data_words(data: DatasetFacts) -> str:
    """A dataset's name, and which part of it."""
    parts = [named(data.source)]
    parts += [f"config {data.config}"] if data.config else []
    parts += [f"split {data.split}"] if data.split else []
    parts += [f"revision {data.revision}"] if data.revision else []
    return ", ".join(parts)


def endpoint_words(url: str) -> str:
    """An endpoint's address without what could be a secret: user, query and fragment."""
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        return "an endpoint"


def settings_words(settings: Mapping[str, object]) -> str:
    """Settings as name=value; what was found on the way and long lists stand elsewhere."""
    return ", ".join(
        f"{name}={named(value) if isinstance(value, str) else value}"
        for name, value in settings.items()
        if isinstance(value, str | int | float) or value is None
    )


def versions_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
