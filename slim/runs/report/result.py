"""The result in a few sentences: the reduction in size, and the loss by the best evidence that there is."""

from collections.abc import Iterator

from slim.core.document import Points, Section
from slim.core.naming import data_words, named
from slim.evaluation.comparison import ComparedMetric, compare_models
from slim.planning.record import Plan
from slim.runs.report.gather import Gathered, Subject

TOLD = {
    "better": "better",
    "worse": "worse",
    "same": "the same",
    "apart": "",
    "open": "no sure difference",
    "unknown": "one row, so no interval",
}
QUALITY = 4
"""Quality metrics in the sentence; the table has all."""


def results(gathered: Gathered) -> list[str]:
    """A line for each model of the report, or for each measurement where nothing was pruned."""
    if not gathered.subjects:
        alone = [
            f"{held.facts.original.name} was measured alone; nothing is compared with it."
            for _, held in gathered.evaluations
        ]
        return alone + [
            f"{named(one.facts.model.source)} was measured on {one.facts.dataset.rows:,} rows of "
            f"{data_words(one.facts.dataset)}; nothing has been removed."
            for one in gathered.calibrations
        ]
    return [" ".join(_sentences(gathered, subject)) for subject in gathered.subjects]


def _sentences(gathered: Gathered, subject: Subject) -> Iterator[str]:
    if subject.plan is not None:
        yield f"{subject.name}: {_smaller(subject.plan, bool(subject.fingerprint))}"
    else:
        yield f"{subject.name}:"
    cost = [*_evaluated(gathered, subject)] or [*_recovered(subject)] or [*_forecast(subject)]
    yield from cost or ["Its loss was not measured."]
    for _, held in gathered.judgements:
        if subject.was_judged(held) and held.figures.win_rate is not None:
            rate = held.figures.win_rate
            ends = "" if rate.low is None or rate.high is None else f" [{rate.low:.1%}, {rate.high:.1%}]"
            yield (
                f"Its win rate over the original is {rate.value:.1%}{ends} in {held.num_samples:,} pairs judged by "
                f"{named(held.judge.name)} (50% is even)."
            )


def _smaller(plan: Plan, done: bool) -> str:
    """The reduction in parameters, as a sentence."""
    before, after = plan.before.parameters, plan.after.parameters
    if before == after:
        return "nothing was removed." if done else "nothing will be removed."
    has = "has" if done else "will have"
    return (
        f"{has} {1 - after / before:.1%} fewer parameters than {named(plan.model.source)} "
        f"({_count(before)} → {_count(after)})."
    )


def _count(parameters: int) -> str:
    return f"{parameters:,}" if parameters < 1e6 else f"{parameters / 1e6:,.1f} M"


def _evaluated(gathered: Gathered, subject: Subject) -> Iterator[str]:
    """Quality and, where it was timed, speed, from the newest evaluation that has them."""
    for _, held in gathered.evaluations:
        place = subject.scores(held.facts)
        if place is None:
            continue
        found = compare_models(held.facts)
        quality = [one for one in found if one.group == "quality" and one.changes[place] is not None]
        pace = next((one for one in found if one.name.startswith("decode-") and one.changes[place] is not None), None)
        if quality:
            about = next(iter(held.facts.measures.values()))
            told = "; ".join(_change(one, place) for one in quality[:QUALITY])
            yield f"Beside the original on {about.rows:,} held-out rows: {told}."
        if pace is not None:
            yield f"Measured {pace.title}: {pace.change_in_words(place)} tokens/s."
        if quality or pace is not None:
            return


def _change(quantity: ComparedMetric, place: int) -> str:
    said = TOLD[quantity.standing(place) or "unknown"]
    return f"{quantity.title} {quantity.change_in_words(place)}{f' ({said})' if said else ''}"


def _recovered(subject: Subject) -> Iterator[str]:
    if subject.recovery.steps:
        last = subject.recovery.steps[-1].after
        yield (
            f"On {last.rows:,} rows that took no part: KL to the original {last.kl:.3f} nats/token, perplexity "
            f"{last.ratio:.2f}× the original's; no evaluation of it is here."
        )


def _forecast(subject: Subject) -> Iterator[str]:
    plan = subject.plan
    expected = plan and (plan.repaired or plan.forecast)
    if expected:
        once = "after repair " if plan and plan.repaired else ""
        yield f"Its loss was not measured; the forecast {once}is {expected}."


def meaning_section(gathered: Gathered) -> Section:
    """The meaning of the report's figures, and their limits."""
    cut = [subject for subject in gathered.subjects if subject.plan is not None]
    measured, judged = bool(gathered.evaluations), bool(gathered.judgements)
    recovered = any(subject.recovery.steps for subject in gathered.subjects)
    known: list[tuple[str, str]] = []
    if cut or measured or recovered or gathered.calibrations:
        known.append(
            (
                "KL to the original",
                "how far the predictions of the next token are from the original's, in nats per predicted token; 0 is "
                "the same model. It is above 0 as soon as anything differs and does not say whether answers are worse.",
            )
        )
    if measured or recovered:
        known.append(
            (
                "Perplexity",
                "of the rows' own tokens, lower is better. Models with other tokenizers are not comparable by it.",
            )
        )
    if any(subject.plan and subject.plan.forecast for subject in cut):
        known.append(
            (
                "Forecast",
                "the KL that the loss sketch expects, on the held-out fold. It is of second order: good for small "
                "removals, too low for large ones unless it was corrected by measured removals.",
            )
        )
    if gathered.calibrations:
        known.append(
            (
                "Figures of heads",
                "hold for these rows. That a head costs little here does not say that it costs little elsewhere, and "
                "heads that cost little alone may cost much together.",
            )
        )
    if cut:
        known.append(
            (
                "“At most” faster",
                "the bound from arithmetic (prefill) or memory traffic (decoding) alone. The true speed is measured by "
                "an evaluation with speed, and holds for that machine.",
            )
        )
    if measured or judged:
        known.append(
            (
                "Intervals",
                "95% of resampled rows, the same rows of both models. They cover the choice of rows of this kind, not "
                "another task or another seed of a training.",
            )
        )
    if judged:
        known.append(
            (
                "Win rate",
                "(wins + ½ ties) of the pruned model over judged pairs. Judges are biased, for instance to longer "
                "answers; “at equal length” is the prediction of a model of the verdicts for equal lengths.",
            )
        )
    return Section("Meaning of the figures, and their limits", "meaning", [Points(known)])
