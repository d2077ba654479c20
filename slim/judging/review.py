"""Reading a judgement pair by pair: which words differ, which pairs to look at first, and a table of all of them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

from slim.evaluation.scorers import rouge
from slim.judging.prompt import ORDERS
from slim.judging.record import JUDGMENTS, Comparison, Judgment, PairVerdict

Piece = tuple[str, bool]
"""A stretch of an answer, and whether the other answer lacks it."""
Scores = Mapping[int, tuple[float, float]]
"""The original's and the pruned model's score against the reference, 0..1, by the index of a pair."""
MOST_MATCHES = 40_000
"""Most pairs of equal words in two answers that are compared: repetitive answers would take too long on a page."""
_WORD = re.compile(r"(\s*)(\S+)")
_VERDICTS = {"original_model": -1.0, "tie": 0.0, "pruned_model": 1.0}


def word_diff(one: str, other: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces that join to the whole text, those marked whose words the other text lacks there.

    White space alone makes no difference. Texts with more than `MOST_MATCHES` pairs of equal words bear no mark.
    """
    words = [[word for _, word in _WORD.findall(text)] for text in (one, other)]
    lacking = tuple([False] * len(mine) for mine in words)
    here, there = map(Counter, words)
    if words[0] != words[1] and sum(count * there[word] for word, count in here.items()) <= MOST_MATCHES:
        for tag, begin, end, start, stop in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
            if tag != "equal":
                lacking[0][begin:end] = [True] * (end - begin)
                lacking[1][start:stop] = [True] * (stop - start)
    return _pieces(one, lacking[0]), _pieces(other, lacking[1])


def _pieces(text: str, lacking: Sequence[bool]) -> list[Piece]:
    """Neighbors of one kind joined; the space between two marked words is marked, so that a mark is continuous."""
    found: list[Piece] = []
    before, end = False, 0
    for match, marked in zip(_WORD.finditer(text), lacking, strict=True):
        found += [(match[1], marked and before), (match[2], marked)]
        before, end = marked, match.end()
    found.append((text[end:], False))
    joined = [("".join(part for part, _ in group), kind) for kind, group in groupby(found, key=lambda piece: piece[1])]
    return [piece for piece in joined if piece[0]]


@dataclass(frozen=True)
class Wanted:
    """A filter of pairs. `longest` bounds the characters of the longer answer, ends included."""

    judgments: frozenset[PairVerdict] = frozenset(JUDGMENTS)
    flip: bool | None = None
    longest: tuple[int, int] | None = None
    text: str = ""

    def takes(self, one: Comparison) -> bool:
        """Return whether a pair passes the filter."""
        if one.judgment not in self.judgments or self.flip not in (None, one.flip):
            return False
        if self.longest is not None and not self.longest[0] <= longer(one) <= self.longest[1]:
            return False
        sought = self.text.strip().casefold()
        return not sought or any(sought in said.casefold() for said in _said(one))


def longer(one: Comparison) -> int:
    """Characters of the longer answer."""
    return max(len(one.response1), len(one.response2))


def _said(one: Comparison) -> list[str]:
    reasons = [opinion.reason for opinion in one.orders]
    return [one.question, one.response1, one.response2, one.reference, one.failure or "", *reasons]


def chosen(judgement: Judgment, wanted: Wanted) -> list[int]:
    """The indices of the pairs that pass the filter, in the order of the rows."""
    return [place for place, one in enumerate(judgement.comparisons) if wanted.takes(one)]


def scores_of(one: Comparison) -> tuple[float, float] | None:
    """Both answers' scores against the dataset's own: by the metric of the judgement, else by ROUGE-L F1.

    None for a pair without a reference, and for one without answers.
    """
    if one.scores is not None or not has_reference(one):
        return one.scores
    return rouge(one.response1, one.reference)["rougeL"], rouge(one.response2, one.reference)["rougeL"]


def has_reference(one: Comparison) -> bool:
    """Return whether a judge's verdict on a pair can be compared with the dataset's own answer."""
    return bool(one.orders and one.reference.strip())


def reference_scores(judgement: Judgment) -> dict[int, tuple[float, float]]:
    """The scores of every pair that has some, by its index; each takes some milliseconds."""
    found = ((place, scores_of(one)) for place, one in enumerate(judgement.comparisons))
    return {place: scores for place, scores in found if scores is not None}


def disagreement(one: Comparison, scores: tuple[float, float]) -> float:
    """The disagreement of the reference with the verdict, −1..1: the loser's score minus the winner's, or, for a tie,
    half of the absolute difference."""
    gap = scores[1] - scores[0]
    verdict = _VERDICTS[one.judgment]
    return -verdict * gap if verdict else abs(gap) / 2


def by_disagreement(judgement: Judgment, places: Sequence[int], scores: Scores) -> list[int]:
    """The indices, the largest disagreement with the reference first; pairs without a verdict or scores last."""

    def key(place: int) -> tuple[bool, float]:
        one, known = judgement.comparisons[place], scores.get(place)
        if known is None or one.judgment == "error":
            return True, 0.0
        return False, -disagreement(one, known)

    return sorted(places, key=key)


def table(judgement: Judgment, scores: Scores, votes: Mapping[int, str]) -> list[dict[str, object]]:
    """A row for each pair with all of its data, for a spreadsheet. `votes` are the user's, by index."""
    return [_row(one, scores.get(place), votes.get(place)) for place, one in enumerate(judgement.comparisons)]


def _row(one: Comparison, scores: tuple[float, float] | None, vote: str | None) -> dict[str, object]:
    asked = {opinion.order: opinion for opinion in one.orders}
    row: dict[str, object] = {
        "sample_id": one.sample_id,
        "question": one.question,
        "reference": one.reference,
        "original_answer": one.response1,
        "pruned_answer": one.response2,
        "judgment": one.judgment,
        "flip": one.flip,
        "failure": one.failure,
    }
    for order in ORDERS:
        opinion = asked.get(order)
        row[f"{order}_verdict"] = opinion and opinion.verdict
        row[f"{order}_reason"] = opinion and (opinion.reason or opinion.failure)
    original, pruned = scores or (None, None)
    return row | {
        "original_characters": len(one.response1),
        "pruned_characters": len(one.response2),
        "original_cut": one.truncated[0],
        "pruned_cut": one.truncated[1],
        "original_score": original,
        "pruned_score": pruned,
        "vote": vote,
    }
