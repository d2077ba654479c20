"""The kinds of jobs: what each runs, and where."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slim.core.progress import Progress
from slim.jobs.reporter import JobReporter
from slim.planning.files import load_plan


def _calibrate(arguments: dict[str, Any], progress: Progress) -> str:
    from slim.calibration import calibrate

    settings = calibrate.checked_settings(**arguments.pop("settings"))
    return str(calibrate.calibrate(**arguments, settings=settings, progress=progress).path)


def _check(arguments: dict[str, Any], progress: Progress) -> str:
    from slim.calibration import check
    from slim.calibration.record import load_calibration

    done = check.check(load_calibration(Path(arguments.pop("calibration"))), **arguments, progress=progress)
    return str(done.path)


def _prune(arguments: dict[str, Any], progress: Progress) -> str:
    from slim.recovery import repair
    from slim.recovery.iterative import execute_plan

    if "settings" in arguments:
        arguments["settings"] = repair.RepairSettings.checked(**arguments["settings"])
    return str(execute_plan(load_plan(Path(arguments.pop("plan"))), **arguments, progress=progress))


def _absorb(arguments: dict[str, Any], progress: Progress) -> str:
    from slim.calibration.record import load_calibration
    from slim.planning.after_repair import after_repair_sketch

    after_repair_sketch(load_calibration(Path(arguments["calibration"])), progress)
    return arguments["calibration"]


def _repair(arguments: dict[str, Any], progress: Progress) -> str:
    from slim.recovery import repair

    settings = repair.RepairSettings.checked(**arguments.pop("settings"))
    return str(repair.repair(**arguments, settings=settings, progress=progress))


def _evaluate(arguments: dict[str, Any], progress: Progress) -> str:
    from slim.evaluation import evaluate

    settings = evaluate.checked_settings(**arguments.pop("settings"))
    return str(evaluate.evaluate(**arguments, settings=settings, progress=progress).path)


def _finetune(arguments: dict[str, Any], progress: JobReporter) -> str:
    from slim.recovery import finetune

    settings = finetune.TrainSettings.checked(**arguments.pop("settings"))
    return str(finetune.finetune(**arguments, settings=settings, progress=progress, watch=progress.curve))


def _judge(arguments: dict[str, Any], progress: Progress) -> str:
    from slim.judging import judge

    settings = judge.AnswerSettings.checked(**arguments.pop("settings"))
    return str(judge.judge(**arguments, settings=settings, progress=progress, tell=print)[1])


def _export(arguments: dict[str, Any], progress: Progress) -> str:
    from slim.serving.gguf import export_gguf

    return str(export_gguf(**arguments, progress=progress).path)


def _push(arguments: dict[str, Any], progress: Progress) -> str:
    from slim.serving import push

    return push.push(push.plan_upload(Path(arguments.pop("folder")), **arguments), progress)


KINDS: dict[str, Callable[[dict[str, Any], JobReporter], str]] = {
    "absorb": _absorb,
    "calibrate": _calibrate,
    "check": _check,
    "evaluate": _evaluate,
    "export": _export,
    "finetune": _finetune,
    "judge": _judge,
    "prune": _prune,
    "push": _push,
    "repair": _repair,
}
