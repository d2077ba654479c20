"""The plan: what is removed, why, and what it gives."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from slim.calibration.facts import Forecast
from slim.core.records import Keep, ModelFacts, Place, Record, Unit


class Size(Record):
    """What a model takes. Work and reading are those of a token that sees CONTEXT tokens (project.py)."""

    parameters: int = Field(ge=1)
    bytes: int = Field(ge=1, description="of the weights as stored")
    kv_bytes_per_token: int = Field(ge=0)
    flops_per_token: int = Field(ge=1, description="two per multiply-add, prefill")
    bytes_read_per_token: int = Field(ge=1, description="weights and cache that decoding a token at batch 1 goes over")


class Change(Record):
    """A head that goes or stays otherwise than what was asked for, because of the shape its layer must have."""

    layer: int = Field(ge=0)
    head: int = Field(ge=0)
    change: Literal["kept", "removed"]


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
