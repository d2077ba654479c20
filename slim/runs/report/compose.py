"""A run as a document: its stages in the order of the pipeline. Missing stages are left out."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from slim.core.document import Code, Document, Paragraph, Section
from slim.data.sources import is_hub_id
from slim.evaluation.record import EvaluationFacts
from slim.pruning.card_sections import load_section
from slim.pruning.model_card import CLOSING, front_matter
from slim.runs.report.commands import commands
from slim.runs.report.gather import Gathered, Subject, gather
from slim.runs.report.result import meaning_section, results
from slim.runs.report.samples import samples_section
from slim.runs.report.stages import maps_section, plan_section, recipe_section, recovered_section
from slim.runs.report.verdicts import evaluation_section, verdicts_section


def compose(run: Path) -> Document:
    """The report of a run. Raises InputError for anything but an undamaged run."""
    gathered = gather(run)
    subjects = gathered.subjects
    made = [subject for subject in subjects if subject.plan is not None and subject.fingerprint]
    sections = [recipe_section(gathered)]
    sections += [maps_section(gathered)] if gathered.calibrations else []
    sections += [plan_section(gathered)] if any(subject.plan for subject in subjects) else []
    sections += [recovered_section(gathered)] if any(subject.recovery.steps for subject in subjects) else []
    sections += [evaluation_section(gathered)] if gathered.evaluations else []
    sections += [verdicts_section(gathered)] if gathered.judgements else []
    shown = samples_section(gathered)
    sections += [shown] if shown is not None else []
    sections += [meaning_section(gathered)]
    if len(made) == 1 and made[0].plan is not None:
        sections.append(load_section(made[0].plan))
    sections.append(_again(gathered))
    return Document(
        title=gathered.name,
        results=results(gathered),
        sections=sections,
        front=_front(gathered),
        closing=CLOSING,
    )


def _again(gathered: Gathered) -> Section:
    words = (
        "Folders and files appear by name: run this where they are, with new names for outputs. Settings that are not "
        "shown have their defaults."
    )
    return Section("Do it again", "again", [Paragraph(words), Code(commands(gathered), "sh")])


def _front(gathered: Gathered) -> dict[str, Any]:
    """The metadata of a model card, where the report is of one model."""
    if len(gathered.subjects) != 1:
        return {}
    subject = gathered.subjects[0]
    if subject.plan is None:
        return {}
    front = front_matter(subject.plan.model.source)
    found = [one for _, held in gathered.evaluations for one in _eval_results(subject, held.facts)]
    return front | ({"model_name": subject.name, "eval_results": found} if found else {})


def _eval_results(subject: Subject, facts: EvaluationFacts) -> list[EvalResult]:
    """The figures on a dataset of the Hub; for any other, readers could not look up the rows."""
    place, data = subject.scores(facts), facts.dataset
    if place is None or data is None or Path(data.source).exists() or not is_hub_id(data.source):
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data.source,
            dataset_name=data.source,
            dataset_config=data.config,
            dataset_split=data.split,
            dataset_revision=data.revision,
            metric_type=name,
            metric_name=f"{facts.measures[name].title}, {facts.measures[name].rows} rows",
            metric_value=score.figure.value,
        )
        for name, score in facts.models[place].scores.items()
        if not facts.measures[name].task
    ]
