"""Report sections of the stages up to a checkpoint: the recipe, the maps of the heads, the plan, the recovery."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from slim.calibration import charts, check_charts, scores
from slim.calibration.criteria import CRITERIA
from slim.calibration.facts import CalibrationFacts
from slim.calibration.head_scores import head_scores
from slim.calibration.record import Calibration
from slim.core.document import Block, Chart, Code, Heading, Paragraph, Section, Table
from slim.core.naming import data_words, endpoint_words, named, settings_words, versions_words, without_folders
from slim.core.records import DatasetFacts, ModelFacts
from slim.evaluation.record import EvaluationFacts
from slim.models.columns import removed_heads
from slim.planning.record import Plan
from slim.pruning.card_sections import (
    heading,
    layer_table,
    loss_blocks,
    removed_words,
    size_table,
    step_notes,
    steps_blocks,
)
from slim.pruning.history import Recovery, RecoveryStep
from slim.recovery.charts import NAMES, changes, curve
from slim.runs.report.gather import Gathered, Subject

STAGES = ("rows", "settings", "made with", "ran")
CURVE_POINTS = 2
"""Least points of a curve that is drawn."""
BLOCKS = ("kl_output", "block_influence")


def recipe_section(gathered: Gathered) -> Section:
    """The model, rows, settings and versions of every stage."""
    models = {facts.fingerprint: facts for facts in _originals(gathered)}
    blocks: list[Block] = []
    for facts in models.values():
        blocks += [Heading("Original"), Table(("", ""), _model_lines(facts))]
    for name, *told in _stage_lines(gathered):
        lines = [(about, said) for about, said in zip(STAGES, told, strict=True) if said]
        blocks += [Heading(name), Table(("", ""), lines)]
    for _, held in gathered.judgements:
        if held.judge.rubric:
            blocks += [Heading(f"Criteria of {named(held.judge.name)}"), Code(held.judge.rubric, "text")]
    blocks += [Paragraph(f"{note[:1].upper()}{note[1:]}.", "warning") for note in gathered.notes]
    return Section("Recipe", "recipe", blocks)


def _originals(gathered: Gathered) -> Iterator[ModelFacts]:
    yield from (measured.facts.model for measured in gathered.calibrations)
    yield from (subject.plan.model for subject in gathered.subjects if subject.plan is not None)
    yield from (held.facts.original.model for _, held in gathered.evaluations)


def _model_lines(facts: ModelFacts) -> list[tuple[str, str]]:
    keys = "" if facts.kv_heads == facts.heads else f", {facts.kv_heads} KV heads"
    return [
        ("name", named(facts.source)),
        ("family", facts.model_type),
        ("shape", f"{facts.layers} layers × {facts.heads} heads{keys}, {facts.head_dim} numbers a head"),
        ("parameters", f"{facts.parameters:,}, stored as {facts.numbers}"),
        ("fingerprint", facts.fingerprint),
        *([("answers end at", facts.ends)] if facts.stops else []),
    ]


def _stage_lines(gathered: Gathered) -> Iterator[tuple[str, ...]]:
    """A line for each stage that ran: its name, rows, settings, versions, device, start and duration."""
    for measured in gathered.calibrations:
        yield _line("Calibration", measured.facts.dataset, measured.facts.settings.model_dump(), measured.facts)
    for subject in gathered.subjects:
        for step in subject.recovery.steps:
            told = {name: value for name, value in step.settings.items() if name != "original"}
            yield _line(f"{NAMES[step.method]} of {subject.name}", step.dataset, told, step)
    for name, held in gathered.evaluations:
        told = held.facts.settings.model_dump(exclude={"pace"})
        yield _line(f"Evaluation {name}", held.facts.dataset, told, held.facts)
    for name, held in gathered.judgements:
        where = f" at {endpoint_words(held.judge.endpoint)}" if held.judge.endpoint else ""
        yield (
            f"Judgement {name} by {named(held.judge.name)}{where}",
            f"{held.num_samples:,} of {named(held.dataset)}{f', split {held.split}' if held.split else ''}",
            settings_words(held.answers.model_dump() | {"seed": held.seed}),
            versions_words(held.versions),
            f"{held.started}, {_took(held.seconds)}",
        )


def _line(
    name: str,
    data: DatasetFacts | None,
    settings: Mapping[str, Any],
    facts: CalibrationFacts | RecoveryStep | EvaluationFacts,
) -> tuple[str, ...]:
    rows = f"{data.rows:,} of {data_words(data)}; {data.tokens:,} tokens" if data else ""
    ran = f"{facts.started}, {_took(facts.seconds)} on {facts.device}"
    return name, rows, settings_words(settings), versions_words(facts.versions), ran


def _took(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 90 else f"{seconds / 60:,.0f} min"


def maps_section(gathered: Gathered) -> Section:
    """Maps of every criterion over the heads as on the page Explore, and bars of the blocks."""
    blocks: list[Block] = []
    for measured in gathered.calibrations:
        facts = measured.facts
        name = measured.path.name if measured.path else "calibration"
        blocks += heading(name, len(gathered.calibrations) > 1)
        blocks.append(
            Paragraph(
                f"{facts.model.layers} layers × {facts.model.heads} heads, measured on {facts.dataset.rows:,} rows "
                f"({facts.dataset.tokens:,} tokens) of {data_words(facts.dataset)}."
            )
        )
        blocks += [Paragraph(f"Note: {without_folders(note)}.", "quiet") for note in facts.notes]
        blocks.append(_ranges(measured))
        blocks += _maps(measured)
        if measured.check is not None:
            blocks += _checked(measured)
    return Section("Importance of every head", "heads", blocks)


def _ranges(measured: Calibration) -> Table:
    """The lowest, median and highest value of each criterion."""
    lines = []
    for name, values in measured.level("head").items():
        facts = measured.facts.metrics[name]
        low, middle, high = (f"{edge:.4g}" for edge in (values.min(), np.median(values), values.max()))
        read = "highest" if facts.high_is_prunable else "lowest"
        lines.append((CRITERIA[name].title, facts.unit, low, middle, high, read, facts.method))
    return Table(("per head", "unit", "lowest", "median", "highest", "pruned first", "method"), lines)


def _maps(measured: Calibration) -> Iterator[Chart]:
    for found in head_scores(measured, scores.default_weights(measured)).values():
        if found.name == "damage":
            continue
        draw = partial(charts.heatmap, found.values, found.title, found.unit, log=found.log)
        yield Chart(
            f"{found.title} of every head, in {found.unit}; layers to the right, heads downwards", draw, half=True
        )
    for name in BLOCKS:
        if name in measured.estimates:
            estimate = measured.estimates[name]["block"]
            title = "Loss without the block, measured" if name == "kl_output" else CRITERIA[name].title
            draw = partial(charts.block_bars, estimate.value, title, CRITERIA[name].unit, sure=estimate)
            yield Chart(f"{title}, of every layer's attention block, in {CRITERIA[name].unit}", draw, half=True)


def _checked(measured: Calibration) -> list[Block]:
    """The criterion check: which criterion predicts the measured damage."""
    check = measured.check
    if check is None:
        return []
    titles = {name: criterion.title for name, criterion in CRITERIA.items()}
    shares = [f"−{removal.share:.0%}" for removal in check.verdicts[0].removals]
    lines = []
    for verdict in check.verdicts:
        sure = "unknown" if verdict.correlation is None else f"{verdict.correlation:+.2f}"
        if verdict.low is not None and verdict.high is not None:
            sure += f" [{verdict.low:+.2f}, {verdict.high:+.2f}]"
        told = [f"{removal.perplexity:,.1f}" for removal in verdict.removals]
        lines.append((titles.get(verdict.criterion, verdict.criterion), sure.replace("-", "−"), *told))
    seen = "took no part in the calibration" if check.unseen else "took part in the calibration"
    return [
        Heading("Which criterion predicts the damage?"),
        Paragraph(
            f"{len(check.heads)} heads were ablated one at a time, and each criterion's first heads together, on "
            f"{check.rows} rows that {seen}. Perplexity with all heads: {check.perplexity:,.1f}."
        ),
        Table(("criterion", "rank correlation", *shares), lines),
        Chart(
            "Rank correlation of each criterion with the measured damage",
            partial(check_charts.correlations, check, titles),
        ),
    ]


def plan_section(gathered: Gathered) -> Section:
    """The removals layer by layer, with the forecast and the measured loss."""
    planned = [subject for subject in gathered.subjects if subject.plan is not None]
    blocks: list[Block] = []
    for subject in planned:
        plan = subject.plan
        if plan is None:
            continue
        blocks += heading(subject.name, len(planned) > 1)
        blocks += [Paragraph(removed_words(plan, bool(subject.fingerprint))), size_table(plan), *loss_blocks(plan)]
        if plan.changes:
            kept = sum(change.change == "kept" for change in plan.changes)
            blocks.append(
                Paragraph(
                    f"Valid shapes keep {kept} more heads and remove {len(plan.changes) - kept} more "
                    "than was asked for."
                )
            )
        measured = [*_measured_lines(gathered, subject)]
        if measured:
            blocks.append(Table(("loss increase, KL to the original", "nats/token", "on"), measured))
        if plan.removed_heads or plan.removed_layers:
            blocks += [_map(subject, plan), layer_table(plan), Paragraph("Layers not named stay whole.", "quiet")]
    return Section("The plan", "plan", blocks)


def _measured_lines(gathered: Gathered, subject: Subject) -> Iterator[tuple[str, str, str]]:
    """Lines of the forecasts and the measurements, each with its rows."""
    plan, steps = subject.plan, subject.recovery.steps
    if plan is not None:
        for name, found in (("forecast", plan.forecast), ("forecast after repair", plan.repaired)):
            if found is not None:
                yield (
                    name,
                    str(found).replace(" nats/token", ""),
                    f"{found.sequences} rows of the held-out fold",
                )
    for number, step in enumerate(steps, 1):
        rows = f"{step.after.rows} rows of {data_words(step.dataset)} that took no part"
        if number == 1:
            yield "measured, before any recovery", f"{step.before.kl:.4f}", rows
        if step.applied:
            yield f"measured, after {NAMES[step.method].lower()}", f"{step.after.kl:.4f}", rows
    for name, held in gathered.evaluations:
        place, about = subject.scores(held.facts), held.facts.measures.get("kl")
        score = held.facts.models[place].scores.get("kl") if place is not None else None
        if score is not None and about is not None and held.facts.dataset is not None:
            rows = f"{about.rows} held-out rows of {data_words(held.facts.dataset)}"
            yield f"measured, evaluation {name}", score.figure.words(about.digits), rows


def _map(subject: Subject, plan: Plan) -> Chart:
    """A map of the heads, the removed ones crossed out."""
    removed = removed_heads(plan.keep, plan.model.heads)
    says = f"Map of layers × heads in which the {int(removed.sum())} removed heads are crossed out"
    if subject.calibration is None:
        stays = (~removed).astype(np.float64)
        return Chart(says, partial(charts.heatmap, stays, "Crossed out: removed", "1 = kept", removed=removed))
    found = scores.composite(subject.calibration, scores.default_weights(subject.calibration), "head")
    title = "Composite score, crossed out: removed"
    return Chart(says, partial(charts.heatmap, found, title, "1 = first to go", removed=removed))


def recovered_section(gathered: Gathered) -> Section:
    """The effect of each step, and the curves of the trainings."""
    recovered = [subject for subject in gathered.subjects if subject.recovery.steps]
    blocks: list[Block] = []
    for subject in recovered:
        blocks += heading(subject.name, len(recovered) > 1)
        blocks += _steps(subject.recovery)
    return Section("Recovery", "recovery", blocks)


def _steps(recovery: Recovery) -> list[Block]:
    blocks = steps_blocks(recovery.steps)
    blocks.append(
        Chart(
            "KL to the original and perplexity, from the model before each step to the one after it",
            partial(changes, recovery.steps),
        )
    )
    for number, step in enumerate(recovery.steps, 1):
        name = f"{number}. {NAMES[step.method]}"
        words = "; ".join(step_notes(step))
        blocks.append(Paragraph(f"{name}: {words}.", "quiet"))
        if not step.applied:
            blocks.append(Paragraph(f"{name} was not applied: {step.unchanged}.", "warning"))
        if len(step.curve) >= CURVE_POINTS:
            blocks.append(
                Chart(
                    f"Loss and KL to the original over the steps of {NAMES[step.method].lower()}",
                    partial(curve, step.curve),
                )
            )
    return blocks
