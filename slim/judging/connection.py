"""The connection to a judge's endpoint: its models, the key that opens it, and why a call to it failed."""

import asyncio
import functools
import os
import re
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx2
import openai
from anyio.from_thread import start_blocking_portal
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from slim.core.errors import InputError, SlimError
from slim.judging.address import KEYS, base_url
from slim.judging.endpoint import UNNAMED, Endpoint

KEY_REFUSED = "the endpoint refuses the key"
SENT_AWAY = "the endpoint redirects to another address"
Result = TypeVar("Result")


def prepare(url: str, model: str | None, asking: dict[str, Any]) -> tuple[Endpoint, SlimError | None]:
    """The endpoint, and its error where only cached answers can be used.

    Where no `model` is named it is the endpoint's only one. Raises InputError for a bad URL or setting or several
    models, and, where no model is named, the endpoint's error.
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
    """The models that an endpoint lists; empty where it has no list.

    Raises InputError where it refuses the key or redirects, SlimError where it does not answer.
    """

    async def names() -> list[str]:
        async with connect(url, timeout, retries=1) as client:
            return [model.id async for model in client.models.list()]

    try:
        return awaited(names)
    except openai.AuthenticationError as error:
        raise InputError(f"endpoint={url!r}: {failure_of(error)}; set {KEYS[0]} or {KEYS[1]}.") from None
    except openai.APIConnectionError as error:
        raise SlimError(f"endpoint={url!r}: {failure_of(error)}; start the server, or correct the URL.") from None
    except openai.APIStatusError as error:
        if 300 <= error.status_code < 400:
            raise InputError(f"endpoint={url!r}: {failure_of(error)}.") from None
        return []
    except (openai.OpenAIError, AttributeError, TypeError, ValueError):  # the list is optional
        return []


def awaited(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """The result of `work`, which runs in a thread of its own where an event loop is running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    with start_blocking_portal() as portal:
        return portal.call(work)


def connect(url: str, timeout: float, retries: int, own: bool = False) -> AsyncOpenAI:
    """A client of the endpoint, with the key of the environment, or a placeholder where no key is set.

    Redirects are not followed, with the key or without. An `own` server, started for the run, gets no key, and is
    reached without a proxy.
    """
    keys = (found for name in KEYS if (found := os.environ.get(name, "").strip()))
    key = "none" if own else next(keys, "none")
    transport = _Bounded(timeout, verify=_tls(), trust_env=not own, follow_redirects=False)
    return AsyncOpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries, http_client=transport)


class _Bounded(DefaultAsyncHttpxClient):
    """Ends each attempt after `limit` seconds; httpx bounds each read alone, so that a slow answer might never end."""

    def __init__(self, limit: float, **options: Any) -> None:
        super().__init__(timeout=limit, **options)
        self._limit = limit

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """The response with its body. Raises httpx's own error where it takes longer than the limit."""
        try:
            async with asyncio.timeout(self._limit):
                return await super().send(request, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the whole answer took too long", request=request) from error


@functools.cache
def _tls() -> ssl.SSLContext:
    """The TLS context, made once: reading the certificates takes longer than many a call."""
    return httpx2.create_ssl_context()


def without_key(text: str) -> str:
    """The text without the key, which an endpoint may repeat."""
    for name in KEYS:
        if key := os.environ.get(name, "").strip():
            text = text.replace(key, "…")
    return text


def failure_of(error: Exception) -> str:
    """The reason of a failed call, the same text for the same cause, so that failures can be counted.

    It never contains the server's text.
    """
    if isinstance(error, openai.APITimeoutError):
        return "the endpoint took longer than the timeout"
    if isinstance(error, openai.APIConnectionError):
        return "the endpoint does not answer"
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return f"{KEY_REFUSED} (HTTP {error.status_code})"
    if isinstance(error, openai.APIStatusError) and 300 <= error.status_code < 400:
        return f"{SENT_AWAY} (HTTP {error.status_code}), which is not followed; name the URL it leads to"
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code} from the endpoint{_hint(error)}"
    return "an answer that does not follow the OpenAI API"


def _hint(error: openai.APIStatusError) -> str:
    """The endpoint's own error code, where it is a single word."""
    code = getattr(error, "code", None)
    return without_key(f" ({code})") if isinstance(code, str) and re.fullmatch(r"[a-z_]{3,40}", code) else ""
