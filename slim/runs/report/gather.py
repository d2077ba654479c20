"""The records that belong to a run: its calibration and plan, its recovery, and its evaluations and judgements."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from slim.calibration import record as calibration
from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.core.naming import named
from slim.core.run_index import runs
from slim.evaluation.record import (
    TABLE,
    Evaluation,
    EvaluationFacts,
    ModelScores,
    load_evaluation,
    load_evaluation_facts,
)
from slim.judging import judge
from slim.judging.record import Judgment
from slim.models.original import PLAN_FILE
from slim.models.source import digest, weights_of
from slim.planning.files import load_plan
from slim.planning.record import Plan
from slim.pruning.history import RECOVERY_FILE, Recovery, load_recovery

Loadable = TypeVar("Loadable")


@dataclass(frozen=True)
class Subject:
    """A model of the report: its plan, and every step since."""

    name: str
    fingerprint: str = ""
    """Fingerprint of its weights, which evaluations and judgements record; empty before there are weights."""
    plan: Plan | None = None
    recovery: Recovery = field(default_factory=Recovery)
    calibration: Calibration | None = None

    def scores(self, facts: EvaluationFacts) -> int | None:
        """Its index among the models of an evaluation; None where that did not compare it with the original."""
        places = range(1, len(facts.models))
        return next((place for place in places if facts.models[place].model.fingerprint == self.fingerprint), None)

    def was_judged(self, judgement: Judgment) -> bool:
        """Return whether a judgement is of its answers."""
        return bool(self.fingerprint) and judgement.fingerprints[1] == self.fingerprint


@dataclass(frozen=True)
class Gathered:
    """All records of a report, the newest evaluations and judgements first."""

    name: str
    subjects: tuple[Subject, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    evaluations: tuple[tuple[str, Evaluation], ...] = ()
    judgements: tuple[tuple[str, Judgment], ...] = ()
    notes: tuple[str, ...] = ()


def gather(run: Path) -> Gathered:
    """Gather the records that belong to a calibration, plan, checkpoint, evaluation or judgement.

    Evaluations and judgements of a checkpoint are those in the workspace with exactly its weights. Sources that are
    missing or have changed are listed in `notes`. Raises InputError for anything but an undamaged run.
    """
    notes: list[str] = []
    run = run.expanduser().absolute()
    name = run.stem if run.suffix == ".json" else run.name
    if (run / TABLE).is_file():
        held = load_evaluation(run)
        subjects = tuple(_evaluated(one, notes) for one in held.facts.models[1:])
        return _with(name, subjects, ((name, held),), _judged(subjects), notes)
    if (run / "record.json").is_file():
        return Gathered(name, calibrations=(calibration.load_calibration(run),))
    if (run / "config.json").is_file():
        subjects = (_checkpoint(run, notes),)
        return _with(name, subjects, _evaluations(subjects), _judged(subjects), notes)
    if not run.is_file():
        raise InputError(
            f"run={str(run)!r}: it was not created by Slim; name a calibration, a plan, a checkpoint, an evaluation or "
            "a judgement."
        )
    try:
        verdicts = judge.load_judgment(run)
    except InputError:
        made = load_plan(run)
        return _with(name, (Subject(name, plan=made, calibration=_measured(made, notes)),), (), (), notes)
    subjects = (_known(verdicts.pruned_model, named(verdicts.pruned_model), verdicts.fingerprints[1], notes),)
    return _with(name, subjects, _evaluations(subjects), ((name, verdicts),), notes)


def _with(
    name: str,
    subjects: tuple[Subject, ...],
    evaluations: tuple[tuple[str, Evaluation], ...],
    judgements: tuple[tuple[str, Judgment], ...],
    notes: list[str],
) -> Gathered:
    measured = {one.calibration.path: one.calibration for one in subjects if one.calibration is not None}
    return Gathered(name, subjects, tuple(measured.values()), evaluations, judgements, tuple(dict.fromkeys(notes)))


def _checkpoint(folder: Path, notes: list[str]) -> Subject:
    """The subject of a model folder; one that was never pruned has no plan."""
    made = load_plan(folder / PLAN_FILE) if (folder / PLAN_FILE).is_file() else None
    if made is None and not (folder / RECOVERY_FILE).is_file():
        raise InputError(f"run={str(folder)!r}: the model was not created by Slim; name a checkpoint that was.")
    weights = digest(weights_of(folder))
    return Subject(folder.name, weights, made, load_recovery(folder), None if made is None else _measured(made, notes))


def _evaluated(one: ModelScores, notes: list[str]) -> Subject:
    return _known(one.model.source, one.name, one.model.fingerprint, notes)


def _known(source: str, name: str, fingerprint: str, notes: list[str]) -> Subject:
    """The subject with these weights; only its name where its folder is missing or holds another model."""
    folder = Path(source).expanduser()
    try:
        found = _checkpoint(folder.absolute(), notes) if (folder / "config.json").is_file() else None
    except InputError:
        found = None
    if found is not None and found.fingerprint == fingerprint:
        return Subject(name, fingerprint, found.plan, found.recovery, found.calibration)
    gone = "its folder holds another model now" if found else "its checkpoint is missing"
    notes.append(f"the report omits how {name} was made: {gone}")
    return Subject(name, fingerprint)


def _measured(made: Plan, notes: list[str]) -> Calibration | None:
    """The calibration of a plan."""
    if not made.calibration:
        return None
    folder = Path(made.calibration)
    try:
        found = calibration.load_calibration(folder)
    except InputError:
        notes.append(f"the calibration {folder.name} is missing, so its maps are left out")
        return None
    if (found.facts.model.fingerprint, found.facts.started) != (made.model.fingerprint, made.calibrated):
        notes.append(f"the calibration {folder.name} is another one than the plan was made from, so it is left out")
        return None
    return found


def _evaluations(subjects: tuple[Subject, ...]) -> tuple[tuple[str, Evaluation], ...]:
    known = _readable(runs("evaluation"), load_evaluation_facts)
    mine = [path for path, facts in known if any(one.scores(facts) is not None for one in subjects if one.fingerprint)]
    return tuple((path.name, one) for path, one in _readable(mine, load_evaluation))


def _judged(subjects: tuple[Subject, ...]) -> tuple[tuple[str, Judgment], ...]:
    known = _readable(runs("judgement"), judge.load_judgment)
    return tuple((path.stem, one) for path, one in known if any(subject.was_judged(one) for subject in subjects))


def _readable(paths: list[Path], load: Callable[[Path], Loadable]) -> Iterator[tuple[Path, Loadable]]:
    """The records that can be read: a damaged record of another run must not prevent the report."""
    for path in paths:
        try:
            yield path, load(path)
        except InputError:
            continue
