"""The frozen records of every stage. Each is checked when it is made and survives a trip through JSON unchanged."""

from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slim.errors import InputError

Unit = Literal["head", "group", "block", "layer"]
"""What is removed as one: a query head, the query heads of a KV head, an attention block, or a layer, MLP and all."""
MOST = 2**16
"""Of layers, heads or entries of a head: a file that says more is no model's."""
Keep = tuple[tuple[int, ...] | None, ...]
"""Per layer the query heads that stay, ascending. Empty: its attention block is gone. None: all of the layer is."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """A record of what a person gave. Raises InputError naming the first value that cannot be."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{'.'.join(map(str, first['loc']))}={first['input']!r}: {first['msg']}.") from error


def why_invalid(error: Exception) -> str:
    """Why a file is no record: the first field that cannot be, or what a library says in its first line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg'].removeprefix('Value error, ')}"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class ModelFacts(Record):
    """What the later stages need to know of a model without loading it."""

    source: str
    fingerprint: str
    model_type: str
    layers: int = Field(ge=1, le=MOST)
    heads: int = Field(ge=1, le=MOST)
    kv_heads: int = Field(ge=1, le=MOST)
    head_dim: int = Field(ge=1, le=MOST)
    dtype: str = Field(description="number format of the stored weights")
    itemsize: int = Field(ge=1, le=16, description="bytes of one number")
    shapes: dict[str, tuple[Annotated[int, Field(ge=0, le=2**40)], ...]] = Field(
        description="every stored tensor once, tied weights counted once"
    )

    @model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        return self

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.shapes.values()))


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


class CalibrationSettings(Record):
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


class CriterionFacts(Record):
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
    settings: CalibrationSettings
    metrics: dict[str, CriterionFacts]
    versions: dict[str, str]
    device: str
    started: str
    seconds: float = Field(ge=0)
    reused: float = Field(default=0, ge=0, le=1, description="share of the work that was known from earlier runs")
    notes: tuple[str, ...] = Field(default=(), description="what happened on the way that a reader should know")


class Size(Record):
    """What a model takes. Work and reading are those of a token that sees CONTEXT tokens (project.py)."""

    parameters: int = Field(ge=1)
    bytes: int = Field(ge=1, description="of the weights as stored")
    kv_bytes_per_token: int = Field(ge=0)
    flops_per_token: int = Field(ge=1, description="two per multiply-add, prefill")
    bytes_read_per_token: int = Field(ge=1, description="weights and cache that decoding a token at batch 1 goes over")


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
    """A head that goes or stays otherwise than what was asked for, because of the shape its layer must have."""

    layer: int = Field(ge=0)
    head: int = Field(ge=0)
    change: Literal["kept", "removed"]


Place = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
"""(layer, head or KV group); the second is 0 for blocks and layers."""


class Pins(Record):
    """What a person decided by hand, whatever the scores say."""

    keep: tuple[Place, ...] = ()
    drop: tuple[Place, ...] = ()
    protect: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), description="layers that stay whole")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if both := set(self.keep) & set(self.drop):
            layer, place = min(both)
            raise ValueError(f"{layer}:{place} is pinned both to stay and to go")
        return self


class ByThreshold(Record):
    """Everything with a score of `threshold` or more goes."""

    kind: Literal["threshold"] = "threshold"
    threshold: float = Field(ge=0)
    per_layer: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0)]] = Field(
        default={}, description="thresholds of single layers"
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(description="of the metrics in the score")
    scores: tuple[tuple[float, ...], ...] = Field(description="per layer, of each unit in it; 1 = first to go")

    def __str__(self) -> str:
        weights = ", ".join(f"{name} × {weight:g}" for name, weight in self.weights.items())
        return f"all that scores {self.threshold:g} or more by {weights}"


class ByBudget(Record):
    """The least forecast loss within limits, or the smallest model within a limit of loss alone."""

    kind: Literal["budget"] = "budget"
    limits: dict[str, Annotated[float, Field(ge=0)]] = Field(
        description="heads, params, bytes, kv, flops: share of the original at most; prefill, decode: times as fast "
        "at least; loss: nats/token at most"
    )

    def __str__(self) -> str:
        return "the cheapest removal within " + ", ".join(f"{name}={limit:g}" for name, limit in self.limits.items())


class Plan(Record):
    """What is removed, why, and what it gives: the value that is saved, compared, shown and executed."""

    schema_version: Literal[2] = 2
    kind: Literal["plan"] = "plan"
    model: ModelFacts
    calibration: str = Field(description="its folder, empty where there is none")
    calibrated: str = Field(default="", description="when that calibration was started")
    unit: Unit
    uniform: bool = Field(default=False, description="whether every layer that stays has one shape")
    reason: Annotated[ByThreshold | ByBudget, Field(discriminator="kind")]
    pins: Pins = Pins()
    keep: Keep
    changes: tuple[Change, ...] = ()
    before: Size
    after: Size
    forecast: Forecast | None = None
    repaired: Forecast | None = Field(default=None, description="the forecast for the pruned model once it is repaired")
    notes: tuple[str, ...] = Field(default=(), description="what a person should know before cutting")

    @model_validator(mode="after")
    def _legal(self) -> Self:
        model = self.model
        if len(self.keep) != model.layers:
            raise ValueError(f"keep has {len(self.keep)} layers, the model has {model.layers}")
        if not any(self.keep):
            raise ValueError("keep is empty in every layer: the last attention block cannot be removed")
        for layer, kept in enumerate(self.keep):
            heads = kept or ()
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
        """Query heads that go, those of removed blocks and layers included."""
        return self.model.layers * self.model.heads - sum(len(heads or ()) for heads in self.keep)

    @property
    def removed_blocks(self) -> tuple[int, ...]:
        """Layers that lose their attention block alone."""
        return tuple(layer for layer, heads in enumerate(self.keep) if heads == ())

    @property
    def removed_layers(self) -> tuple[int, ...]:
        return tuple(layer for layer, heads in enumerate(self.keep) if heads is None)
