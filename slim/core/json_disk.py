"""The reader of the workspace's SQLite stores: JSON, never a pickle."""

import zlib
from typing import Any

from diskcache import JSONDisk
from diskcache.core import MODE_PICKLE

BAD = (zlib.error, ValueError, TypeError, RecursionError)
"""Errors of reading a value or key that Slim did not write."""


class JsonDisk(JSONDisk):
    """JSON alone: a value that is damaged, or that somebody put there as a pickle, is as good as none."""

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        if mode == MODE_PICKLE:
            return None
        try:
            return super().fetch(mode, filename, value, read)
        except BAD:
            return None

    def get(self, key: Any, raw: bool) -> Any:
        """Return a key; one that is not JSON of ours names nothing."""
        try:
            return super().get(key, raw) if raw else ""
        except BAD:
            return ""
