"""How often models answer right, on tasks that nothing was calibrated, repaired or trained on.

`python -m benchmarks.recovery --accuracy` asks for it. Measurements are kept in the work folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import slug, table
from slim.data import tasks
from slim.evaluation.evaluate import evaluate
from slim.evaluation.record import load_evaluation_facts
from slim.evaluation.request import EvaluateRequest
from slim.models import bundled


@dataclass(frozen=True)
class Sat:
    """A task that models sit: its rows, how they are read, and the measure that counts."""

    title: str
    dataset: str
    measure: str
    rows: int
    data: Mapping[str, Any]


def sat(data: Path, work: Path) -> tuple[Sat, ...]:
    """The tasks."""
    return (
        Sat("triage, 108 rows", "bundled:triage", "accuracy", 108, {"split": "test"}),
        Sat("BoolQ, 100 rows", str(data / "boolq_val_1000.jsonl"), "ranked_whole", 100, {}),
        Sat("triage, ranked, 108 rows", str(ranked_triage(work)), "ranked_whole", 108, {}),
    )


def ranked_triage(work: Path) -> Path:
    """Triage's rows with their six labels as choices, of which the likeliest counts: nothing needs to be written."""
    rows = tasks.load_task("bundled:triage", split="test").examples
    labels = sorted({row.answer for row in rows})
    asked = [{"query": row.prompt, "choices": labels, "gold": labels.index(row.answer)} for row in rows]
    file = work / "triage-as-choices.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in asked), encoding="utf-8")
    return file


def table_of(folders: Mapping[str, Path], data: Path, work: Path) -> str:
    """The original and the models in `folders`, by name, on each task, with 95% intervals."""
    lines = {name: [name] for name in ("original", *folders)}
    tried = sat(data, work)
    for one in tried:
        kept = work / slug(f"accuracy-{one.title}")
        if not kept.is_dir():
            settings = {"samples": one.rows, "max_length": 512, "positions": "answer"}
            models = {"checkpoints": list(folders.values()), "baseline": bundled.NAME}
            evaluate(EvaluateRequest.asked(dataset=one.dataset, output=kept, **models, **settings, **one.data))
        for line, scores in zip(lines.values(), load_evaluation_facts(kept).models, strict=True):
            figure = scores.scores[one.measure].figure
            line.append(f"{figure.value:.1f}% [{figure.low:.1f}, {figure.high:.1f}]")
    return table(("model", *(one.title for one in tried)), list(lines.values()))
