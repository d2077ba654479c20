"""Requests of planning: a plan by threshold or by budget, and the forecast after repair that it may be made by."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from slim.core.codecs import names, numbers, numbers_by_layer, places, whole_numbers
from slim.core.records import Place
from slim.core.request import Argument, Named, NameOrPath, Request, Saves
from slim.models.units import UnitName
from slim.planning.record import THRESHOLD, Pins

BY_SCORE = ("threshold", "weights", "per_layer")
"""Options of a plan by threshold, which one by budget does not have."""


class PlanRequest(Saves, Request):
    """Turn a calibration into a plan of valid shapes, with its size and forecast loss."""

    verb = "plan"
    calibration: Annotated[NameOrPath, Argument("CALIBRATION")] = Field(description="folder of a calibration")
    threshold: float | None = Field(
        default=None, ge=0, title="Threshold", description=f"scores from which units are removed (default: {THRESHOLD})"
    )
    budget: Annotated[dict[str, float] | None, numbers("params=0.9,kv=0.7,decode=1.2,loss=0.05")] = Field(
        default=None,
        title="Budget",
        description="the cheapest plan within limits: heads, params, bytes, kv, flops (share of the original at most), "
        "prefill, decode (times as fast at least), loss (nats/token at most); for instance params=0.9,loss=0.05",
    )
    unit: UnitName = Field(default="head", title="Unit", description="what is removed as one")
    uniform: Annotated[bool, Named(("--uniform",))] = Field(
        default=False, title="One shape in all layers", description="one shape in all layers: a stock checkpoint"
    )
    targets: Annotated[tuple[str, ...], names("vllm:tp=2,llama.cpp:q4_k_m"), Named(("--target",))] = Field(
        default=(),
        title="Where it will run",
        description="runtimes whose rules the plan keeps, with a number format and a degree of tensor parallelism: "
        "vllm:tp=2,llama.cpp:q4_k_m",
    )
    weights: Annotated[dict[str, float] | None, numbers("kl_output=1,entropy_norm=0.5")] = Field(
        default=None, title="Weights", description="weights of the score, for instance kl_output=1,entropy_norm=0.5"
    )
    per_layer: Annotated[dict[int, float], numbers_by_layer("0=1,29=0.9")] = Field(
        default={}, title="Thresholds of layers", description="thresholds of single layers, for instance 0=1,29=0.9"
    )
    protect: Annotated[tuple[int, ...], whole_numbers("0,29")] = Field(
        default=(), title="Protected layers", description="layers that stay whole, for instance 0,29"
    )
    after_repair: Annotated[bool, Named(("--after-repair",))] = Field(
        default=False,
        title="Plan by the forecast after repair",
        description="with --budget: the least forecast loss after repair",
    )
    keep: Annotated[tuple[Place, ...], places("3:1,4:2")] = Field(
        default=(), title="Kept", description="units that stay whatever they score, layer:number, for instance 3:1,4:2"
    )
    drop: Annotated[tuple[Place, ...], places("7:0")] = Field(
        default=(), title="Removed", description="units that go whatever they score, for instance 7:0"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.budget is not None and (given := [name for name in BY_SCORE if getattr(self, name) not in (None, {})]):
            raise ValueError(f"budget: it takes the place of {given[0]}; leave one of them out")
        if self.after_repair and self.budget is None:
            raise ValueError("after_repair: it needs a budget; give one, for instance params=0.9")
        self.pins  # noqa: B018  raises where they contradict each other
        return self

    @property
    def pins(self) -> Pins:
        return Pins(keep=self.keep, drop=self.drop, protect=self.protect)


class AfterRepairRequest(Request):
    """Measure what each layer candidate of a calibration would cost once it is repaired."""

    verb = "after-repair"
    earlier: ClassVar = {}
    calibration: NameOrPath = Field(description="folder of a calibration")
