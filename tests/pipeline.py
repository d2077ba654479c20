"""A whole pipeline of a pico model in a workspace: each stage made for real, small enough to take seconds."""

from dataclasses import dataclass
from pathlib import Path

from slim.calibration import calibrate
from slim.calibration.facts import CalibrationSettings
from slim.evaluation.answers import AnswerSettings
from slim.evaluation.evaluate import checked_settings, evaluate
from slim.judging import judge
from slim.planning import threshold as plan
from slim.planning.files import load_plan, save_plan
from slim.pruning import surgery
from slim.recovery import repair
from slim.recovery.repair import RepairSettings
from tests.pico import make_pico, save_pico

DATA = "bundled:triage"


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
    measured = calibrate.calibrate(
        str(model), DATA, settings=CalibrationSettings(samples=6, max_length=48), output=made.calibration
    )
    save_plan(plan.plan_by_threshold(measured, 0.7, "head"), made.plan)
    surgery.prune(load_plan(made.plan), made.checkpoint)
    few = RepairSettings.checked(samples=60, max_length=48, batch_size=4)
    repair.repair(str(made.checkpoint), settings=few, output=made.recovered)
    quick = checked_settings(samples=4, max_length=48, max_new_tokens=2, device="cpu")
    evaluate([str(made.checkpoint), str(made.recovered)], DATA, settings=quick, output=made.evaluation)
    asked = AnswerSettings(max_new_tokens=2)
    judge.judge(str(model), str(made.recovered), DATA, samples=3, settings=asked, device="cpu", output=made.judgement)
    return made
