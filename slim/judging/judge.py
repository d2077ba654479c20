"""The judge: both models answer rows of a task, and each pair of answers gets a verdict, by whom and why."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slim.core import workspace
from slim.core.environment import versions
from slim.core.errors import InputError
from slim.core.migrations import read_record
from slim.core.progress import Progress, silent
from slim.core.records import why_invalid
from slim.core.run_index import remember
from slim.evaluation.answers import AnswerSettings
from slim.judging.both_orders import by_endpoint, by_reference
from slim.judging.cost import estimate
from slim.judging.endpoint import prepare
from slim.judging.figures import figures, overall, remarks
from slim.judging.local_server import find_local_judge
from slim.judging.pairs import answered
from slim.judging.prompt import RUBRIC
from slim.judging.record import Generated, Judgment, Summary
from slim.judging.reference import ReferenceMeasure, referee
from slim.pruning import held_out

__all__ = ["AnswerSettings", "Judgment", "judge", "load_judgment"]

Tell = Callable[[str], None]


def judge(
    original: str,
    pruned: str,
    dataset: str = "bundled:briefs",
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    template: str | None = None,
    columns: dict[str, str] | None = None,
    prompt: str | None = None,
    samples: int = 50,
    settings: AnswerSettings | None = None,
    endpoint: str | None = None,
    judge_model: str | None = None,
    local_judge: str | None = None,
    asking: dict[str, Any] | None = None,
    rubric: str | None = None,
    measure: ReferenceMeasure = "auto",
    min_coverage: float = 0.8,
    prices: tuple[float, float] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    output: Path | None = None,
    progress: Progress = silent,
    tell: Tell = lambda sentence: None,
) -> tuple[Judgment, Path]:
    """Which of two models answers rows of a task better, and the file that says so.

    With an `endpoint` its model `judge_model` is asked in both orders, `asking` being further fields of `Endpoint`. A
    `local_judge` is a model that is served here for the run and asked alike. Without either the answers are compared
    with the dataset's own by `measure`. What was answered or judged in an earlier
    run is not asked again. The rows are those that the pruned model was not calibrated on. `prices` are of a million
    tokens read and written; `tell` hears what it will take before anything long starts.

    Raises InputError for what cannot be used, the key included, and SlimError where the endpoint is not there.
    """
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    settings = settings or AnswerSettings()
    rubric = _checked_rubric(rubric)
    if not 0 <= min_coverage <= 1:
        raise InputError(f"min_coverage={min_coverage:g}: it is a share of the pairs: choose 0 to 1.")
    _check_one_judge(endpoint, judge_model, local_judge)
    if output is not None:
        _check_output(output)
    task = held_out.open_task(
        dataset, config=config, split=split, revision=revision, template=template, columns=columns, prompt=prompt
    )
    examples, why = held_out.draw(task, samples, settings.seed, [pruned, original], progress)
    if not any(example.prompt or example.turns for example in examples):
        raise InputError(f"dataset {dataset!r}: rows of plain text ask nothing that could be answered: choose another.")
    notes = [f"rows: {why}"]
    if len(examples) < samples:
        notes.append(f"there are {len(examples):,} such rows, not {samples:,}: all of them were used")

    asked = trouble = local = None
    by_data = referee(task.kind, [example.answer for example in task.examples], measure)
    if endpoint is not None:
        asked, trouble = prepare(endpoint, judge_model, asking or {})
    elif local_judge is not None:
        local = find_local_judge(local_judge, progress)
        asked = local.endpoint(asking or {})
    if asked is not None:
        tell(f"{len(examples):,} pairs, {estimate(examples, settings, asked, rubric, prices).sentence()}")
    else:
        tell(f"{len(examples):,} pairs, no calls: the reference judge compares with the dataset's own answers.")

    both = answered((original, pruned), examples, settings, device, dtype, progress, trouble)
    notes += both.notes
    pairs = both.pairs
    if asked is not None:
        compared, facts = by_endpoint(pairs, asked, rubric, progress, trouble, local, device)
    else:
        compared, facts = by_reference(pairs, by_data)
    found = figures(compared, facts.both_orders, settings.seed)
    judgement = Judgment(
        original_model=original,
        pruned_model=pruned,
        dataset=dataset,
        num_samples=len(pairs),
        comparisons=tuple(compared),
        summary=Summary.of(compared),
        overall_winner=overall(found, min_coverage),
        figures=found,
        judge=facts,
        config=config,
        split=task.split,
        revision=task.revision,
        seed=settings.seed,
        min_coverage=min_coverage,
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
    path = (output or workspace.fresh_path("judgement", f"{Path(pruned).name}-{Path(dataset).stem}")).absolute()
    workspace.write_file(path, judgement.model_dump_json(indent=2))
    remember(path, "judgement")
    return judgement, path


def load_judgment(path: Path) -> Judgment:
    """A judgement from its file. Raises InputError for what is none."""
    try:
        return read_record(Judgment, path, f"judgement {str(path)!r}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"judgement {str(path)!r} cannot be read ({why_invalid(error)}): make it again with `slim judge`."
        ) from error


def _checked_rubric(rubric: str | None) -> str:
    if rubric is not None and not rubric.strip():
        raise InputError("rubric: it is empty: write what makes an answer good, or leave it out.")
    return RUBRIC if rubric is None else rubric.strip()


def _check_one_judge(endpoint: str | None, judge_model: str | None, local_judge: str | None) -> None:
    for name, given in (("endpoint", endpoint), ("judge_model", judge_model)):
        if local_judge is not None and given is not None:  # not shown: a URL may hold a key
            raise InputError(f"{name}, local_judge={local_judge!r}: one run has one judge: leave one of them out.")


def _check_output(output: Path) -> None:
    """A file that holds a judgement may be replaced by a newer one, so that a run can be repeated; no other may."""
    try:
        held = json.loads(output.read_bytes()) if output.is_file() else None
    except (OSError, ValueError):
        held = None
    if isinstance(held, dict) and {"comparisons", "summary", "overall_winner"} <= held.keys():
        return
    workspace.check_file(output)
