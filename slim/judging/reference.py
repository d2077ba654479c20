"""The judge without a model: each of two answers is scored against the dataset's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from slim.core.errors import InputError
from slim.data.templates import Example
from slim.evaluation.scorers import label_in, rouge, scorer_of
from slim.judging.record import Winner

ReferenceMeasure = Literal["auto", "rouge-l", "exact"]


@dataclass(frozen=True)
class Referee:
    """A metric by name, and its score of an answer, 0..1."""

    name: str
    score: Callable[[str, Example], float]

    def verdict(self, original: str, pruned: str, example: Example) -> tuple[Winner, tuple[float, float]]:
        """The model whose answer scores higher, and both scores; equal scores are a tie."""
        one, other = self.score(original, example), self.score(pruned, example)
        if one == other:
            return "tie", (one, other)
        return ("original_model" if one > other else "pruned_model"), (one, other)


def referee(kind: str, references: Sequence[str], measure: ReferenceMeasure = "auto") -> Referee:
    """The reference judge of a template's kind: exact match where answers are labels, choices or results, else ROUGE-L.

    `references` are the answers of all rows. Raises InputError for exact match on answers without one wording.
    """
    if kind == "choices" and measure != "rouge-l":
        return Referee("exact match of the choice", _chosen)
    scorer = scorer_of(kind, references)
    names = [one.name for one in scorer.measures] if scorer else []
    settled = kind == "classification" or names == ["exact_match"]  # one right answer, whatever its wording
    if measure == "rouge-l" or (measure == "auto" and not settled):
        return Referee("ROUGE-L F1 against the reference", lambda said, row: rouge(said, row.answer)["rougeL"])
    exact = next((name for name in ("accuracy", "exact_match") if name in names), None)
    if scorer is None or exact is None:
        raise InputError(f"measure='exact': answers of the kind {kind!r} have no single wording; use rouge-l.")
    return Referee("exact match with the reference", lambda said, row: float(scorer.score(said, row.answer)[exact]))


def _chosen(said: str, row: Example) -> float:
    return float(label_in(said, row.choices) == row.answer)
