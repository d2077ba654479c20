"""The kinds of jobs, one row each: the request, its stage, its device, and the results that a stopped one keeps."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.core.reporter import Reporter
from slim.core.request import Request
from slim.evaluation.request import EvaluateRequest
from slim.judging.request import JudgeRequest
from slim.planning.request import AfterRepairRequest
from slim.recovery.request import FinetuneRequest, PruneRequest, RepairRequest
from slim.serving.request import ExportRequest, PushRequest

ROWS_KEPT = "The rows that are done are kept, and the same request goes on from there."
ROUNDS_KEPT = "The rounds that are done are kept, and the same request goes on after them."
TRAINING_KEPT = "The training up to the last saved state is kept, and the same request goes on from there."
NOTHING_KEPT = "Nothing was kept of it: the same request starts anew."
EARLIER = {"absorb": "after-repair"}
"""Kinds in the workspaces of Slim 0.1, each with its name of today."""


def _own_device(request: Any) -> str:
    return request.device


def _no_device(request: Any) -> str:
    return "cpu"


def _device_of_repair(request: PruneRequest) -> str:
    return request.device if request.repair else "cpu"


def _device_of_calibration(request: CheckRequest | AfterRepairRequest) -> str:
    """The device of its calibration."""
    try:
        settings = json.loads((Path(request.calibration) / "record.json").read_bytes())["settings"]
        return str(settings["device"])
    except (OSError, ValueError, KeyError, TypeError):
        return "auto"


@dataclass(frozen=True)
class JobKind:
    """A row: the request, the stage's function by its dotted name, and the option that names its input."""

    request: type[Request]
    stage: str
    subject: str
    device: Callable[[Any], str] = _own_device
    kept: str = NOTHING_KEPT
    """The sentence for a job that was stopped or failed."""
    resumes: Callable[[Any], bool] = lambda request: False
    """Whether the same request resumes where one was stopped."""
    stop: str = "Cancel"
    """The word for stopping it."""

    def run(self, request: Request, reporter: Reporter) -> Any:
        """Return the stage's result."""
        return resolve_name(self.stage)(request, reporter)


def _always(request: Any) -> bool:
    return True


ROWS = (
    JobKind(CalibrateRequest, "slim.calibration.calibrate:calibrate", "model", kept=ROWS_KEPT, resumes=_always),
    JobKind(CheckRequest, "slim.calibration.check:check", "calibration", _device_of_calibration),
    JobKind(
        AfterRepairRequest,
        "slim.planning.after_repair:forecast_after_repair",
        "calibration",
        device=_device_of_calibration,
    ),
    JobKind(
        PruneRequest,
        "slim.recovery.prune:prune",
        "plan",
        device=_device_of_repair,
        kept=ROUNDS_KEPT,
        resumes=lambda request: request.rounds > 1,
    ),
    JobKind(RepairRequest, "slim.recovery.repair:repair", "folder"),
    JobKind(
        FinetuneRequest,
        "slim.recovery.finetune:finetune",
        "folder",
        kept=TRAINING_KEPT,
        resumes=_always,
        stop="Pause",
    ),
    JobKind(EvaluateRequest, "slim.evaluation.evaluate:evaluate", "checkpoints", kept=ROWS_KEPT, resumes=_always),
    JobKind(JudgeRequest, "slim.judging.judge:judge", "pruned", kept=ROWS_KEPT, resumes=_always),
    JobKind(ExportRequest, "slim.serving.export:export", "folder", device=_no_device),
    JobKind(PushRequest, "slim.serving.push:push", "folder", device=_no_device),
)
KINDS: Mapping[str, JobKind] = {row.request.verb: row for row in ROWS}


def kind_of(name: str) -> JobKind | None:
    """Return the row of a kind by the name that a job has stored; None for one of a newer Slim."""
    return KINDS.get(EARLIER.get(name, name))
