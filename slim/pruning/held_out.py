"""Held-out rows, on which no checkpoint was calibrated, and the model that a checkpoint was cut from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from slim.calibration.facts import CalibrationFacts
from slim.calibration.record import load_calibration
from slim.calibration.reload import task_of
from slim.core import paths
from slim.core.errors import InputError
from slim.core.records import DatasetFacts
from slim.core.reporter import SILENT, Reporter
from slim.data import tasks
from slim.data.request import DataSource
from slim.data.sources import is_hub_id
from slim.models.original import PLAN_FILE
from slim.planning.files import load_plan
from slim.planning.record import Plan
from slim.pruning.history import TEST, load_recovery, role_of

UNSEEN = ("test", "validation")
"""The splits to take rows from where none is named, in this order."""


def plan_of(source: str) -> Plan | None:
    """Return the plan that a checkpoint was cut by; None for any other model."""
    file = paths.local(source, "model") / PLAN_FILE
    return load_plan(file) if file.is_file() else None


def original_of(sources: Sequence[str], option: str = "baseline") -> str:
    """Return the model that all checkpoints were cut from.

    Raises InputError, which names the `option` to give instead, where they do not name the same one.
    """
    found = {plan.model.source for source in sources if (plan := plan_of(source)) is not None}
    if len(found) == 1:
        return found.pop()
    listed = ", ".join(repr(one) for one in sorted(found))
    why = f"the checkpoints were cut from {listed}" if found else f"{sources[0]!r} does not say what it was cut from"
    raise InputError(f"{option}: {why}; name the model to compare with.")


def open_task(data: DataSource) -> tasks.Task:
    """Return the rows of the split that is named, or else of one that calibrations do not draw from by default."""
    source = str(data.source)
    if data.split is not None or not (source.startswith("bundled:") or is_hub_id(source)):
        return tasks.load_task(data)
    *others, last = UNSEEN
    for split in others:
        with suppress(InputError):
            return tasks.load_task(data, split=split)
    return tasks.load_task(data, split=last)


def draw(
    task: tasks.Task, samples: int, seed: int, sources: Sequence[str], reporter: Reporter = SILENT
) -> tuple[list[tasks.Example], str]:
    """Return rows that no checkpoint among `sources` was calibrated on, and in words why they are held out.

    Raises InputError where no such row remains.
    """
    seen, reasons = _seen(sources, task)
    drawn = tasks.choose(task, samples + len(seen), seed, reporter)
    kept = [example for example in drawn if example not in seen][:samples]
    if not kept:
        raise InputError(
            f"dataset={task.source!r}: calibration or recovery drew every row of split {task.split!r}; "
            "name another split or another file."
        )
    return kept, "; ".join(reasons) or f"split {task.split}; none of these models was calibrated"


def rows_for_repair(plan: Plan, data: DataSource | None = None) -> tasks.Task:
    """Return the rows that a repair draws from: `data`, or else those of the plan's calibration.

    Raises InputError where neither is known.
    """
    if data is not None:
        return tasks.load_task(data)
    facts = _calibration(plan)
    if facts is None:
        raise InputError("dataset: the plan's calibration, whose rows repair takes, was not found; name a dataset.")
    return task_of(facts.dataset)


def calibrated_on(plan: Plan | None, task: tasks.Task) -> set[tasks.Example]:
    """Return the rows of `task` that the calibration of a plan drew; an empty set without a plan."""
    facts = _calibration(plan) if plan else None
    if facts is None or not _same_rows(facts.dataset, task):
        return set()
    return set(tasks.choose(task, facts.settings.samples, facts.settings.seed))


def _seen(sources: Sequence[str], task: tasks.Task) -> tuple[set[tasks.Example], dict[str, None]]:
    """Return the rows of `task` that checkpoints were made from, and in words why the others are held out."""
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
            seen |= calibrated_on(plan, task)
            reasons[f"rows of split {task.split} that the calibration did not draw"] = None
        else:
            reasons[f"split {task.split}; calibrated on {facts.dataset.source}, split {facts.dataset.split}"] = None
        for step in load_recovery(paths.local(source, "model")).steps:
            if _same_rows(step.dataset, task):
                drawn = tasks.choose(task, step.samples, step.seed)
                seen |= {example for example in drawn if role_of(example) != TEST}
                reasons[f"rows of split {task.split} outside the recovery's train, validation and acceptance rows"] = (
                    None
                )
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
    """Return the source of each model by a short name, with more of the path where two names are alike."""
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
