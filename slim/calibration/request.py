"""Requests of the stages that measure: calibrate, check."""

from typing import Annotated, ClassVar

from pydantic import Field

from slim.calibration.facts import CalibrationSettings
from slim.core.codecs import numbers
from slim.core.fields import Layers, Samples
from slim.core.request import Argument, NameOrPath, Request, Saves
from slim.data.request import ReadsRows
from slim.models.bundled import MODEL, NAME


class CalibrateRequest(ReadsRows, CalibrationSettings, Saves, Request):
    """Measure every head and block of a model on rows of a task."""

    verb = "calibrate"
    model: NameOrPath = Field(default=NAME, title="Model", description=MODEL)
    layers: Layers = "auto"


class CheckRequest(Request):
    """Ablate heads one at a time to see which criterion predicts real damage, and correct the forecast by it."""

    verb = "check"
    earlier: ClassVar = {"rows": "samples"}
    calibration: Annotated[NameOrPath, Argument("CALIBRATION")] = Field(description="folder of a calibration")
    weights: Annotated[dict[str, float] | None, numbers("kl_output=1,variance=0.5")] = Field(
        default=None, title="Weights", description="weights of the composite, for instance kl_output=1,variance=0.5"
    )
    samples: Samples = Field(default=6, description="rows to measure on, unseen ones where there are any")
    heads: int = Field(default=60, ge=3, title="Heads", description="heads to ablate one at a time")
