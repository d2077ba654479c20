"""Settings of an evaluation, of the answers that models generate, and of timing."""

from typing import Annotated, Self

from pydantic import Field

from slim.core.codecs import whole_numbers
from slim.core.fields import BatchSize, Device, Dtype, MaxLength, Positions, Samples, Seed
from slim.core.records import Record
from slim.core.request import Named

REPETITION_PENALTIES = {"summarisation": 1.2}
"""Penalty on tokens that an answer already holds, by kind of task: greedy summaries of small models repeat themselves
without end, while results and labels rightly repeat what was said."""
PLAYGROUND_PENALTY = 1.2
"""The same for any prompt on a page."""


class SpeedSettings(Record):
    """The settings of timing."""

    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Named(("--speed-rows",)), whole_numbers("1,8")] = (
        Field(default=(1,), min_length=1, title="Rows timed", description="batch sizes to time, for instance 1,8")
    )
    tokens: Annotated[int, Named(("--speed-tokens",))] = Field(
        default=256, ge=1, title="Prompt tokens", description="tokens of the timed prompt"
    )
    steps: Annotated[int, Named(("--speed-steps",))] = Field(
        default=32, ge=1, title="Decoded tokens", description="tokens decoded in a timed run"
    )
    repeats: Annotated[int, Named(("--repeats",))] = Field(
        default=5, ge=1, title="Repeats", description="timed runs of each model, in turn, of which the median counts"
    )


class EvaluationSettings(Record):
    """The settings of an evaluation."""

    samples: Samples = Field(default=64, description="held-out rows")
    max_length: MaxLength = 512
    batch_size: BatchSize = 4
    positions: Positions = Field(
        default="all", title="Perplexity and KL count", description="positions that perplexity and KL count"
    )
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        title="Longest answer, tokens",
        description="most tokens of an answer (default: by kind of task)",
    )
    task_rows: int | None = Field(
        default=None, ge=1, title="Rows of a standard task", description="rows of each standard task (default: all)"
    )
    shots: int | None = Field(
        default=None,
        ge=0,
        title="Examples",
        description="few-shot examples in a standard task (default: its own number)",
    )
    pace: SpeedSettings = Field(default_factory=SpeedSettings)
    seed: Seed = Field(default=0, description="seed of the drawn rows and of the intervals' resamples")
    device: Device = "auto"
    dtype: Dtype = "auto"


class AnswerSettings(Record):
    """The settings of generated answers. A temperature of 0 is greedy."""

    max_new_tokens: int = Field(
        default=128, ge=1, title="Longest answer, tokens", description="most tokens of an answer"
    )
    batch_size: int = Field(default=16, ge=1, title="Rows answered at a time", description="rows answered at a time")
    temperature: float = Field(default=0.0, ge=0, title="Temperature", description="temperature; 0 is greedy")
    repetition_penalty: float | None = Field(
        default=None,
        ge=1,
        title="Repetition penalty",
        description="penalty on tokens that the answer already holds, 1 for no penalty (default: 1.2 for summaries)",
    )
    seed: Seed = Field(default=0, description="seed of the rows, the sampled tokens and the resamples")

    def for_kind(self, kind: str) -> Self:
        """Return the settings for answers to a kind of task: where no repetition penalty is named, the kind's own."""
        if self.repetition_penalty is not None:
            return self
        return self.model_copy(update={"repetition_penalty": REPETITION_PENALTIES.get(kind)})
