"""The record of an answer."""

from pydantic import Field

from slim.core.records import Record


class ModelAnswer(Record):
    """A model's answer to one row; `failure` is the reason why it was not asked."""

    text: str = ""
    tokens: int = Field(default=0, ge=0, description="generated tokens, without the one that ends the answer")
    finished: bool = Field(default=False, description="whether the model ended the answer itself")
    failure: str | None = None

    @property
    def truncated(self) -> bool:
        """Whether the answer was cut at `max_new_tokens`."""
        return self.failure is None and not self.finished
