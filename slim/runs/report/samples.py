"""Answers of both models side by side in a report: a deterministic choice, with the reasons."""

from collections.abc import Mapping, Sequence
from typing import Any

from slim.core.document import Block, Heading, Pair, Paragraph, Section
from slim.evaluation.record import Evaluation
from slim.judging.pair_html import VERDICTS, said_of
from slim.judging.record import Comparison, Judgment
from slim.judging.review import scores_of
from slim.runs.report.gather import Gathered, Subject

WORST, OTHERS = 3, 1
"""Numbers of pairs that are shown: the worst for the pruned model, and of each other verdict."""
ANSWER = "answer"
"""The column of an evaluation's rows that holds a model's answer."""
Chosen = tuple[int, str, tuple[float, float] | None]
"""The index of a pair, the reason why it is shown, and both scores against the reference."""


def samples_section(gathered: Gathered) -> Section | None:
    """The worst answers and some others of each judgement, or of an evaluation without judgements."""
    parts: list[tuple[str, list[Block]]] = [(name, _judged(held)) for name, held in gathered.judgements]
    for subject in gathered.subjects:
        if not any(subject.was_judged(held) for _, held in gathered.judgements):
            told = ((name, _evaluated(held, subject)) for name, held in gathered.evaluations)
            parts += [(f"{name}, {subject.name}", blocks) for name, blocks in told if blocks][:1]
    blocks: list[Block] = []
    for name, mine in parts:
        blocks += [Heading(name), *mine] if len(parts) > 1 else mine
    return Section("Answers side by side", "answers", blocks) if blocks else None


def _judged(held: Judgment) -> list[Block]:
    shown = chosen(held)
    words = (
        f"{len(shown)} of {held.num_samples:,} pairs: up to {WORST} that the pruned model lost by most, one of each "
        "other verdict, and the first row."
    )
    pairs = held.comparisons
    return [
        Paragraph(words, "quiet"),
        *(_judged_pair(place, pairs[place], why, scores) for place, why, scores in shown),
    ]


def _judged_pair(place: int, one: Comparison, why: str, scores: tuple[float, float] | None) -> Pair:
    return Pair(
        place,
        one.question,
        (one.response1, one.response2),
        one.reference,
        one.truncated,
        why,
        VERDICTS[one.judgment].lower(),
        scores,
        said_of(one),
    )


def chosen(held: Judgment) -> list[Chosen]:
    """The pairs of a judgement that are shown.

    The worst are those that the original won, by how much closer it is to the reference; without one by their index.
    """
    pairs = held.comparisons
    found: dict[int, str] = dict.fromkeys(_worst(pairs), "one of the worst")
    for judgment in ("pruned_model", "tie", "error"):
        mine = [place for place, one in enumerate(pairs) if one.judgment == judgment]
        found |= dict.fromkeys(mine[:OTHERS], "the first of its kind")
    found.setdefault(0, "the first row")
    return [(place, why, scores_of(pairs[place])) for place, why in found.items()]


def _worst(pairs: Sequence[Comparison]) -> list[int]:
    lost = [place for place, one in enumerate(pairs) if one.judgment == "original_model"]

    def gap(place: int) -> float:
        scores = scores_of(pairs[place])
        return 0.0 if scores is None else scores[1] - scores[0]

    return sorted(lost, key=lambda place: (gap(place), place))[:WORST]


def _evaluated(held: Evaluation, subject: Subject) -> list[Block]:
    """The rows on which a subject's score fell most, where it answered any."""
    facts, table = held.facts, held.table
    place = subject.scores(facts)
    scored = [name for name, about in facts.measures.items() if not about.task and name in table.columns]
    name = next((name for name in scored if name not in ("perplexity", "kl")), None)
    if place is None or name is None or ANSWER not in table.columns:
        return []
    lines = table.to_dict("records")
    one, other = (_answered(lines, facts.models[at].name, name) for at in (0, place))
    places = sorted(one.keys() & other.keys())
    if not places:
        return []
    worst = sorted(places, key=lambda place: (other[place][name] - one[place][name], place))[:WORST]
    rows = {places[0]: "the first row"} | dict.fromkeys(worst, "one of the worst")
    title = facts.measures[name].title
    words = f"{len(rows)} of {len(places):,} rows: the {WORST} on which {title} fell most, and the first."
    return [Paragraph(words, "quiet"), *(_pair(one[row], other[row], why, name) for row, why in rows.items())]


def _answered(lines: Sequence[Mapping[Any, Any]], model: str, score: str) -> dict[int, Mapping[Any, Any]]:
    """The dataset's own rows that a model answered and that were scored, by index."""
    mine = (line for line in lines if line["model"] == model and not line["task"])
    return {int(line["row"]): line for line in mine if isinstance(line[ANSWER], str) and line[score] == line[score]}


def _pair(one: Mapping[Any, Any], other: Mapping[Any, Any], why: str, score: str) -> Pair:
    return Pair(
        int(one["row"]),
        str(one["prompt"]),
        (one[ANSWER], other[ANSWER]),
        str(one["reference"]),
        (bool(one["truncated"]), bool(other["truncated"])),
        why,
        scores=(float(one[score]), float(other[score])),
    )
