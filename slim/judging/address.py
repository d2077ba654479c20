"""The address of a judge's endpoint, and where its key is found."""

from string import whitespace
from urllib.parse import urlsplit

from slim.core.errors import InputError

KEYS = ("SLIM_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first that is set counts."""


def base_url(url: str) -> str:
    """Return the base URL of an endpoint, given as such or with /chat/completions.

    Raises InputError for what is neither. The URL is not shown, as it may hold a key.
    """
    import httpx2  # here, as the command line need not wait for it

    text = url.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")
    try:
        parts = urlsplit(text)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        named = named and not set(text) & set(whitespace)
        more = "@" in parts.netloc or bool(set("?#") & set(text))
        httpx2.URL(text)
    except (ValueError, httpx2.InvalidURL):
        named = more = False
    if more:
        raise InputError(f"endpoint: the URL may hold no key, user or query; set {KEYS[0]} in the environment instead.")
    if not named:
        raise InputError("endpoint: the URL must be http(s)://host/path; write for instance http://127.0.0.1:8000/v1.")
    return text
