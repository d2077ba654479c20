"""The plan: what is removed, why, and what it gives."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from slim.calibration.facts import Forecast
from slim.core.records import ModelFacts, Place, Record
from slim.models.units import Keep, UnitName


class Size(Record):
    """The sizes of a model. Work and reading are those of a token that sees CONTEXT tokens (sizes.py)."""

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
    """Units that are kept or removed by hand, whatever their scores."""

    keep: tuple[Place, ...] = ()
    drop: tuple[Place, ...] = ()
    protect: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), description="layers that stay whole")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if both := set(self.keep) & set(self.drop):
            layer, place = min(both)
            raise ValueError(f"keep, drop={layer}:{place}: it is pinned both to stay and to go; leave it out of one")
        return self


THRESHOLD = 0.8
"""The threshold where none is given."""


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


class Served(Record):
    """A model as one target reads it: the bytes of its tensors before and after."""

    target: str = Field(description="runtime, number format and degree, such as llama.cpp:q4_k_m or vllm:tp=2")
    before: int = Field(ge=1)
    after: int = Field(ge=1)
    fallbacks: int = Field(
        default=0, ge=0, description="matrices whose rows do not fit the format, which are stored in a larger type"
    )


class Plan(Record):
    """A removal, its reason and its figures: the value that is saved, compared, shown and executed."""

    schema_version: Literal[3] = 3
    kind: Literal["plan"] = "plan"
    model: ModelFacts
    calibration: str = Field(description="its folder; empty for a plan without one")
    calibrated: str = Field(default="", description="when that calibration was started")
    unit: UnitName
    uniform: bool = Field(default=False, description="whether every layer that stays has one shape")
    reason: Annotated[ByThreshold | ByBudget, Field(discriminator="kind")]
    pins: Pins = Field(default_factory=Pins)
    keep: Keep
    changes: tuple[Change, ...] = ()
    before: Size
    after: Size
    forecast: Forecast | None = None
    repaired: Forecast | None = Field(default=None, description="the forecast for the pruned model once it is repaired")
    targets: tuple[Served, ...] = Field(
        default=(), description="what it is valid for", exclude_if=lambda targets: not targets
    )
    notes: tuple[str, ...] = Field(default=(), description="warnings to read before cutting")

    @model_validator(mode="after")
    def _valid(self) -> Self:
        model = self.model
        if len(self.keep) != model.layers:
            raise ValueError(f"keep has {len(self.keep)} layers, the model has {model.layers}")
        if not any(kept.attention for kept in self.keep):
            raise ValueError("keep is empty in every layer: the last attention block cannot be removed")
        for layer, kept in enumerate(self.keep):
            if kept.heads and kept.heads[-1] >= model.heads:
                raise ValueError(f"keep[{layer}].heads={list(kept.heads)}: heads must be in 0..{model.heads - 1}")
            if len(set(Counter(head // model.group for head in kept.heads).values())) > 1:
                raise ValueError(
                    f"keep[{layer}].heads={list(kept.heads)}: every KV group that stays must keep equally many heads"
                )
        return self

    @property
    def removed_heads(self) -> int:
        """Query heads that go, those of removed blocks and layers included."""
        return self.model.layers * self.model.heads - sum(len(kept.heads) for kept in self.keep)

    @property
    def removed_blocks(self) -> tuple[int, ...]:
        """Layers that lose their attention block alone."""
        return tuple(layer for layer, kept in enumerate(self.keep) if kept.layer and not kept.attention)

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Layers that go whole."""
        return tuple(layer for layer, kept in enumerate(self.keep) if not kept.layer)
