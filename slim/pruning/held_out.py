"""Rows that a checkpoint was not made from, and the model it was cut from."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slim.calibration.facts import CalibrationFacts
from slim.calibration.record import load_calibration
from slim.calibration.reload import task_of
from slim.core import paths
from slim.core.errors import InputError
from slim.core.progress import Progress, silent
from slim.core.records import DatasetFacts
from slim.data import tasks
from slim.data.sources import is_hub_id
from slim.planning.files import load_plan
from slim.planning.record import Plan
from slim.pruning.checkpoint import PLAN_FILE
from slim.pruning.history import load_recovery, role_of

UNSEEN = ("test", "validation")
"""The splits that rows are taken from where none is named, in this order."""


def plan_of(source: str) -> Plan | None:
    """The plan that a checkpoint was cut by; None for any other model."""
    file = paths.local(source, "model") / PLAN_FILE
    return load_plan(file) if file.is_file() else None


def original_of(sources: Sequence[str]) -> str:
    """The model that all checkpoints were cut from. Raises InputError where they do not say one and the same."""
    found = {plan.model.source for source in sources if (plan := plan_of(source)) is not None}
    if len(found) == 1:
        return found.pop()
    listed = ", ".join(repr(one) for one in sorted(found))
    why = f"the checkpoints were cut from {listed}" if found else f"{sources[0]!r} does not say what it was cut from"
    raise InputError(f"baseline: {why}: name the model to compare with.")


def open_task(dataset: str, **data: Any) -> tasks.Task:
    """The dataset's split that is named, or one that calibrations do not take by themselves."""
    if data.get("split") is not None or not (dataset.startswith("bundled:") or is_hub_id(dataset)):
        return tasks.load_task(dataset, **data)
    *others, last = UNSEEN
    for split in others:
        try:
            return tasks.load_task(dataset, **{**data, "split": split})
        except InputError:
            continue
    return tasks.load_task(dataset, **{**data, "split": last})


def draw(
    task: tasks.Task, samples: int, seed: int, sources: Sequence[str], progress: Progress = silent
) -> tuple[list[tasks.Example], str]:
    """Rows that no checkpoint among `sources` was calibrated on, and in words why they are held out.

    Raises InputError where no such row is left.
    """
    seen, reasons = _seen(sources, task)
    drawn = tasks.choose(task, samples + len(seen), seed, progress)
    kept = [example for example in drawn if example not in seen][:samples]
    if not kept:
        raise InputError(
            f"dataset {task.source!r}: calibration or recovery drew every row of split {task.split!r}: "
            "name another split or another file."
        )
    return kept, "; ".join(reasons) or f"split {task.split}; no model here was calibrated"


def calibration_task(plan: Plan) -> tasks.Task:
    """The rows that a plan's calibration drew from. Raises InputError where that is not known any more."""
    facts = _calibration(plan)
    if facts is None:
        raise InputError(
            "dataset: repair takes the rows of the plan's calibration, and that is gone or was never there: name a "
            "dataset, or leave repair out."
        )
    return task_of(facts.dataset)


def calibrated_on(source: str, task: tasks.Task) -> set[tasks.Example]:
    """The rows of `task` that the calibration of a checkpoint drew."""
    plan = plan_of(source)
    facts = _calibration(plan) if plan else None
    if facts is None or not _same_rows(facts.dataset, task):
        return set()
    return set(tasks.choose(task, facts.settings.samples, facts.settings.seed))


def _seen(sources: Sequence[str], task: tasks.Task) -> tuple[set[tasks.Example], dict[str, None]]:
    """The rows of `task` that checkpoints were made from, and what is to be said of it."""
    seen: set[tasks.Example] = set()
    reasons: dict[str, None] = {}
    for source in sources:
        plan = plan_of(source)
        if plan is None:
            continue
        facts = _calibration(plan)
        if facts is None:
            reasons[f"which rows {Path(source).name} was calibrated on is not known"] = None
        elif _same_rows(facts.dataset, task):
            seen |= calibrated_on(source, task)
            reasons[f"rows of split {task.split} that the calibration did not draw"] = None
        else:
            reasons[f"split {task.split}; calibrated on {facts.dataset.source}, split {facts.dataset.split}"] = None
        for step in load_recovery(paths.local(source, "model")).steps:
            if _same_rows(step.dataset, task):
                drawn = tasks.choose(task, step.samples, step.seed)
                seen |= {example for example in drawn if role_of(example) != "report"}
                reasons[f"rows of split {task.split} that the recovery did not learn or choose by"] = None
    return seen, reasons


def _calibration(plan: Plan) -> CalibrationFacts | None:
    if not plan.calibration:
        return None
    try:
        return load_calibration(paths.local(plan.calibration, "calibration")).facts
    except InputError:
        return None


def _same_rows(data: DatasetFacts, task: tasks.Task) -> bool:
    def place(source: str) -> str:
        path = paths.local(source)
        return str(path.absolute()) if path.exists() else source

    return (place(data.source), data.config, data.split) == (place(task.source), task.config, task.split)


def labels(sources: Sequence[str]) -> Mapping[str, str]:
    """A short name for each model, told apart by more of the path where two are alike; to its source."""
    found: dict[str, str] = {}
    for source in sources:
        found[next(name for name in _names(source) if name not in found)] = source
    return found


def _names(source: str) -> Iterator[str]:
    path = paths.local(source)
    if path.exists():
        parts = path.absolute().parts
        yield from ("/".join(parts[-count:]) for count in range(1, len(parts)))
    yield source
    yield from (f"{source} ({number})" for number in range(2, 2**16))
