"""The facts of one run from its record: its sources, and the figures that a list of runs shows."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from slim.calibration import record as calibration
from slim.calibration.record import CHECK_FILE
from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.core.workspace import Kind
from slim.evaluation.record import in_words, load_evaluation_facts
from slim.judging import judge
from slim.judging.record import Judgment
from slim.models.original import PLAN_FILE
from slim.planning.files import load_plan
from slim.planning.record import ByBudget, Plan
from slim.pruning.history import RECOVERY_FILE, Recovery, load_recovery

Stage = Literal["model", "calibration", "plan", "checkpoint", "recovered", "evaluation", "judgement"]
"""Stages in the order of the pipeline. A recovered checkpoint has the kind `checkpoint`."""
FIRST = ("perplexity", "kl")
"""The metrics that summarize an evaluation, where it has them; else its first one does."""


@dataclass(frozen=True)
class Named:
    """A model as a record names it, without `parameters` where the record has no count."""

    source: str
    fingerprint: str
    parameters: int | None = None


@dataclass(frozen=True)
class Cut:
    """The identity of a plan, by which its checkpoints are found: hashes of all of it and of its request.

    A checkpoint that was pruned in rounds has a plan of its own with the request of the initial one.
    """

    content: str
    request: str
    calibration: str
    calibrated: str


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run."""

    stage: Stage
    figures: Mapping[str, str]
    models: tuple[Named, ...] = ()
    """The run's model; for an evaluation or a judgement all that were compared, the original first."""
    known: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Figures of these models, by fingerprint."""
    data: tuple[str, ...] = ()
    """The sources of the rows that were used."""
    started: str = ""
    size: int | None = None
    """Parameters of a checkpoint, where it has a plan."""
    cut: Cut | None = None
    steps: tuple[str, ...] = ()
    """Hashes of the steps of a recovery."""
    only_repaired: bool = False
    """Whether pruning itself may have done all of the recovery."""


def run_facts(kind: Kind, path: Path) -> RunFacts:
    """The facts of the run at `path`, cached while its records are unchanged. Raises InputError for a damaged one.

    Only records are read, neither weights nor tables.
    """
    stamps = [file.stat() for file in (path / name for name in RECORDS[kind]) if file.exists()]
    if not stamps:
        raise InputError(f"{kind}={str(path)!r}: it has no record; restore its files, or make it again.")
    return _facts(kind, path, tuple((stamp.st_mtime_ns, stamp.st_size) for stamp in stamps))


RECORDS: dict[Kind, tuple[str, ...]] = {
    "calibration": ("record.json", CHECK_FILE),
    "plan": ("",),
    "checkpoint": (PLAN_FILE, RECOVERY_FILE),
    "evaluation": ("record.json",),
    "judgement": ("",),
}
"""The record files of a run; the run itself is the file where the name is empty."""


@lru_cache(maxsize=2048)
def _facts(kind: Kind, path: Path, stamps: tuple[tuple[int, int], ...]) -> RunFacts:
    return READERS[kind](path)


def _calibration(path: Path) -> RunFacts:
    found = calibration.load_calibration_facts(path)
    data = found.dataset
    figures = {"data": data.source, "rows": f"{data.rows:,} of {data.split}", "tokens": f"{data.tokens:,}"}
    if (path / CHECK_FILE).is_file():
        figures["checked"] = "yes"
    return RunFacts("calibration", figures, (_named(found.model),), _known(found.model), (data.source,), found.started)


def _plan(path: Path) -> RunFacts:
    found = load_plan(path)
    return RunFacts("plan", _of_plan(found), (_named(found.model),), _known(found.model), cut=_cut(found))


def _of_plan(found: Plan) -> dict[str, str]:
    heads = found.model.layers * found.model.heads
    figures = {
        "heads gone": f"{found.removed_heads} of {heads}",
        "parameters": f"{found.after.parameters / found.before.parameters:.1%}",
    }
    if expected := found.repaired or found.forecast:
        figures["forecast"] = f"{expected.nats_per_token:.3f} nats/token"
    return figures


def _cut(found: Plan) -> Cut:
    asked = found.reason.model_dump()
    if isinstance(found.reason, ByBudget):  # rounds reach the limits by steps, which leaves rounding errors
        asked["limits"] = {name: round(limit, 9) for name, limit in found.reason.limits.items()}
    where = [found.model.fingerprint, found.calibration, found.calibrated]
    request = _hash(repr([*where, found.unit, found.uniform, asked, found.pins]))
    return Cut(_hash(found.model_dump_json()), request, found.calibration, found.calibrated)


def _checkpoint(path: Path) -> RunFacts:
    recovery, file = load_recovery(path), path / PLAN_FILE
    made = load_plan(file) if file.is_file() else None
    steps = tuple(_hash(step.model_dump_json()) for step in recovery.steps)
    figures = (_of_plan(made) if made else {}) | _of_recovery(recovery)
    data = tuple(step.dataset.source for step in recovery.steps)
    stage: Stage = "recovered" if steps else "checkpoint"
    only_repaired = all(step.method == "repair" for step in recovery.steps)
    if made is None:
        originals = {str(step.settings.get("original", "")) for step in recovery.steps[:1]}
        models = tuple(Named(original, "") for original in originals if original)
        return RunFacts(stage, figures, models, data=data, steps=steps)
    return RunFacts(
        stage,
        figures,
        (_named(made.model),),
        _known(made.model),
        data,
        size=made.after.parameters,
        cut=_cut(made),
        steps=steps,
        only_repaired=only_repaired,
    )


def _of_recovery(recovery: Recovery) -> dict[str, str]:
    if not recovery.steps:
        return {}
    first, last = recovery.steps[0], recovery.steps[-1]
    return {
        "recovered by": ", ".join(step.method for step in recovery.steps),
        "KL": f"{first.before.kl:.3f} → {last.after.kl:.3f} nats/token",
        "perplexity": f"{last.after.ratio:.3f}× the original's",
    }


def _evaluation(path: Path) -> RunFacts:
    found = load_evaluation_facts(path)
    figures: dict[str, str] = {}
    name = next((name for name in (*FIRST, *found.measures) if name in found.measures), None)
    for one in found.models[1:]:
        score = one.scores.get(name) if name else None
        if score is not None and name is not None:
            about = found.measures[name]
            title = about.title if len(found.models) == 2 else f"{about.title} of {one.name}"
            base = found.original.scores.get(name)
            times = f", {score.figure.value / base.figure.value:.3f}×" if name == FIRST[0] and base else ""
            figures[title] = f"{in_words(about, score.figure)} {about.unit}".strip() + times
    if found.dataset:
        figures["rows"] = f"{found.dataset.rows:,} of {found.dataset.source}"
    models = tuple(Named(one.model.source, one.model.fingerprint, one.parameters) for one in found.models)
    data = (found.dataset.source,) if found.dataset else ()
    return RunFacts("evaluation", figures, models, _known(found.original.model), data)


def _judgement(path: Path) -> RunFacts:
    found: Judgment = judge.load_judgment(path)
    counted = found.figures
    figures = {"wins · losses · ties": f"{counted.win:,} · {counted.loss:,} · {counted.tie:,}"}
    if counted.win_rate is not None:
        figures["win rate"] = f"{counted.win_rate.value:.1%}"
    figures |= {"judged": f"{counted.coverage:.0%} of {found.num_samples:,}", "judge": found.judge.name}
    both = zip((found.original_model, found.pruned_model), found.fingerprints, strict=True)
    return RunFacts("judgement", figures, tuple(Named(*one) for one in both), data=(found.dataset,))


READERS: dict[Kind, Callable[[Path], RunFacts]] = {
    "calibration": _calibration,
    "plan": _plan,
    "checkpoint": _checkpoint,
    "evaluation": _evaluation,
    "judgement": _judgement,
}


def _named(model: ModelFacts) -> Named:
    return Named(model.source, model.fingerprint, model.parameters)


def _known(model: ModelFacts) -> dict[str, dict[str, str]]:
    figures = {
        "parameters": f"{model.parameters / 1e6:,.1f} M",
        "layers × heads": f"{model.layers} × {model.heads}",
        "numbers": model.numbers,
    }
    return {model.fingerprint: figures}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
