"""The pipeline as functions of `import slim`: each takes the options of its request by name."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from slim.calibration import calibrate as calibration
from slim.calibration.request import CalibrateRequest
from slim.core.reporter import Reporter
from slim.core.request import Request
from slim.evaluation import evaluate as evaluation
from slim.evaluation.request import EvaluateRequest
from slim.judging import judge as judging
from slim.judging.request import JudgeRequest
from slim.models.load import load_model as load
from slim.planning import plan as planning
from slim.planning.request import PlanRequest
from slim.recovery import finetune as finetuning
from slim.recovery import prune as pruning
from slim.recovery import repair as repairing
from slim.recovery.request import FinetuneRequest, PruneRequest, RepairRequest
from slim.serving import export as exporting
from slim.serving.request import ExportRequest

__all__ = ["calibrate", "evaluate", "export", "finetune", "judge", "load", "plan", "prune", "repair"]

P = ParamSpec("P")
R = TypeVar("R", bound=Request)
T = TypeVar("T")


def _function(request: Callable[P, R], stage: Callable[[R, Reporter], T]) -> Callable[P, T]:
    """A function that runs a stage on the options of its request, which are validated first; nothing is reported."""
    asked = request.asked  # type: ignore[attr-defined]  a request is a class

    @wraps(stage)
    def run(*args: P.args, **options: P.kwargs) -> T:
        return stage(asked(**options), Reporter())

    return run


calibrate = _function(CalibrateRequest, calibration.calibrate)
plan = _function(PlanRequest, planning.plan)
prune = _function(PruneRequest, pruning.prune)
repair = _function(RepairRequest, repairing.repair)
finetune = _function(FinetuneRequest, finetuning.finetune)
evaluate = _function(EvaluateRequest, evaluation.evaluate)
judge = _function(JudgeRequest, judging.judge)
export = _function(ExportRequest, exporting.export)
