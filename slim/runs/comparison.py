"""Any two runs side by side: their records as lines, differences first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim.calibration.record import load_calibration_facts
from slim.core.errors import InputError
from slim.evaluation.record import load_evaluation_facts
from slim.judging import judge
from slim.models.original import PLAN_FILE
from slim.planning.files import PlanDifference, load_plan, plan_difference
from slim.planning.record import Plan
from slim.pruning.history import load_recovery
from slim.runs.lineage import Node

BULK = ("schema_version", "kind", "keep", "changes", "comparisons", "summary", "reason.scores", "judge.rubric")
"""Fields of a record that are too long for a line, or repeated elsewhere in it."""
LONG = ("shapes", "curve")
"""The same, at any depth of a record."""
CIRCUMSTANCES = ("versions", "started", "seconds", "device", "calibrated", "reused", "created")
"""Fields that differ between any two runs, listed last."""
LISTED = 8
"""Entries of a list that are shown."""
NOTHING = "–"


@dataclass(frozen=True)
class Line:
    """One field of two runs, as text; NOTHING where a run lacks it."""

    name: str
    one: str
    other: str

    @property
    def differs(self) -> bool:
        return self.one != self.other


@dataclass(frozen=True)
class Comparison:
    """Two runs and their lines: differences first, and within these figures, settings and circumstances."""

    one: Node
    other: Node
    lines: tuple[Line, ...]
    plans: PlanDifference | None = None
    """For two plans or checkpoints of one model: the heads that only one of them lacks."""


def compare(one: Node, other: Node) -> Comparison:
    """Compare two runs. Raises InputError for one that cannot be read."""
    told = [_told(node) for node in (one, other)]
    names = dict.fromkeys((*told[0], *told[1]))
    lines = [Line(name, told[0].get(name, NOTHING), told[1].get(name, NOTHING)) for name in names]
    lines.sort(key=lambda line: (not line.differs, line.name.split(".")[0] in CIRCUMSTANCES))
    return Comparison(one, other, tuple(lines), _plans(one, other))


def _told(node: Node) -> dict[str, str]:
    """The fields of a run by name, its figures first."""
    told = dict(node.figures)
    for name, value in _flat(_record(node)):
        told.setdefault(name, value)
    return told


def _record(node: Node) -> dict[str, Any]:
    path = node.path or Path()
    match node.kind:
        case "calibration":
            return load_calibration_facts(path).model_dump()
        case "plan":
            return load_plan(path).model_dump()
        case "checkpoint":
            cut = _plan_of(node)
            return (cut.model_dump() if cut else {}) | {"recovery": load_recovery(path).model_dump()["steps"]}
        case "evaluation":
            return load_evaluation_facts(path).model_dump()
        case "judgement":
            return judge.load_judgment(path).model_dump()
    raise InputError(f"run={node.name!r}: it is a model, not a run; name a run.")


def _plan_of(node: Node) -> Plan | None:
    """The plan that a run is, or was pruned by."""
    path = node.path or Path()
    file = path if node.kind == "plan" else path / PLAN_FILE
    return load_plan(file) if node.kind in ("plan", "checkpoint") and file.is_file() else None


def _plans(one: Node, other: Node) -> PlanDifference | None:
    plans = [_plan_of(node) for node in (one, other)]
    if plans[0] is None or plans[1] is None or plans[0].model.fingerprint != plans[1].model.fingerprint:
        return None
    return plan_difference(plans[0], plans[1])


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a nested value, with its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            way = f"{name}.{key}" if name else str(key)
            if way not in BULK and key not in LONG:
                yield from _flat(inner, way)
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        if ".settings." in name or len(value) > LISTED:  # a repair records every matrix
            yield name, f"{len(value)} entries"
            return
        for place, inner in enumerate(value, 1):
            yield from _flat(inner, f"{name}.{place}")
    elif isinstance(value, list | tuple):
        more = f" and {len(value) - LISTED} more" if len(value) > LISTED else ""
        yield name, ", ".join(_words(inner) for inner in value[:LISTED]) + more or NOTHING
    else:
        yield name, _words(value)


def _words(value: Any) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
