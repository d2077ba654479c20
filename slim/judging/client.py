"""Asking a judge: any OpenAI-compatible endpoint, many calls at once, each answer cached as soon as it arrives.

Retries are the openai package's own: it backs off exponentially with jitter and waits as long as Retry-After says, up
to two minutes. In addition, a run of failures without an answer ends the asking, so that an endpoint that went down
does not cost every remaining call its retries.
"""

import asyncio
import re
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from diskcache import Cache, Timeout
from openai import AsyncOpenAI
from pydantic import Field

from slim.core import workspace
from slim.core.errors import SlimError
from slim.core.json_disk import JsonDisk
from slim.core.records import Record
from slim.core.reporter import SILENT, Reporter
from slim.core.text import without_surrogates
from slim.judging.connection import awaited, connect, failure_of, without_key
from slim.judging.endpoint import Endpoint, Messages
from slim.judging.prompt import SCHEMA

FORMATS: tuple[dict[str, Any], ...] = (
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
        }
    },
    {"response_format": {"type": "json_object"}},
    {},
)
"""Response formats, the strictest first; where an endpoint refuses one, the next is tried. The last is the prompt's."""
PATIENCE = 8
"""Calls that fail in a row, each after its retries, before the rest is not asked; `concurrency` where that is more."""
_OF_THE_ROLE = re.compile(r"\b(system|roles?)\b", re.IGNORECASE)


class Reply(Record):
    """A judge's answer to one call, or why there is no answer."""

    text: str = ""
    failure: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cut: bool = Field(default=False, description="whether it stopped at max_tokens")
    known: bool = Field(default=False, description="cached from an earlier call")


@contextmanager
def open_reply_cache() -> Iterator[Cache]:
    """The cache of judges' answers. Unlike in other caches nothing is evicted: answers may have cost money."""
    folder = workspace.subfolder("replies")
    with Cache(str(folder), disk=JsonDisk, disk_compress_level=1, eviction_policy="none") as cache:
        yield cache


def known(endpoint: Endpoint, asked: Sequence[Messages], cache: Cache) -> list[Reply | None]:
    """The cached answers, None for each call without one."""
    return [_of_cache(cache, endpoint.key_of(messages)) for messages in asked]


def ask(endpoint: Endpoint, asked: Sequence[Messages], cache: Cache, reporter: Reporter = SILENT) -> list[Reply]:
    """The judge's reply to each of `asked`, cached ones from `cache`. A failed call gives a reply with its failure."""
    replies = known(endpoint, asked, cache)
    run = _Run(endpoint, cache, reporter, len(asked), sum(reply is not None for reply in replies))
    waiting = deque((place, asked[place]) for place, reply in enumerate(replies) if reply is None)
    try:
        found = awaited(lambda: run.all(waiting)) if waiting else {}
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return [reply if reply is not None else found[place] for place, reply in enumerate(replies)]


@dataclass
class _Run:
    """One pass over the calls that are not cached yet."""

    endpoint: Endpoint
    cache: Cache
    reporter: Reporter
    total: int
    done: int
    format: int = 0
    folded: bool = field(init=False)
    """Whether the system turn is folded into the user's, as the endpoint rejects system turns."""
    failures: int = 0
    """Consecutive failures, without an answer in between."""
    stopped: str | None = None
    replies: dict[int, Reply] = field(default_factory=dict)
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.folded = not self.endpoint.system_turn
        self.options = {"temperature": 0, "max_tokens": self.endpoint.max_tokens}

    async def all(self, waiting: deque[tuple[int, Messages]]) -> dict[int, Reply]:
        async def work() -> None:
            while waiting:
                place, messages = waiting.popleft()
                self.replies[place] = await self.one(client, messages)
                self.done += 1
                self.reporter.progress(self.done, self.total, "Judging")

        self.reporter.progress(self.done, self.total, "Judging")
        asked = self.endpoint
        client = connect(asked.url, asked.timeout, asked.retries, own=asked.identity is not None)
        async with client, asyncio.TaskGroup() as group:
            for _ in range(min(self.endpoint.concurrency, len(waiting))):
                group.create_task(work())
        return self.replies

    async def one(self, client: AsyncOpenAI, messages: Messages) -> Reply:
        if self.stopped:
            return Reply(failure=self.stopped)
        try:
            answer = await self.formatted(client, messages)
        except openai.OpenAIError as error:
            return self.failed(error)
        except (ValueError, TypeError, AttributeError, LookupError) as error:  # an answer that is not of the protocol
            return self.failed(error)
        self.failures = 0
        try:
            self.cache.set(self.endpoint.key_of(messages), answer)
        except (sqlite3.Error, OSError, Timeout) as error:
            raise SlimError(
                f"a judge's answer cannot be cached in the workspace ({error}); free some space on its disk."
            ) from error
        return _as_reply(answer, known=False)

    async def formatted(self, client: AsyncOpenAI, messages: Messages) -> dict[str, Any]:
        """The raw answer, in the strictest format that the endpoint accepts, which is used for the calls to come."""
        for place, form in enumerate(FORMATS[self.format : -1], self.format):
            with suppress(openai.BadRequestError, openai.UnprocessableEntityError):
                answer = await self.adapted(client, messages, form)
                self.format = max(self.format, place)
                return answer
        answer = await self.adapted(client, messages, FORMATS[-1])
        self.format = len(FORMATS) - 1
        return answer

    async def adapted(self, client: AsyncOpenAI, messages: Messages, form: dict[str, Any]) -> dict[str, Any]:
        """The raw answer; a setting or a system turn that the endpoint refuses by name is left out from then on."""
        fold = self.folded
        while True:
            options = dict(self.options)
            try:
                answer = await self.call(client, folded(messages) if fold else messages, options | form)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if error.param in options:
                    self.options.pop(error.param, None)
                    if error.param == "max_tokens":
                        self.options["max_completion_tokens"] = self.endpoint.max_tokens
                elif not fold and _OF_THE_ROLE.search(f"{error.message} {error.body}"):
                    fold = True
                else:
                    raise
            else:
                self.folded = self.folded or fold
                return answer

    async def call(self, client: AsyncOpenAI, messages: Messages, options: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self.endpoint.model, "messages": messages, **options}
        # post and the plain response, because openai's types take a third of the work of a call
        done = (await client.post("/chat/completions", cast_to=httpx2.Response, body=body)).json()
        choice, usage = done["choices"][0], done.get("usage") or {}
        message = choice["message"]
        return {
            "text": without_key(without_surrogates(str(message.get("content") or ""))),
            "refusal": without_key(without_surrogates(str(message.get("refusal") or ""))),
            "finish": str(choice.get("finish_reason") or ""),
            "tokens": [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")],
        }

    def failed(self, error: Exception) -> Reply:
        reason = failure_of(error)
        sent_away = isinstance(error, openai.APIStatusError) and error.status_code < 400
        if sent_away or isinstance(
            error, openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError
        ):
            self.stopped = reason  # the same for every call
        elif isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            self.failures = 0  # of this question alone
        else:
            self.failures += 1
        if self.failures >= max(self.endpoint.concurrency, PATIENCE) and not self.stopped:
            self.stopped = f"not asked: the endpoint had stopped answering ({reason})"
        return Reply(failure=reason)


def folded(messages: Messages) -> Messages:
    """The conversation with the text of its system turn at the start of the user's."""
    system, user, *more = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *more]


def _of_cache(cache: Cache, key: str) -> Reply | None:
    found: Any = cache.get(key)
    try:
        return None if found is None else _as_reply(found, known=True)
    except (KeyError, TypeError, ValueError):
        return None  # not a reply of this version


def _as_reply(answer: dict[str, Any], known: bool) -> Reply:
    text, (tokens_in, tokens_out) = str(answer["text"]), answer["tokens"]
    refused = bool(answer["refusal"]) or answer["finish"] == "content_filter"
    return Reply(
        text=text or str(answer["refusal"]),
        failure="refusal" if refused else None,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        cut=answer["finish"] == "length",
        known=known,
    )
