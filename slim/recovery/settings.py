"""Settings of recovery: of a repair, and of a training by any method."""

from typing import Annotated, Literal

from pydantic import Field

from slim.core.fields import BatchSize, Device, Dtype, MaxLength, Positions, Precision, Samples, Seed
from slim.core.records import Record
from slim.core.request import Named


class RepairSettings(Record):
    """Settings of a repair."""

    samples: Samples = Field(
        default=128, ge=4, description="rows drawn, of all splits together: train, validation, acceptance, test"
    )
    max_length: MaxLength = 320
    batch_size: BatchSize = 8
    positions: Positions = Field(
        default="all", title="The figures count", description="positions that the figures count"
    )
    seed: Seed = Field(default=0, description="seed of the drawn rows")
    device: Device = "auto"
    dtype: Literal["auto", "float32", "float64"] = Field(
        default="auto", title="Number format", description="number format of the weights in memory; auto is float32"
    )
    precision: Precision = "auto"


class TrainSettings(Record):
    """Settings of a fine-tuning."""

    steps: int = Field(default=200, ge=1, title="Steps", description="steps of the optimizer; local: for each layer")
    samples: Samples = Field(
        default=640, ge=4, description="rows drawn, of all splits together: train, validation, acceptance, test"
    )
    batch_size: int = Field(default=8, ge=1, title="Rows of a step", description="rows of a step")
    micro_batch: int = Field(
        default=4, ge=1, title="Rows in memory", description="rows in memory at once, halved where they do not fit"
    )
    max_length: MaxLength = 256
    positions: Positions = Field(
        default="answer",
        title="Trained on and counted",
        description="positions that are trained on, and that the figures count",
    )
    weights: Literal["adapter", "full"] = Field(
        default="adapter", title="Trained weights", description="LoRA on every matrix, or all weights"
    )
    rank: int = Field(default=16, ge=1, title="Rank of the LoRA", description="rank of the LoRA; 0 trains all weights")
    learning_rate: float = Field(
        default=3e-4,
        gt=0,
        title="Learning rate",
        description="peak learning rate, after a linear warmup and before a cosine decay",
    )
    warmup: float = Field(
        default=0.05, ge=0, lt=1, title="Warmup", description="share of the steps with a rising learning rate"
    )
    temperature: float = Field(
        default=1.0, gt=0, title="Temperature", description="kd: temperature of both distributions"
    )
    task_weight: float = Field(
        default=0.0,
        ge=0,
        le=1,
        title="Weight of the answers",
        description="kd: weight of the rows' own tokens against the original's predictions, 0 to 1",
    )
    evaluations: int = Field(
        default=8, ge=1, title="Evaluations", description="evaluations on the validation rows, each with a saved state"
    )
    patience: int = Field(
        default=3, ge=1, title="Patience", description="evaluations without a better loss before it stops"
    )
    checkpointing: Annotated[bool, Named(("--checkpointing",))] = Field(
        default=False,
        title="Less memory for a third more time",
        description="activation checkpointing: less memory for a third more time",
    )
    precision: Precision = "auto"
    merge: Annotated[bool, Named(("--merge/--adapter",))] = Field(
        default=True, title="Merge the adapter", description="saved form: the merged model, or the adapter alone"
    )
    seed: Seed = Field(default=0, description="seed of the drawn rows, their order and the initial adapter")
    device: Device = "auto"
    dtype: Dtype = "auto"

    @property
    def every(self) -> int:
        """Number of steps between evaluations."""
        return max(1, -(-self.steps // self.evaluations))
