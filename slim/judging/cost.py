"""Cost estimates of judging, reported before it starts."""

from collections.abc import Sequence

from pydantic import Field

from slim.core.records import Record
from slim.data.templates import Example
from slim.evaluation.settings import AnswerSettings
from slim.judging.endpoint import Endpoint
from slim.judging.pairs import question_of
from slim.judging.prompt import ORDERS, RUBRIC, messages

CHARACTERS_PER_TOKEN = 4
"""Approximate, for English text; used to estimate the tokens that a judge reads."""


class Estimate(Record):
    """An upper bound of calls and tokens, and of the price where the prices of a million tokens are given."""

    calls: int = Field(ge=0)
    tokens_in: int = Field(ge=0)
    tokens_out: int = Field(ge=0)
    price: float | None = None

    def sentence(self) -> str:
        """The estimate in words."""
        cost = "" if self.price is None else f", {self.price:,.2f} at the prices given"
        return f"{self.calls:,} calls, at most {self.tokens_in:,} tokens in and {self.tokens_out:,} out{cost}."


def estimate(
    examples: Sequence[Example],
    settings: AnswerSettings,
    endpoint: Endpoint,
    rubric: str = RUBRIC,
    prices: tuple[float, float] | None = None,
) -> Estimate:
    """An upper bound of the cost of judging, before there are answers; `prices` are of a million tokens in and out."""
    read_tokens = sum(
        sum(len(turn["content"]) for turn in messages(question_of(row), "", "", ORDERS[0], rubric))
        // CHARACTERS_PER_TOKEN
        + 2 * settings.max_new_tokens
        for row in examples
    )
    calls = len(ORDERS) * len(examples)
    tokens_in, tokens_out = len(ORDERS) * read_tokens, calls * endpoint.max_tokens
    price = None if prices is None else (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6
    return Estimate(calls=calls, tokens_in=tokens_in, tokens_out=tokens_out, price=price)
