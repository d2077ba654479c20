"""A judge's endpoint: its address, the key that opens it, and why a call to it failed."""

import asyncio
import functools
import hashlib
import json
import os
import re
import ssl
from collections.abc import Callable, Coroutine
from string import whitespace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai
from anyio.from_thread import start_blocking_portal
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import Field

from slim.core.errors import InputError, SlimError
from slim.core.records import Record

KEYS = ("SLIM_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first that is set."""
VERSION = 1
"""Of what is kept: raise it when the same question is put in another way."""
UNNAMED = "default"
"""The name that is asked for where an endpoint does not say which models it has."""
KEY_REFUSED = "the endpoint refuses the key"
SENT_AWAY = "the endpoint redirects to another address"
Messages = list[dict[str, str]]
Result = TypeVar("Result")


class Endpoint(Record):
    """A judge and how it is asked. The key is no part of it: it is read from the environment with each run."""

    url: str = Field(description="base URL, without /chat/completions")
    model: str
    concurrency: int = Field(default=16, ge=1, le=1000)
    timeout: float = Field(default=60.0, gt=0, description="seconds that one try may take")
    retries: int = Field(default=5, ge=0, le=100)
    max_tokens: int = Field(default=512, ge=1, description="of a judge's answer")
    system_turn: bool = Field(default=True, description="whether it takes one; else its text stands in the user turn")
    identity: str | None = Field(
        default=None, description="of a judge that was started for the run, whose address is another one each time"
    )

    def key_of(self, messages: Messages) -> str:
        """What an answer is kept under: the judge, and the rubric, question, outputs and order in the messages."""
        judge = [self.url, self.model] if self.identity is None else [self.identity]
        asked = [VERSION, *judge, self.max_tokens, messages]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def base_url(url: str) -> str:
    """The base URL of an endpoint, given as such or with /chat/completions. Raises InputError for what is neither."""
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
        raise InputError(f"endpoint: the URL may hold no key, user or query: set {KEYS[0]} in the environment instead.")
    if not named:
        raise InputError("endpoint: the URL must be http(s)://host/path: write for instance http://127.0.0.1:8000/v1.")
    return text


def prepare(url: str, model: str | None, asking: dict[str, Any]) -> tuple[Endpoint, SlimError | None]:
    """The endpoint, and what is wrong with it where nothing but earlier answers could help.

    Where no `model` is named it is the endpoint's only one. Raises InputError for a bad URL or setting or several
    models, and where no model is named, what is wrong with the endpoint.
    """
    place, trouble = base_url(url), None
    made = Endpoint.checked(url=place, model=model or UNNAMED, **asking)
    try:
        names = models_of(place, made.timeout)
    except SlimError as error:
        if model is None:
            raise
        names, trouble = [], error
    if model is not None or not names:
        return made, trouble
    if len(names) > 1:
        raise InputError(
            f"judge_model: {place} has {len(names):,} models ({', '.join(names[:5])} …): name one of them."
        )
    return made.model_copy(update={"model": names[0]}), None


def models_of(url: str, timeout: float) -> list[str]:
    """The models that an endpoint names; none where it keeps no list.

    Raises InputError where it refuses the key or sends elsewhere, SlimError where it does not answer.
    """

    async def names() -> list[str]:
        async with connect(url, timeout, retries=1) as client:
            return [model.id async for model in client.models.list()]

    try:
        return awaited(names)
    except openai.AuthenticationError as error:
        raise InputError(f"endpoint {url}: {failure_of(error)}: set {KEYS[0]} or {KEYS[1]}.") from None
    except openai.APIConnectionError as error:
        raise SlimError(f"endpoint {url}: {failure_of(error)}: is it running, and is the URL right?") from None
    except openai.APIStatusError as error:
        if 300 <= error.status_code < 400:
            raise InputError(f"endpoint {url}: {failure_of(error)}.") from None
        return []
    except (openai.OpenAIError, AttributeError, TypeError, ValueError):  # the list is no part of what is needed
        return []


def awaited(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """What `work` gives, also where an event loop is at work already, as in a notebook: in a thread of its own then."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with start_blocking_portal() as portal:
        return portal.call(work)


def connect(url: str, timeout: float, retries: int, own: bool = False) -> AsyncOpenAI:
    """A client of the endpoint, with the key of the environment, or a word in its place where there is none.

    It goes nowhere else: what an endpoint redirects to is not followed, with the key or without.
    A server of one's `own` is sent no key, and no proxy stands between.
    """
    keys = (found for name in KEYS if (found := os.environ.get(name, "").strip()))
    key = "none" if own else next(keys, "none")
    transport = _Bounded(timeout, verify=_tls(), trust_env=not own, follow_redirects=False)
    return AsyncOpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries, http_client=transport)


class _Bounded(DefaultAsyncHttpxClient):
    """Ends each try after `limit` seconds. httpx bounds each read alone, so that an answer may drip in for ever."""

    def __init__(self, limit: float, **options: Any) -> None:
        super().__init__(timeout=limit, **options)
        self._limit = limit

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """The response with its body. Raises httpx's own error where it is not there in time."""
        try:
            async with asyncio.timeout(self._limit):
                return await super().send(request, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the whole answer took too long", request=request) from error


@functools.cache
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes longer than many a call, so it is done once."""
    return httpx2.create_ssl_context()


def without_key(text: str) -> str:
    """The text without the key, which an endpoint may repeat."""
    for name in KEYS:
        if key := os.environ.get(name, "").strip():
            text = text.replace(key, "…")
    return text


def failure_of(error: Exception) -> str:
    """Why a call failed, in the same words for the same cause, so that they can be counted. Never the server's text."""
    if isinstance(error, openai.APITimeoutError):
        return "the endpoint took longer than the timeout"
    if isinstance(error, openai.APIConnectionError):
        return "the endpoint does not answer"
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return f"{KEY_REFUSED} (HTTP {error.status_code})"
    if isinstance(error, openai.APIStatusError) and 300 <= error.status_code < 400:
        return f"{SENT_AWAY} (HTTP {error.status_code}), which is not followed: name the URL it leads to"
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code} from the endpoint{_hint(error)}"
    return "an answer that is not of the OpenAI API"


def _hint(error: openai.APIStatusError) -> str:
    """The endpoint's own code of the error, a bare word."""
    code = getattr(error, "code", None)
    return without_key(f" ({code})") if isinstance(code, str) and re.fullmatch(r"[a-z_]{3,40}", code) else ""
