"""A whole pipeline of a pico model in a workspace: each stage made for real, small enough to take seconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim.calibration.calibrate import calibrate
from slim.calibration.request import CalibrateRequest
from slim.evaluation.evaluate import evaluate
from slim.evaluation.request import EvaluateRequest
from slim.judging.judge import judge
from slim.judging.request import JudgeRequest
from slim.planning.files import load_plan, save_plan
from slim.planning.threshold import plan_by_threshold
from slim.pruning import checkpoint
from slim.recovery.repair import repair
from slim.recovery.request import RepairRequest
from tests.pico import make_pico, save_pico

DATA = "bundled:triage"
ARROWS = {
    "model": [],
    "calibration": ["model"],
    "plan": ["calibration"],
    "checkpoint": ["plan"],
    "recovered": ["checkpoint"],
    "evaluation": ["checkpoint", "recovered", "model"],
    "judgement": ["recovered", "model"],
}
"""The stages of a whole pipeline, each with those it was made from."""


@dataclass(frozen=True)
class Pipeline:
    """Where each stage lies."""

    model: Path
    calibration: Path
    plan: Path
    checkpoint: Path
    recovered: Path
    evaluation: Path
    judgement: Path

    @property
    def runs(self) -> dict[str, Path]:
        """The runs by their stages, in the order they were made."""
        return {name: path for name, path in vars(self).items() if name != "model"}


def make_pipeline(home: Path, model: Path) -> Pipeline:
    """Everything from a model that is made in the folder `model` to a judgement, in the workspace `home`."""
    save_pico(make_pico("llama"), model)
    made = Pipeline(
        model,
        home / "calibrations" / "task",
        home / "plans" / "eight.json",
        home / "checkpoints" / "small",
        home / "checkpoints" / "better",
        home / "evaluations" / "both",
        home / "judgements" / "verdict.json",
    )
    few: dict[str, Any] = {"dataset": DATA, "max_length": 48}
    measured = calibrate(CalibrateRequest.asked(model=model, samples=6, output=made.calibration, **few))
    save_plan(plan_by_threshold(measured, 0.7, "head"), made.plan)
    checkpoint.prune(load_plan(made.plan), made.checkpoint)
    repair(RepairRequest.asked(folder=made.checkpoint, samples=60, max_length=48, batch_size=4, output=made.recovered))
    short: dict[str, Any] = {"max_new_tokens": 2, "device": "cpu"}
    both = (made.checkpoint, made.recovered)
    evaluate(EvaluateRequest.asked(checkpoints=both, samples=4, output=made.evaluation, **few, **short))
    pair = {"original": model, "pruned": made.recovered, "dataset": DATA}
    judge(JudgeRequest.asked(samples=3, output=made.judgement, **pair, **short))
    return made
