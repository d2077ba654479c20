"""The verdicts on pairs of answers: from an endpoint asked in both orders, or from the dataset's own answer."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from slim.core.errors import InputError, SlimError
from slim.core.reporter import SILENT, Reporter
from slim.judging import client
from slim.judging.address import KEYS
from slim.judging.client import Reply
from slim.judging.connection import KEY_REFUSED
from slim.judging.endpoint import Endpoint
from slim.judging.local_server import LocalJudge
from slim.judging.pairs import Pair
from slim.judging.prompt import ORDERS, RUBRIC, Order, messages, read, winner
from slim.judging.record import Comparison, JudgeFacts, Opinion, Winner
from slim.judging.reference import Referee


def by_endpoint(
    pairs: Sequence[Pair],
    endpoint: Endpoint,
    rubric: str = RUBRIC,
    reporter: Reporter = SILENT,
    trouble: SlimError | None = None,
    local: LocalJudge | None = None,
    device: str = "auto",
) -> tuple[list[Comparison], JudgeFacts]:
    """The verdict on each pair, asked in both orders, and what that took.

    A `local` judge's server is started on `device` where an answer is not cached yet, and stopped after the last.
    Raises InputError where the endpoint refuses the key, and `trouble`, where it is given, instead of making a call.
    """
    fit = [pair for pair in pairs if pair.failure is None]
    asked = [
        messages(pair.question, pair.original.text, pair.pruned.text, order, rubric) for pair in fit for order in ORDERS
    ]
    with client.open_reply_cache() as cache:
        missing = None in client.known(endpoint, asked, cache)
        if trouble is not None and missing:
            raise trouble
        server = local.started(endpoint, device, reporter) if local is not None and missing else nullcontext(endpoint)
        with server as there:
            replies = client.ask(there, asked, cache, reporter)
    if replies and all(reply.failure and reply.failure.startswith(KEY_REFUSED) for reply in replies):
        raise InputError(f"endpoint={endpoint.url!r}: {replies[0].failure}; set {' or '.join(KEYS)}.")
    found = iter(zip(replies[:: len(ORDERS)], replies[1 :: len(ORDERS)], strict=True))
    compared = [
        _failed(place, pair) if pair.failure else _compared(place, pair, next(found))
        for place, pair in enumerate(pairs)
    ]
    told = [reply for reply in replies if reply.failure is None or reply.text]
    return compared, JudgeFacts(
        kind="endpoint" if local is None else "local",
        name=endpoint.model if local is None else local.source,
        fingerprint=None if local is None else local.fingerprint,
        endpoint=endpoint.url if local is None else None,
        rubric=rubric,
        both_orders=True,
        calls=sum(not reply.known for reply in told),
        known_calls=sum(reply.known for reply in told),
        tokens_in=sum(reply.tokens_in for reply in told),
        tokens_out=sum(reply.tokens_out for reply in told),
    )


def by_reference(pairs: Sequence[Pair], judge: Referee) -> tuple[list[Comparison], JudgeFacts]:
    """The verdict on each pair by the dataset's own answer."""
    compared = []
    for place, pair in enumerate(pairs):
        if pair.failure:
            compared.append(_failed(place, pair))
            continue
        verdict, scores = judge.verdict(pair.original.text, pair.pruned.text, pair.example)
        compared.append(Comparison(**_row(place, pair), judgment=verdict, scores=scores))
    return compared, JudgeFacts(kind="reference", name=judge.name, both_orders=False)


def combined(opinions: Sequence[Opinion]) -> tuple[Winner | None, bool, str | None]:
    """The verdict on a pair from both orders, whether it flipped, and the reason where there is no verdict.

    Orders that disagree are a tie and a flip; an order without a verdict leaves the pair without one.
    """
    if failed := [one.failure for one in opinions if one.failure is not None]:
        return None, False, failed[0]
    first: Winner | None = opinions[0].verdict
    if any(one.verdict != first for one in opinions):
        return "tie", True, None
    return first, False, None


def _compared(place: int, pair: Pair, replies: tuple[Reply, Reply]) -> Comparison:
    opinions = tuple(_opinion(order, reply) for order, reply in zip(ORDERS, replies, strict=True))
    verdict, flip, failure = combined(opinions)
    return Comparison(**_row(place, pair), judgment=verdict or "error", failure=failure, flip=flip, orders=opinions)


def _opinion(order: Order, reply: Reply) -> Opinion:
    if reply.failure is not None:
        return Opinion(order=order, failure=reply.failure, raw=reply.text)
    reading = read(reply.text)
    if reading.verdict is None:
        failure = "the judge's answer was cut at max_tokens" if reply.cut else reading.failure
        return Opinion(order=order, failure=failure, raw=reply.text)
    return Opinion(order=order, verdict=winner(reading.verdict, order), reason=reading.reason, raw=reply.text)


def _failed(place: int, pair: Pair) -> Comparison:
    return Comparison(**_row(place, pair), judgment="error", failure=pair.failure)


def _row(place: int, pair: Pair) -> dict[str, Any]:
    return {
        "sample_id": place,
        "question": pair.question,
        "response1": pair.original.text,
        "response2": pair.pruned.text,
        "reference": pair.example.answer,
        "truncated": (pair.original.truncated, pair.pruned.truncated),
    }
