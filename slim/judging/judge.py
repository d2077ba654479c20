"""Judging: both models answer rows of a task, and each pair of answers gets a verdict with its judge and reason."""

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from slim.core import workspace
from slim.core.environment import versions
from slim.core.errors import InputError
from slim.core.migrations import read_record
from slim.core.records import Saved, why_invalid
from slim.core.reporter import SILENT, Reporter
from slim.core.run_index import remember
from slim.data import tasks
from slim.data.omissions import merged, omitted
from slim.evaluation.settings import AnswerSettings
from slim.judging.cost import estimate
from slim.judging.figures import figures, overall, remarks
from slim.judging.local_server import find_local_judge
from slim.judging.pairs import answered
from slim.judging.prompt import RUBRIC
from slim.judging.record import Generated, Judgment, Summary
from slim.judging.reference import referee
from slim.judging.request import JudgeRequest
from slim.pruning import held_out


def judge(request: JudgeRequest, reporter: Reporter = SILENT) -> Saved[Judgment]:
    """Return the saved verdicts of a judge on the answers of two models to rows of a task.

    The judge is a model at an endpoint or a local one, which is served here for the run: each pair is judged in both
    orders. Without either the answers are compared with the dataset's own. Answers and verdicts of earlier runs are
    reused from caches. The rows are held out from the pruned model's calibration.

    Raises InputError for unusable input, the key included, and SlimError where the endpoint does not answer.
    """
    from slim.judging.both_orders import by_endpoint, by_reference
    from slim.judging.connection import prepare

    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    settings = request.part(AnswerSettings)
    pruned = os.fspath(request.pruned)
    original = os.fspath(request.original or held_out.original_of([pruned], "original"))
    rubric = RUBRIC if request.rubric is None else request.rubric.strip()
    if request.output is not None:
        _check_output(request.output)
    task = held_out.open_task(request.data)
    settings = settings.for_kind(task.kind)
    examples, why = held_out.draw(task, request.samples, settings.seed, [pruned, original], reporter)
    if not any(example.prompt or example.turns for example in examples):
        raise InputError(f"dataset={task.source!r}: rows of plain text hold no question to answer; choose another.")
    notes = [f"rows: {why}"]
    if len(examples) < request.samples:
        notes.append(f"there are {len(examples):,} such rows, not {request.samples:,}: all of them were used")

    reporter.rows(tasks.reading_of(task))
    asked = trouble = local = None
    by_data = referee(task.kind, [example.answer for example in task.examples], request.measure)
    if request.endpoint is not None:
        asked, trouble = prepare(request.endpoint, request.judge_model, request.asking)
    elif request.local_judge is not None:
        local = find_local_judge(os.fspath(request.local_judge), reporter)
        asked = local.endpoint(request.asking)
    if asked is not None:
        estimated = estimate(examples, settings, asked, rubric, request.prices)
        reporter.estimate(f"{len(examples):,} pairs, {estimated.sentence()}")
    else:
        reporter.estimate(f"{len(examples):,} pairs, no calls: compared with the dataset's own answers.")

    both = answered((original, pruned), examples, settings, request.device, request.dtype, reporter, trouble)
    unread = omitted(merged(task.tally.omissions, both.omissions))
    reporter.rows(omitted(both.omissions))
    notes += [*both.notes, *unread]
    pairs = both.pairs
    if asked is not None:
        compared, facts = by_endpoint(pairs, asked, rubric, reporter, trouble, local, request.device)
    else:
        compared, facts = by_reference(pairs, by_data)
    found = figures(compared, facts.both_orders, settings.seed)
    judgement = Judgment(
        original_model=original,
        pruned_model=pruned,
        dataset=task.source,
        num_samples=len(pairs),
        comparisons=tuple(compared),
        summary=Summary.of(compared),
        overall_winner=overall(found, request.min_coverage),
        figures=found,
        judge=facts,
        config=task.config,
        split=task.split,
        revision=task.revision,
        seed=settings.seed,
        min_coverage=request.min_coverage,
        answers=settings,
        generated={
            "original_model": Generated.of([pair.original for pair in pairs]),
            "pruned_model": Generated.of([pair.pruned for pair in pairs]),
        },
        fingerprints=both.fingerprints,
        versions=versions(),
        started=started,
        seconds=time.monotonic() - began,
        notes=(*notes, *remarks(found)),
    )
    path = (
        request.output or workspace.fresh_path("judgement", f"{Path(pruned).name}-{Path(task.source).stem}")
    ).absolute()
    workspace.write_file(path, judgement.model_dump_json(indent=2))
    remember(path, "judgement")
    return Saved(judgement, path)


def load_judgment(path: Path) -> Judgment:
    """The judgement in a file. Raises InputError where it cannot be read."""
    try:
        return read_record(Judgment, path, f"judgement {str(path)!r}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"judgement={str(path)!r}: it cannot be read ({why_invalid(error)}); make it again with `slim judge`."
        ) from error


def _check_output(output: Path) -> None:
    """Raise InputError where the file exists and is not a judgement, which a repeated run may replace."""
    try:
        held = json.loads(output.read_bytes()) if output.is_file() else None
    except (OSError, ValueError):
        held = None
    if isinstance(held, dict) and {"comparisons", "summary", "overall_winner"} <= held.keys():
        return
    workspace.check_file(output)
