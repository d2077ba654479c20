"""The commands that do it again, from the records: every setting that is not the default, folders by their names."""

import shlex
from collections.abc import Mapping
from typing import Any, TypeVar

from slim.calibration.facts import CalibrationSettings
from slim.calibration.record import Calibration
from slim.core.naming import endpoint_words, named
from slim.core.records import DatasetFacts, Record
from slim.evaluation.answers import AnswerSettings
from slim.evaluation.record import EvaluationFacts, EvaluationSettings
from slim.evaluation.speed import SpeedSettings
from slim.judging.prompt import RUBRIC
from slim.judging.record import Judgment
from slim.models import bundled
from slim.planning.record import ByThreshold, Plan
from slim.pruning.history import RecoveryStep
from slim.recovery.repair import RepairSettings
from slim.recovery.settings import TrainSettings
from slim.runs.report.gather import Gathered, Subject

S = TypeVar("S", bound=Record)


def commands(gathered: Gathered) -> str:
    """The lines to run, in the order of the pipeline."""
    lines: list[str] = []
    for measured in gathered.calibrations:
        lines += _calibrated(measured)
    for subject in gathered.subjects:
        lines += _made(subject)
    lines += [_evaluated(name, held.facts) for name, held in gathered.evaluations]
    lines += [_judged(name, held) for name, held in gathered.judgements]
    return "\n".join(lines)


def _line(verb: str, *given: str, **options: Any) -> str:
    """One command. An option of True is a switch, one of None or False is left out."""
    words = ["slim", verb, *given]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [_value(value)])
    return shlex.join(words)


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unlike(settings: Record, defaults: Record, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings that are not the defaults; rows and seed always."""
    found = settings.model_dump(exclude=set(but))
    first = defaults.model_dump()
    return {name: value for name, value in found.items() if name in ("samples", "seed") or value != first[name]}


def _rows(data: DatasetFacts) -> dict[str, Any]:
    """Which rows, as the verbs take them. A bundled task says by itself how it is read."""
    found: dict[str, Any] = {"dataset": named(data.source), "config": data.config, "split": data.split}
    if data.source.startswith("bundled:"):
        return found
    told: Mapping[str, str] = data.columns
    columns = ",".join(f"{role}={column}" for role, column in told.items()) or None
    return found | {"revision": data.revision, "template": data.template, "columns": columns, "prompt": data.prompt}


def _calibrated(measured: Calibration) -> list[str]:
    facts, name = measured.facts, _name_of(measured)
    model = None if facts.model.source == bundled.NAME else named(facts.model.source)
    settings = _unlike(facts.settings, CalibrationSettings())
    lines = [_line("calibrate", model=model, **_rows(facts.dataset), **settings, output=name)]
    if measured.check is not None:
        weights = _pairs(measured.check.weights)
        lines.append(_line("check", name, weights=weights, rows=measured.check.rows, heads=len(measured.check.heads)))
    return lines


def _name_of(measured: Calibration) -> str:
    return measured.path.name if measured.path is not None else "calibration"


def _pairs(values: Mapping[Any, float]) -> str | None:
    return ",".join(f"{name}={value:g}" for name, value in values.items()) or None


def _made(subject: Subject) -> list[str]:
    """The plan of a subject, its cut, and every step since."""
    lines, name = [], subject.name
    steps = subject.recovery.steps
    if subject.plan is not None:
        file = f"{name}-plan.json"
        lines.append(_planned(subject.plan, file))
        if subject.fingerprint:
            name = subject.name if not steps else f"{subject.name}-cut"
            lines.append(_line("prune", file, no_repair=True, output=name))
    for number, step in enumerate(steps, 1):
        made = subject.name if number == len(steps) else f"{subject.name}-{number}"
        lines.append(_recovered(step, name, made))
        name = made
    return lines


def _planned(plan: Plan, file: str) -> str:
    folder = named(plan.calibration) if plan.calibration else "calibration"
    pins = {
        "protect": ",".join(map(str, plan.pins.protect)) or None,
        "keep": ",".join(f"{layer}:{place}" for layer, place in plan.pins.keep) or None,
        "drop": ",".join(f"{layer}:{place}" for layer, place in plan.pins.drop) or None,
    }
    given: dict[str, Any] = {"unit": plan.unit, "uniform": plan.uniform}
    if isinstance(plan.reason, ByThreshold):
        why = {"threshold": plan.reason.threshold, "weights": _pairs(plan.reason.weights)}
        why["per_layer"] = _pairs(plan.reason.per_layer)
    else:
        why = {"budget": _pairs(plan.reason.limits), "after_repair": plan.repaired is not None}
    return _line("plan", folder, **why, **given, **pins, output=file)


def _recovered(step: RecoveryStep, source: str, made: str) -> str:
    """A step of recovery. What it was measured against is what the checkpoint was cut from."""
    if step.method == "repair":
        told = _unlike(_settings(RepairSettings, step), RepairSettings(), ("dtype",))
        told |= {"samples": step.samples, "seed": step.seed}
        rows = _rows(step.dataset)
        given = {"dataset": rows["dataset"], "config": rows["config"], "split": rows["split"]}
        return _line("repair", source, **given, rows=told.pop("samples"), **told, output=made)
    settings = _settings(TrainSettings, step)
    told = _unlike(settings, TrainSettings(), ("warmup", "merge"))
    switches = {"adapter": not settings.merge, "checkpointing": told.pop("checkpointing", False)}
    rows_drawn = told.pop("samples")
    return _line(
        "finetune", source, method=step.method, **_rows(step.dataset), rows=rows_drawn, **told, **switches, output=made
    )


def _settings(kind: type[S], step: RecoveryStep) -> S:
    """Those that a person chose, of all that a step holds. Raises InputError for one that nobody could have."""
    return kind.checked(**{name: value for name, value in step.settings.items() if name in kind.model_fields})


def _evaluated(name: str, facts: EvaluationFacts) -> str:
    told = _unlike(facts.settings, EvaluationSettings(), ("pace",))
    timed = bool(facts.original.pace)
    rows = {} if facts.dataset is None else _rows(facts.dataset)
    if facts.dataset is None:
        del told["samples"]
    return _line(
        "evaluate",
        *(named(one.model.source) for one in facts.models[1:]),
        baseline=named(facts.original.model.source),
        **rows,
        tasks=",".join(map(named, facts.tasks)) or None,
        speed=timed,
        **told,
        **(_timed(facts.settings.pace) if timed else {}),
        output=name,
    )


def _timed(pace: SpeedSettings) -> dict[str, Any]:
    found = _unlike(pace, SpeedSettings())
    options = {"tokens": "speed_tokens", "steps": "speed_steps", "repeats": "repeats"}
    told = {options[name]: value for name, value in found.items() if name in options}
    return told | ({"speed_rows": ",".join(map(str, pace.batch_sizes))} if "batch_sizes" in found else {})


def _judged(name: str, held: Judgment) -> str:
    told = _unlike(held.answers, AnswerSettings())
    judge = held.judge
    who = {"endpoint": judge.endpoint and endpoint_words(judge.endpoint), "judge_model": judge.name}
    given: dict[str, Any] = {"endpoint": who, "local": {"local_judge": named(judge.name)}, "reference": {}}[judge.kind]
    return _line(
        "judge",
        original=named(held.original_model),
        pruned=named(held.pruned_model),
        dataset=named(held.dataset),
        config=held.config,
        split=held.split,
        revision=held.revision,
        samples=held.num_samples,
        **told,
        **given,
        rubric="rubric.txt" if judge.rubric not in (None, RUBRIC) else None,
        min_coverage=held.min_coverage if held.min_coverage != 0.8 else None,
        output=f"{name}.json",
    )
