"""The evaluation stage: checkpoints beside the original, on held-out rows, saved as one record."""

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from slim.core import workspace
from slim.core.cache import open_cache
from slim.core.environment import versions
from slim.core.reporter import SILENT, Reporter
from slim.core.resources import Workload, memory_there, seconds_of
from slim.data.request import DataSource
from slim.data.tasks import dataset_facts
from slim.evaluation.answers import DECODED
from slim.evaluation.dataset_rows import Drawn, Reader, draw
from slim.evaluation.lm_eval_tasks import LmEvalTasks
from slim.evaluation.lm_eval_tasks import version as harness_version
from slim.evaluation.record import (
    Evaluation,
    EvaluationFacts,
    ModelScores,
    TaskFacts,
    save_evaluation,
)
from slim.evaluation.request import EvaluateRequest
from slim.evaluation.row_table import ScoreColumns, facts_of, scores_of, table
from slim.evaluation.settings import REPETITION_PENALTIES, EvaluationSettings
from slim.evaluation.speed import check_speed_settings, footprints, measure_speed
from slim.models.load import Loaded, device_name, load_model
from slim.models.stops import end_notes
from slim.pruning import held_out

DATASET = "bundled:briefs"
"""Dataset where neither one nor anything else to measure is named."""
ROW_BYTES = 4096
"""Approximate bytes on disk of a row and its answer."""


def evaluate(request: EvaluateRequest, reporter: Reporter = SILENT) -> Evaluation:
    """Measure checkpoints beside the original, and save the record.

    Held-out rows give perplexity, KL, and the score of their kind of task. Standard tasks are those of
    lm-evaluation-harness by name, or YAML files. Without a dataset, tasks and speed the dataset is `bundled:briefs`.

    Raises InputError for anything that cannot be used, before a model runs.
    """
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    settings, data = request.part(EvaluationSettings), request.data
    checkpoints = [os.fspath(one) for one in request.checkpoints]
    standard = [os.fspath(one) for one in request.tasks]
    if data is None and not (standard or request.speed):
        data = DataSource(source=DATASET, **request.row_options)
    original = os.fspath(request.baseline or held_out.original_of(checkpoints))
    harness = (
        LmEvalTasks(standard, rows=settings.task_rows, shots=settings.shots, seed=settings.seed) if standard else None
    )
    task = held_out.open_task(data) if data else None
    output = request.output or workspace.fresh_path("evaluation", Path(checkpoints[0]).name)
    workspace.check_output(output)
    names = held_out.labels(list(dict.fromkeys((original, *checkpoints))))
    loaded = {
        name: load_model(source, device=settings.device, dtype=settings.dtype, reporter=reporter)
        for name, source in names.items()
    }
    first = next(iter(loaded))
    drawn = draw(task, loaded, checkpoints, settings, reporter) if task is not None else None
    if request.speed:
        check_speed_settings(loaded, settings.pace)
    reporter.estimate(workload(loaded, drawn, settings).sentence())
    parts, notes, truncated = [], [], {}
    if drawn is not None:
        with open_cache() as cache:
            reader = Reader(loaded, drawn, settings, cache, reporter)
            parts += reader.parts()
            notes, truncated = reader.notes, reader.truncated
    ran: dict[str, TaskFacts] = {}
    if harness is not None:
        found, ran = standard_parts(harness, loaded, settings.batch_size, reporter)
        parts += found
    paces = measure_speed(loaded, settings.pace, reporter) if request.speed else {}
    taken = footprints(loaded, settings.pace, settings.device, settings.dtype, reporter) if request.speed else {}
    endless = [f"{name}: {note}" for name, one in loaded.items() for note in end_notes(one.stops)]
    facts = EvaluationFacts(
        dataset=dataset_facts(drawn.task, drawn.encoded) if drawn else None,
        held_out=drawn.why if drawn else "no rows of a dataset were used",
        settings=settings,
        max_new_tokens=drawn.max_new_tokens if drawn else None,
        repetition_penalty=REPETITION_PENALTIES.get(drawn.task.kind) if drawn else None,
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
        notes=tuple(dict.fromkeys([*notes, *endless])),
    )
    return save_evaluation(Evaluation(facts, table(parts, drawn.examples if drawn else ())), output)


def standard_parts(
    harness: LmEvalTasks, loaded: Mapping[str, Loaded], batch_size: int, reporter: Reporter = SILENT
) -> tuple[list[ScoreColumns], dict[str, TaskFacts]]:
    """Return the scores of every model on every standard task, and how each task was run."""
    by_model = {name: harness.run(one, batch_size, reporter) for name, one in loaded.items()}
    parts, facts = [], {}
    for together in zip(*by_model.values(), strict=True):
        task = together[0]
        facts[task.task] = TaskFacts(version=task.version, shots=task.shots, rows=task.rows)
        for measure in task.measures:
            columns = {name: scores.columns[measure.name] for name, scores in zip(loaded, together, strict=True)}
            parts.append(ScoreColumns(task.task, (measure,), range(task.rows), columns))
    return parts, facts


def workload(loaded: Mapping[str, Loaded], drawn: Drawn | None, settings: EvaluationSettings) -> Workload:
    """Return the work of the models on the dataset rows, without standard tasks and timing."""
    rows, count, ranks = (len(drawn.examples), drawn.encoded.tokens, drawn.ranked_tokens) if drawn else (0, 0, 0)
    answered = rows * (drawn.max_new_tokens or 0) if drawn else 0
    longest = max(drawn.encoded.lengths) * settings.batch_size if drawn else 0
    seconds, memory = 0.0, 0
    for one in loaded.values():
        seconds += seconds_of(one.facts, 2 * count + ranks + DECODED * answered, one.model.device, one.model.dtype)
        memory += one.facts.parameters * one.model.dtype.itemsize
    original = next(iter(loaded.values())).model
    memory += 4 * longest * original.config.vocab_size * 4
    disk = rows * len(loaded) * ROW_BYTES
    return Workload(rows, count, count * 2 * len(loaded), seconds, memory, disk, memory_there(original.device))
