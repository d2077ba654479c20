"""The record of a calibration without its arrays."""

from typing import Literal

from pydantic import Field

from slim.core.fields import BatchSize, Device, Dtype, MaxLength, Positions, Samples, Seed
from slim.core.migrations import Outdated, Raw
from slim.core.records import DatasetFacts, ModelFacts, Record
from slim.models import bundled
from slim.models.units import UnitName

OTHER_CUT = (
    "its text was cut into tokens before Slim followed tokenizer.ggml.pre of a GGUF file, so other tokens may be made "
    "of it now; calibrate again"
)


class CalibrationSettings(Record):
    """The settings of a calibration."""

    samples: Samples = Field(default=32, description="rows to measure on: more rows, surer figures, more time")
    max_length: MaxLength = 320
    batch_size: BatchSize = 4
    positions: Positions = Field(
        default="all", title="Loss and KL count", description="predictions that loss and KL count"
    )
    kl: Literal["fisher", "exact", "none"] = Field(
        default="fisher",
        title="Cost of each head",
        description="fisher forecasts each head from one gradient a row, exact ablates every unit one at a time",
    )
    draws: int = Field(default=1, ge=1, title="Draws", description="random directions per row in the loss sketch")
    seed: Seed = Field(default=0, description="chooses the rows and the sketch's directions")
    device: Device = "auto"
    dtype: Dtype = "auto"


class CriterionFacts(Record):
    """Unit and direction of a metric's numbers, which travel with them."""

    unit: str
    high_is_prunable: bool
    levels: tuple[UnitName, ...]
    method: str
    rows: int = Field(ge=0, description="rows the figure comes from; 0 where it is of the weights alone")
    positions: int = Field(ge=0, description="token positions the mean runs over")


class CalibrationFacts(Record):
    """`record.json` of a calibration; its arrays stand beside it in `tensors.safetensors`."""

    schema_version: Literal[3] = 3
    kind: Literal["calibration"] = "calibration"
    model: ModelFacts
    tokenizer: str = Field(default="", description="stands for how text becomes tokens; empty in earlier records")
    dataset: DatasetFacts
    settings: CalibrationSettings
    metrics: dict[str, CriterionFacts]
    versions: dict[str, str]
    device: str
    started: str
    seconds: float = Field(ge=0)
    reused: float = Field(default=0, ge=0, le=1, description="share of the work that was known from earlier runs")
    notes: tuple[str, ...] = Field(default=(), description="what happened on the way that a reader should know")

    @property
    def precision(self) -> str:
        """The number format of the sketch's backward pass and of ablated blocks, as the method of `kl_output` says."""
        found = self.metrics.get("kl_output")
        return "bfloat16" if found and "bfloat16" in found.method else "float32"


class Forecast(Record):
    """Forecast KL(original ‖ pruned) in nats per token, with the interval that 95% of resampled sequences give.

    One sequence alone gives no interval.
    """

    nats_per_token: float = Field(ge=0)
    low: float | None = Field(default=None, ge=0)
    high: float | None = Field(default=None, ge=0)
    sequences: int = Field(ge=1)
    factor: float = Field(default=1, gt=0, description="correction fitted on measured plans that is in these figures")

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.nats_per_token:.3f} nats/token (one row, no interval)"
        return f"{self.nats_per_token:.3f} nats/token [{self.low:.3f}, {self.high:.3f}]"


def _calibration_1(raw: Raw) -> Raw:
    if lacking := {"model", "metrics"} - raw.keys():  # of every version
        raise LookupError(f"it lacks {min(lacking)!r}")
    raise Outdated(
        "0.1.0", "whose figures have no intervals and whose loss sketch knows no blocks", "run `slim calibrate` again"
    )


def _calibration_2(raw: Raw) -> Raw:
    """Version 3 has the tokenizer; before, the text of a GGUF model was not always cut as its file says."""
    source = raw["model"]["source"]
    if source != bundled.NAME and not source.endswith(".gguf"):
        return raw
    return raw | {"notes": [*raw.get("notes", []), OTHER_CUT]}
