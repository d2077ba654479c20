"""Report sections of a checkpoint beside the original: the evaluation and the verdicts."""

from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd

from slim.core.document import Block, Chart, Paragraph, Section, Table
from slim.core.naming import data_words, endpoint_words, named, without_folders
from slim.evaluation.charts import change_bars, trade_off
from slim.evaluation.comparison import ComparedMetric, Group, compare_models
from slim.evaluation.record import EvaluationFacts
from slim.evaluation.tables import quality_table, size_table, speed_table
from slim.judging.record import Judgment
from slim.pruning.card_sections import heading
from slim.runs.report.gather import Gathered

GROUPS: dict[Group, str] = {"quality": "quality", "speed": "speed", "size": "size"}
WINNERS = {"original_model": "the original", "pruned_model": "the pruned model", "tie": "neither, a tie"}


def evaluation_section(gathered: Gathered) -> Section:
    """Every model beside the original, with intervals."""
    blocks: list[Block] = []
    for name, held in gathered.evaluations:
        blocks += heading(name, len(gathered.evaluations) > 1)
        blocks += _evaluation(held.facts)
    return Section("Evaluation", "evaluation", blocks)


def _evaluation(facts: EvaluationFacts) -> Iterator[Block]:
    found = compare_models(facts)
    names = [one.name for one in facts.models]
    sources = [one.model.source for one in facts.models] + ([facts.dataset.source] if facts.dataset else [])
    if facts.dataset is not None:
        yield Paragraph(
            f"{facts.dataset.rows:,} rows, {facts.dataset.tokens:,} tokens of {data_words(facts.dataset)}. "
            f"Held out: {without_folders(facts.held_out, sources)}."
        )
    for task, about in facts.tasks.items():
        yield Paragraph(
            f"{task}: {about.rows:,} rows, {about.shots} solved examples, version {about.version}.", "quiet"
        )
    for one in facts.models:
        if one.truncated_answers:
            yield Paragraph(f"{one.name}: {one.truncated_answers} answers stopped at {facts.max_new_tokens} tokens.")
    for note in facts.notes:
        yield Paragraph(f"Note: {without_folders(note, sources)}.", "warning")
    if facts.measures:
        yield _table(quality_table(facts, found))
    for place, pace in enumerate(facts.original.pace):
        yield Paragraph(f"Speed, {pace.rows} row{'s' if pace.rows > 1 else ''} at a time:")
        yield _table(speed_table(facts, place))
    yield _table(size_table(facts, found))
    yield from _charts(found, names)


def _table(frame: pd.DataFrame) -> Table:
    return Table(list(frame.columns), [[str(cell) for cell in line] for line in frame.itertuples(index=False)])


def _charts(found: Sequence[ComparedMetric], names: Sequence[str]) -> Iterator[Chart]:
    if len(names) == 1:
        return
    for group, title in GROUPS.items():
        mine = [one for one in found if one.group == group]
        if any(any(one.changes) for one in mine):
            says = f"Difference of every model to the original in {title}, with intervals"
            yield Chart(says, partial(change_bars, mine, names))
    size = next((one for one in found if one.name == "parameters"), None)
    good = next((one for one in found if one.group == "quality"), None)
    if size is not None and good is not None:
        yield Chart(f"{good.title} against {size.title}", partial(trade_off, size, good, names))


def verdicts_section(gathered: Gathered) -> Section:
    """The verdicts of each judgement, with intervals."""
    blocks: list[Block] = []
    for name, held in gathered.judgements:
        blocks += heading(name, len(gathered.judgements) > 1)
        blocks += _verdicts(held)
    return Section("Verdicts", "verdicts", blocks)


def _verdicts(held: Judgment) -> Iterator[Block]:
    who = {"endpoint": "an endpoint", "local": "a model on the same machine", "reference": "the dataset's own answers"}
    where = f" at {endpoint_words(held.judge.endpoint)}" if held.judge.endpoint else ""
    split = f", split {held.split}" if held.split else ""
    yield Paragraph(
        f"{named(held.original_model)} against {named(held.pruned_model)} on {held.num_samples:,} rows of "
        f"{named(held.dataset)}{split}, judged by {who[held.judge.kind]}: {named(held.judge.name)}{where}."
    )
    figures = held.figures
    if figures.coverage < held.min_coverage:
        yield Paragraph(
            f"No winner is named: {figures.coverage:.0%} of the pairs were judged, not {held.min_coverage:.0%}.",
            "warning",
        )
    elif held.overall_winner is None:
        yield Paragraph("No winner is named.", "warning")
    else:
        yield Paragraph(f"More wins: {WINNERS[held.overall_winner]}.")
    for note in held.notes:
        yield Paragraph(
            f"Note: {without_folders(note, (held.original_model, held.pruned_model, held.dataset))}.", "quiet"
        )
    summary = held.summary
    yield Table(
        ("", "pairs", "share"),
        [
            ("pruned model wins", f"{summary.pruned_model:,}", f"{summary.pruned_model_pct:.1f}%"),
            ("original wins", f"{summary.original_model:,}", f"{summary.original_model_pct:.1f}%"),
            ("tie", f"{summary.tie:,}", f"{summary.tie_pct:.1f}%"),
            ("no verdict", f"{summary.error:,}", f"{summary.error_pct:.1f}%"),
        ],
    )
    yield Table(("figure", "value"), [*_figure_lines(held)])


def _figure_lines(held: Judgment) -> Iterator[tuple[str, str]]:
    figures, made = held.figures, held.generated
    for title, rate in (
        ("win rate of the pruned model", figures.win_rate),
        ("the same at equal length", figures.length_controlled),
    ):
        if rate is not None:
            yield title, rate.words(3)
    if figures.flip_rate is not None:
        yield "verdicts that changed with the order", f"{figures.flips:,} ({figures.flip_rate:.1%}), counted as ties"
    yield "coverage", f"{figures.coverage:.1%} of {held.num_samples:,} pairs"
    one, other = figures.mean_length
    yield "mean answer, characters", f"{one:,.0f} by the original, {other:,.0f} by the pruned model"
    both = made["original_model"], made["pruned_model"]
    yield f"cut at {held.answers.max_new_tokens} tokens", f"{both[0].truncated:,} and {both[1].truncated:,}"
    yield "empty", f"{both[0].empty:,} and {both[1].empty:,}"
    for reason, count in figures.failures.items():
        yield "no verdict", f"{count:,} × {reason}"
