"""Evaluation: checkpoints beside the original, on rows that none of them was made from, saved as one record."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slim.core import workspace
from slim.core.cache import open_cache
from slim.core.environment import versions
from slim.core.errors import InputError
from slim.core.progress import Progress, silent
from slim.core.resources import Workload, memory_there, seconds_of
from slim.data.tasks import dataset_facts
from slim.evaluation.dataset_rows import Drawn, Reader, draw
from slim.evaluation.lm_eval_tasks import LmEvalTasks
from slim.evaluation.lm_eval_tasks import version as harness_version
from slim.evaluation.record import (
    Evaluation,
    EvaluationFacts,
    EvaluationSettings,
    ModelScores,
    TaskFacts,
    save_evaluation,
)
from slim.evaluation.row_table import ScoreColumns, facts_of, scores_of, table
from slim.evaluation.speed import check_speed_settings, footprints, measure_speed
from slim.models.load import Loaded, device_name, load_model
from slim.pruning import held_out

Tell = Callable[[Workload], None]
"""Hears what an evaluation will take before it starts."""
DATASET = "bundled:briefs"
"""Where neither a dataset nor anything else to measure is named."""
DECODED = 4.0
"""What a generated token costs, in tokens that are read: the weights are gone over for few of them at a time."""
ROW_BYTES = 4096
"""About what a row and its answer take on disk."""


def evaluate(
    checkpoints: Sequence[str],
    dataset: str | None = None,
    *,
    baseline: str | None = None,
    standard: Sequence[str] = (),
    speed: bool = False,
    settings: EvaluationSettings | None = None,
    output: Path | None = None,
    progress: Progress = silent,
    tell: Tell | None = None,
    **data: Any,
) -> Evaluation:
    """Measures `checkpoints` beside the `baseline` (default: what they were cut from) and saves the record.

    On held-out rows of `dataset`: perplexity, KL, and the score of its kind of task. `standard` are tasks of
    lm-evaluation-harness by name, or YAML files of one's own. `speed` times all models in turn. Without any of these
    the dataset is `bundled:briefs`. `data` is what `tasks.load_task` takes besides the source.

    Raises InputError for anything given that cannot be used, before a model runs.
    """
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    settings = settings or EvaluationSettings()
    if not checkpoints:
        raise InputError("checkpoints: at least 1 is needed: name a folder, or any model.")
    if dataset is None and not (standard or speed):
        dataset = DATASET
    original = baseline or held_out.original_of(checkpoints)
    harness = (
        LmEvalTasks(standard, rows=settings.task_rows, shots=settings.shots, seed=settings.seed) if standard else None
    )
    task = held_out.open_task(dataset, **data) if dataset else None
    output = output or workspace.fresh_path("evaluation", Path(checkpoints[0]).name)
    workspace.check_output(output)
    names = held_out.labels(list(dict.fromkeys((original, *checkpoints))))
    loaded = {
        name: load_model(source, device=settings.device, dtype=settings.dtype, progress=progress)
        for name, source in names.items()
    }
    first = next(iter(loaded))
    drawn = draw(task, loaded, checkpoints, settings, progress) if task is not None else None
    if speed:
        check_speed_settings(loaded, settings.pace)
    if tell is not None:
        tell(workload(loaded, drawn, settings))
    parts, notes, truncated = [], [], {}
    if drawn is not None:
        with open_cache() as cache:
            reader = Reader(loaded, drawn, settings, cache, progress)
            parts += reader.parts()
            notes, truncated = reader.notes, reader.truncated
    ran: dict[str, TaskFacts] = {}
    if harness is not None:
        found, ran = standard_parts(harness, loaded, settings.batch_size, progress)
        parts += found
    paces = measure_speed(loaded, settings.pace, progress) if speed else {}
    taken = footprints(loaded, settings.pace, settings.device, settings.dtype, progress) if speed else {}
    facts = EvaluationFacts(
        dataset=dataset_facts(drawn.task, drawn.encoded) if drawn else None,
        held_out=drawn.why if drawn else "no rows of a dataset were used",
        settings=settings,
        max_new_tokens=drawn.max_new_tokens if drawn else None,
        measures=facts_of(parts),
        tasks=ran,
        models=tuple(
            ModelScores(
                name=name,
                model=one.facts,
                scores=scores_of(parts, name, first, settings.seed),
                truncated_answers=truncated.get(name),
                pace=tuple(paces.get(name, ())),
                footprint=taken.get(name),
            )
            for name, one in loaded.items()
        ),
        versions=versions() | ({"lm_eval": harness_version()} if harness else {}),
        device=device_name(loaded[first]),
        started=started,
        seconds=time.monotonic() - began,
        notes=tuple(dict.fromkeys(notes)),
    )
    return save_evaluation(Evaluation(facts, table(parts, drawn.examples if drawn else ())), output)


checked_settings = EvaluationSettings.checked
"""Settings from what a person gave. Raises InputError naming the first value that cannot be."""


def standard_parts(
    harness: LmEvalTasks, loaded: Mapping[str, Loaded], batch_size: int, progress: Progress = silent
) -> tuple[list[ScoreColumns], dict[str, TaskFacts]]:
    """The scores of every model on every standard task, and how each task was run."""
    by_model = {name: harness.run(one, batch_size, progress) for name, one in loaded.items()}
    parts, facts = [], {}
    for together in zip(*by_model.values(), strict=True):
        task = together[0]
        facts[task.task] = TaskFacts(version=task.version, shots=task.shots, rows=task.rows)
        for measure in task.measures:
            columns = {name: scores.columns[measure.name] for name, scores in zip(loaded, together, strict=True)}
            parts.append(ScoreColumns(task.task, (measure,), range(task.rows), columns))
    return parts, facts


def workload(loaded: Mapping[str, Loaded], drawn: Drawn | None, settings: EvaluationSettings) -> Workload:
    """What the models and the dataset's own rows take. Standard tasks and timing come on top."""
    rows, count = (len(drawn.examples), drawn.encoded.tokens) if drawn else (0, 0)
    answered = rows * (drawn.max_new_tokens or 0) if drawn else 0
    longest = max(drawn.encoded.lengths) * settings.batch_size if drawn else 0
    seconds, memory = 0.0, 0
    for one in loaded.values():
        seconds += seconds_of(one.facts, 2 * count + DECODED * answered, one.model.device, one.model.dtype)
        memory += one.facts.parameters * one.model.dtype.itemsize
    original = next(iter(loaded.values())).model
    memory += 4 * longest * original.config.vocab_size * 4
    disk = rows * len(loaded) * ROW_BYTES
    return Workload(rows, count, count * 2 * len(loaded), seconds, memory, disk, memory_there(original.device))
