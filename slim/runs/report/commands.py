"""The commands that reproduce a run, from its records: every non-default option, folders by their names."""

from typing import Any

from slim.calibration.record import Calibration
from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.core.naming import endpoint_words, named
from slim.core.records import DatasetFacts
from slim.data.request import DataSource
from slim.evaluation.record import EvaluationFacts
from slim.evaluation.request import EvaluateRequest
from slim.judging.prompt import RUBRIC
from slim.judging.record import Judgment
from slim.judging.request import JudgeRequest
from slim.planning.record import ByThreshold, Plan
from slim.planning.request import PlanRequest
from slim.pruning.history import RecoveryStep
from slim.recovery.request import FinetuneRequest, PruneRequest, RepairRequest
from slim.runs.report.gather import Gathered, Subject

ALWAYS = ("dataset", "samples", "seed")
"""Options that are shown even where they are the default."""


def commands(gathered: Gathered) -> str:
    """Return the lines to run, in the order of the pipeline."""
    lines: list[str] = []
    for measured in gathered.calibrations:
        lines += _calibrated(measured)
    for subject in gathered.subjects:
        lines += _made(subject)
    lines += [_evaluated(name, held.facts) for name, held in gathered.evaluations]
    lines += [_judged(name, held) for name, held in gathered.judgements]
    return "\n".join(lines)


def _rows(data: DatasetFacts) -> dict[str, Any]:
    """The row options of a record. A bundled task needs no column mapping."""
    source, place = DataSource.of_facts(data), {"dataset": named(data.source)}
    return place | source.row_options if not data.source.startswith("bundled:") else place | {"split": data.split}


def _calibrated(measured: Calibration) -> list[str]:
    facts, name = measured.facts, measured.path.name if measured.path is not None else "calibration"
    settings, rows = facts.settings.model_dump(), _rows(facts.dataset)
    request = CalibrateRequest.asked(model=named(facts.model.source), **rows, **settings, output=name)
    lines = [request.command(always=ALWAYS)]
    if (check := measured.check) is not None:
        chosen = {"weights": check.weights, "samples": check.rows, "heads": len(check.heads)}
        lines.append(CheckRequest.asked(calibration=name, **chosen).command())
    return lines


def _made(subject: Subject) -> list[str]:
    """The commands of a subject: its plan, its pruning, and every step since."""
    lines, name = [], subject.name
    steps = subject.recovery.steps
    if subject.plan is not None:
        file = f"{name}-plan.json"
        lines.append(_planned(subject.plan, file))
        if subject.fingerprint:
            name = subject.name if not steps else f"{subject.name}-cut"
            lines.append(PruneRequest.asked(plan=file, repair=False, output=name).command())
    for number, step in enumerate(steps, 1):
        made = subject.name if number == len(steps) else f"{subject.name}-{number}"
        lines.append(_recovered(step, name, made))
        name = made
    return lines


def _planned(plan: Plan, file: str) -> str:
    reason = plan.reason
    if isinstance(reason, ByThreshold):
        why = {"threshold": reason.threshold, "weights": reason.weights, "per_layer": reason.per_layer}
    else:
        why = {"budget": reason.limits, "after_repair": plan.repaired is not None}
    folder = named(plan.calibration) if plan.calibration else "calibration"
    shape = {"unit": plan.unit, "uniform": plan.uniform, **plan.pins.model_dump()}
    return PlanRequest.asked(calibration=folder, **why, **shape, output=file).command(always=("unit",))


def _recovered(step: RecoveryStep, source: str, made: str) -> str:
    """The command of a step of recovery, measured against the original of the checkpoint."""
    request = RepairRequest if step.method == "repair" else FinetuneRequest
    known = {option.name for option in request.options()} - {"original", "method"}
    settings = {name: value for name, value in step.settings.items() if name in known}
    settings |= {"samples": step.samples, "seed": step.seed}
    method = {} if step.method == "repair" else {"method": step.method}
    asked = request.asked(folder=source, **method, **_rows(step.dataset), **settings, output=made)
    return asked.command(always=(*ALWAYS, "method"))


def _evaluated(name: str, facts: EvaluationFacts) -> str:
    timed, settings = bool(facts.original.pace), facts.settings
    found = {field: getattr(settings, field) for field in type(settings).model_fields}
    if not timed:
        del found["pace"]
    request = EvaluateRequest.asked(
        checkpoints=tuple(named(one.model.source) for one in facts.models[1:]),
        baseline=named(facts.original.model.source),
        tasks=tuple(map(named, facts.tasks)),
        speed=timed,
        **(_rows(facts.dataset) if facts.dataset else {}),
        **found,
        output=name,
    )
    return request.command(always=ALWAYS if facts.dataset else ("seed",))


def _judged(name: str, held: Judgment) -> str:
    judge, who = held.judge, {}
    if judge.kind == "endpoint":
        who = {"endpoint": judge.endpoint and endpoint_words(judge.endpoint), "judge_model": judge.name}
    elif judge.kind == "local":
        who = {"local_judge": named(judge.name)}
    request = JudgeRequest.asked(
        original=named(held.original_model),
        pruned=named(held.pruned_model),
        dataset=named(held.dataset),
        config=held.config,
        split=held.split,
        revision=held.revision,
        rubric=judge.rubric if judge.rubric != RUBRIC else None,
        min_coverage=held.min_coverage,
        **held.answers.model_dump() | {"samples": held.num_samples},
        output=f"{name}.json",
    )
    return request.command(always=("pruned", "original", *ALWAYS), **who)
