"""The planning stage: a calibration in, a saved plan out."""

from pathlib import Path

from slim.calibration.record import load_calibration
from slim.core import workspace
from slim.core.records import Saved
from slim.core.reporter import SILENT, Reporter
from slim.planning.after_repair import after_repair_sketch
from slim.planning.budget import check_limits, plan_by_budget
from slim.planning.files import save_plan
from slim.planning.record import THRESHOLD, Plan
from slim.planning.request import PlanRequest
from slim.planning.threshold import plan_by_threshold
from slim.targets.target import target


def plan(request: PlanRequest, reporter: Reporter = SILENT) -> Saved[Plan]:
    """Return the plan that a calibration gives, and save it.

    The forecast after repair is measured where it is asked for and was not measured before. Raises InputError for what
    cannot be used, a limit that cannot be met, or a threshold that leaves no attention block.
    """
    targets = [target(text) for text in request.targets]
    record, pins = load_calibration(Path(request.calibration)), request.pins
    if request.budget is None:
        made = plan_by_threshold(
            record,
            THRESHOLD if request.threshold is None else request.threshold,
            request.unit,
            request.weights,
            per_layer=request.per_layer,
            pins=pins,
            uniform=request.uniform,
            targets=targets,
        )
    else:
        check_limits(request.budget)
        left = after_repair_sketch(record, reporter) if request.after_repair else None
        made = plan_by_budget(
            record,
            request.budget,
            request.unit,
            uniform=request.uniform,
            pins=pins,
            absorbed=left,
            targets=targets,
        )
    path = request.output or workspace.fresh_path("plan", f"{request.unit}-{made.reason.kind}")
    return Saved(made, save_plan(made, path))
