"""A judge's endpoint: its address and the settings of its calls."""

import hashlib
import json

from pydantic import Field

from slim.core.records import Record

VERSION = 1
"""Version of the cache keys: raise it when the same question is asked in another way."""
UNNAMED = "default"
"""The model name that is requested where an endpoint does not list its models."""
Messages = list[dict[str, str]]


class Endpoint(Record):
    """A judge and the settings of its calls, without the key, which is read from the environment with each run."""

    url: str = Field(description="base URL, without /chat/completions")
    model: str
    concurrency: int = Field(default=16, ge=1, le=1000)
    timeout: float = Field(default=60.0, gt=0, description="seconds that one attempt may take")
    retries: int = Field(default=5, ge=0, le=100)
    max_tokens: int = Field(default=512, ge=1, description="tokens of a judge's answer")
    system_turn: bool = Field(default=True, description="whether it accepts one; else it is put into the user turn")
    identity: str | None = Field(
        default=None, description="fingerprint of a judge served for the run, whose address differs each time"
    )

    def key_of(self, messages: Messages) -> str:
        """The cache key of an answer: of the judge, and of the rubric, question, outputs and order in the messages."""
        judge = [self.url, self.model] if self.identity is None else [self.identity]
        asked = [VERSION, *judge, self.max_tokens, messages]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
