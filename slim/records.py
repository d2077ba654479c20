"""The frozen records of every stage. Each is checked when it is made and survives a trip through JSON unchanged."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA = 1

Unit = Literal["head", "block"]
Keep = tuple[tuple[int, ...], ...]
"""Per layer the query heads that stay, ascending; an empty layer has lost its attention block."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelFacts(Record):
    """What the later stages need to know of a model without loading it."""

    source: str
    fingerprint: str
    model_type: str
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    dtype: str = Field(description="number format of the stored weights")
    itemsize: int = Field(ge=1, description="bytes of one number")
    shapes: dict[str, tuple[int, ...]] = Field(description="every stored tensor once, tied weights counted once")

    @model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        return self

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads


class DatasetFacts(Record):
    source: str
    config: str | None = None
    revision: str | None = None
    split: str
    kind: str
    template: str | None = None
    columns: dict[str, str] = {}
    prompt: str | None = None
    rows: int = Field(ge=1)
    tokens: int = Field(ge=1)
    truncated_rows: int = Field(ge=0)
    lost_tokens: int = Field(default=0, ge=0, description="cut off the truncated rows")
    left_out: int = Field(default=0, ge=0, description="rows that predict nothing")


class Settings(Record):
    """What a person chooses for a calibration."""

    samples: int = Field(default=32, ge=1)
    max_length: int = Field(default=320, ge=2, description="tokens of a row beyond which it is cut")
    batch_size: int = Field(default=4, ge=1)
    positions: Literal["all", "answer"] = Field(default="all", description="predictions that loss and KL count")
    kl: Literal["fisher", "exact", "none"] = "fisher"
    draws: int = Field(default=1, ge=1, description="random directions per row in the loss sketch")
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    dtype: Literal["auto", "float32", "float64", "bfloat16"] = "auto"


class MetricFacts(Record):
    """What a metric's numbers are: they travel with them."""

    unit: str
    high_is_prunable: bool
    levels: tuple[Literal["head", "group", "block"], ...]
    method: str
    rows: int = Field(ge=0, description="rows the figure comes from; 0 where it is of the weights alone")
    positions: int = Field(ge=0, description="token positions the mean runs over")


class CalibrationFacts(Record):
    """`record.json` of a calibration; its arrays stand beside it in `tensors.safetensors`."""

    schema_version: Literal[2] = 2
    kind: Literal["calibration"] = "calibration"
    model: ModelFacts
    dataset: DatasetFacts
    settings: Settings
    metrics: dict[str, MetricFacts]
    versions: dict[str, str]
    device: str
    started: str
    seconds: float = Field(ge=0)
    reused: float = Field(default=0, ge=0, le=1, description="share of the work that was known from earlier runs")
    notes: tuple[str, ...] = Field(default=(), description="what happened on the way that a reader should know")


class Size(Record):
    parameters: int = Field(ge=1)
    bytes: int = Field(ge=1, description="of the weights as stored")
    kv_bytes_per_token: int = Field(ge=0)


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


class Change(Record):
    """A head the threshold and the legal shape disagree about."""

    layer: int = Field(ge=0)
    head: int = Field(ge=0)
    change: Literal["kept", "removed"]


class Plan(Record):
    """What is removed, why, and what it gives: the value that is saved, shown and executed."""

    schema_version: Literal[1] = SCHEMA
    kind: Literal["plan"] = "plan"
    model: ModelFacts
    calibration: str
    unit: Unit
    threshold: Annotated[float, Field(ge=0)]
    weights: dict[str, Annotated[float, Field(ge=0)]]
    keep: Keep
    changes: tuple[Change, ...] = ()
    before: Size
    after: Size
    forecast: Forecast | None = None

    @model_validator(mode="after")
    def _legal(self) -> Self:
        model = self.model
        if len(self.keep) != model.layers:
            raise ValueError(f"keep has {len(self.keep)} layers, the model has {model.layers}")
        if not any(self.keep):
            raise ValueError("keep is empty in every layer: the last attention block cannot be removed")
        for layer, heads in enumerate(self.keep):
            if list(heads) != sorted(set(heads)) or any(not 0 <= h < model.heads for h in heads):
                raise ValueError(f"keep[{layer}]={list(heads)}: heads must be ascending and in 0..{model.heads - 1}")
            per_group = {
                group: sum(h // model.group == group for h in heads) for group in {h // model.group for h in heads}
            }
            if len(set(per_group.values())) > 1:
                raise ValueError(f"keep[{layer}]={list(heads)}: every KV group that stays must keep equally many heads")
        return self

    @property
    def removed_heads(self) -> int:
        """Query heads that go, those of removed blocks included."""
        return self.model.layers * self.model.heads - sum(map(len, self.keep))

    @property
    def removed_blocks(self) -> tuple[int, ...]:
        return tuple(layer for layer, heads in enumerate(self.keep) if not heads)
