"""Parents of runs from their records: by the folder that a record names, else by content."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slim.core.run_index import Reference
from slim.runs.facts import Cut, Named, RunFacts

Found = tuple[tuple[str, ...], tuple[str, ...]]
"""The keys of a run's parents, and notes on parents that were not found."""


@dataclass(frozen=True)
class Run:
    """A run's reference in the workspace, and its facts, None where they cannot be read."""

    reference: Reference
    facts: RunFacts | None
    trouble: str = ""

    @property
    def key(self) -> str:
        return self.reference.key


@dataclass
class Model:
    """A model outside of the workspace's runs."""

    name: str
    figures: dict[str, str] = field(default_factory=dict)


class Parents:
    """Finds the parents of runs. `models` are those that were met on the way, by key."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.models: dict[str, Model] = {}
        self._known: dict[str, Mapping[str, str]] = {}
        self._fingerprints: dict[str, str] = {}  # by a model's source
        self._runs: dict[str, tuple[Run, RunFacts]] = {}
        for run in runs:
            if run.facts is not None:
                self._runs[run.reference.path] = run, run.facts
                self._known |= run.facts.known
                self._fingerprints |= {one.source: one.fingerprint for one in run.facts.models if one.fingerprint}

    def parents(self, run: Run) -> Found:
        """The parents of a run, the most important first, and notes."""
        of = run.facts
        if of is None:
            return (), (run.trouble,)
        if of.stage == "calibration":
            return self._originals(of.models), ()
        if of.stage == "plan":
            return self._calibration(of)
        if of.stage in ("checkpoint", "recovered"):
            return self._made(run, of)
        keys, notes = self._compared(of.models[1:])
        return tuple(dict.fromkeys((*keys, *self._originals(of.models[:1])))), notes

    def _made(self, run: Run, of: RunFacts) -> Found:
        """The parents of a checkpoint: that before its last step, else its plan, else the plan's calibration."""
        for count in reversed(range(len(of.steps))):
            before = self._newest(run, (other for other in self._like(of) if other[1].steps == of.steps[:count]))
            if before is not None:
                gone = count < len(of.steps) - 1
                return (before,), ("the checkpoint that its last step began from is gone",) if gone else ()
        lost = ("the checkpoint that its recovery began from is gone",) if of.steps and not of.only_repaired else ()
        if of.cut is None:
            return self._originals(of.models), lost
        for same in ("content", "request"):
            mine = getattr(of.cut, same)
            plans = (other for other in self._stage("plan") if other[1].cut and getattr(other[1].cut, same) == mine)
            if (plan := self._newest(run, plans)) is not None:
                return (plan,), lost
        keys, notes = self._calibration(of)
        return keys, (*lost, "its plan is gone", *notes)

    def _calibration(self, of: RunFacts) -> Found:
        """The calibration that a plan was made on, else the model."""
        cut, model = of.cut, of.models[0]
        if cut is None or not (cut.calibration or cut.calibrated):
            return self._originals([model]), ()
        found = [run for run, facts in self._stage("calibration") if _is_calibration(run, facts, cut, model)]
        if found:
            return (min(found, key=lambda run: run.reference.path != cut.calibration).key,), ()
        return self._originals([model]), (f"its calibration {cut.calibration!r} is gone",)

    def _originals(self, models: Iterable[Named]) -> tuple[str, ...]:
        """The keys of source models: a checkpoint that was pruned again, or a model outside of the runs."""
        return tuple(self._checkpoint(model) or self._model(model) for model in models)

    def _compared(self, models: Iterable[Named]) -> Found:
        """The models that were compared with an original: checkpoints, or any others."""
        keys: dict[str, None] = {}
        notes: dict[str, None] = {}
        for model in models:
            key = self._checkpoint(model)
            if key is None and _is_gone(model.source):
                notes[f"{model.source!r} is gone"] = None
            else:
                keys[key or self._model(model)] = None
        return tuple(keys), tuple(notes)

    def _checkpoint(self, model: Named) -> str | None:
        """The checkpoint of a name: the one at its path, else the only one of that name and parameter count."""
        place = str(Path(model.source).expanduser().absolute())
        if place in self._runs and _fits(*self._runs[place], model):
            return self._runs[place][0].key
        name = Path(model.source).name
        alike = [
            run.key
            for run, facts in self._runs.values()
            if Path(run.reference.path).name == name and _fits(run, facts, model)
        ]
        return alike[0] if len(alike) == 1 and not Path(place).exists() else None

    def _model(self, model: Named) -> str:
        """The key of a model outside of the workspace's runs."""
        fingerprint = model.fingerprint or self._fingerprints.get(model.source, "")
        key = f"model-{hashlib.sha256((fingerprint or model.source).encode()).hexdigest()[:12]}"
        figures = dict(self._known.get(fingerprint, {}))
        name = model.source if model.source.count("/") < 2 else Path(model.source).name
        if key not in self.models or not self.models[key].figures:
            self.models[key] = Model(name, figures)
        return key

    def _stage(self, stage: str) -> Iterator[tuple[Run, RunFacts]]:
        return ((run, facts) for run, facts in self._runs.values() if facts.stage == stage)

    def _like(self, of: RunFacts) -> Iterator[tuple[Run, RunFacts]]:
        """Checkpoints that were pruned by the same plan."""
        cut = of.cut and of.cut.content
        for run, facts in self._runs.values():
            if run.reference.kind == "checkpoint" and (facts.cut and facts.cut.content) == cut:
                yield run, facts

    def _newest(self, run: Run, among: Iterable[tuple[Run, RunFacts]]) -> str | None:
        """Of runs with the same content, the newest that is not newer than the child."""
        found = [other for other, _ in among if other.key != run.key]
        found.sort(key=lambda other: other.reference.created, reverse=True)
        older = [other for other in found if other.reference.created <= run.reference.created]
        return next((other.key for other in (*older, *found)), None)


def _fits(run: Run, facts: RunFacts, model: Named) -> bool:
    """Return whether a run can be the checkpoint that a record names, by all that is recorded of both."""
    return run.reference.kind == "checkpoint" and (
        None in (model.parameters, facts.size) or model.parameters == facts.size
    )


def _is_calibration(run: Run, facts: RunFacts, cut: Cut, model: Named) -> bool:
    """Return whether a plan was made on a calibration; older plans lack the start time of theirs."""
    same = facts.started == cut.calibrated if cut.calibrated else run.reference.path == cut.calibration
    return same and facts.models[0].fingerprint == model.fingerprint


def _is_gone(source: str) -> bool:
    """Return whether a name is that of a missing folder."""
    path = Path(source).expanduser()
    return path.is_absolute() and not path.exists()
