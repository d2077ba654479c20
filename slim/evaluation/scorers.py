"""Scores of answers by the metrics of each kind of task."""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

import numpy as np

from slim.evaluation.metrics import ACCURACY, EXACT, MACRO_F1, ROUGE, TOKEN_F1, Columns, Metric

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
FINAL = "####"
"""Mark before the final answer in worked solutions."""

Score = Callable[[str, str], Mapping[str, float]]
"""Contribution of an answer to each metric, from the answer and the reference."""


@dataclass(frozen=True)
class Scorer:
    """The metrics of a kind of task, and the contribution of one answer to each."""

    measures: tuple[Metric, ...]
    score: Score
    max_new_tokens: int
    """Most tokens of an answer of this kind, unless the settings name another number."""

    def columns(self, answers: Sequence[str], references: Sequence[str]) -> Columns:
        """Return the contribution of each row by metric.  # (R,) each"""
        rows = [self.score(answer, reference) for answer, reference in zip(answers, references, strict=True)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def scorer_of(kind: str, references: Sequence[str]) -> Scorer | None:
    """Return the scorer of a template's kind of task; None where only the likelihood is measured.

    `references` are those of the whole dataset: they give the labels, and whether answers end in `#### number`.
    """
    if kind == "summarisation":
        return Scorer(ROUGE, rouge, 128)
    if kind == "classification":
        labels = sorted(set(references))
        return Scorer((ACCURACY, MACRO_F1), lambda answer, label: _labelled(answer, label, labels), 16)
    if kind == "maths" or (kind in ("questions", "instructions") and all(FINAL in one for one in references)):
        return Scorer((EXACT,), lambda answer, solution: {"exact_match": same_result(answer, solution)}, 256)
    if kind in ("questions", "reading"):
        return Scorer((EXACT, TOKEN_F1), _questions, 64)
    return None


def rouge(answer: str, reference: str) -> dict[str, float]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L, each as F with stemmed words, 0..1 (Lin 2004)."""
    scores = _rouge_scorer().score(reference, answer)
    return {name: float(score.fmeasure) for name, score in scores.items()}


def same_result(answer: str, solution: str) -> float:
    """Return 1 where the final answers are the same number, or the same words where the solution has no number."""
    wanted, given = result_of(solution), result_of(answer)
    return float(wanted is not None and wanted == given)


def result_of(text: str) -> Decimal | str | None:
    r"""Return the final answer: after `####`, in `\boxed{}`, or the last number; as a number where it is one."""
    _, marked, after = text.rpartition(FINAL)
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    part = after if marked else boxed[-1] if boxed else text
    numbers = _NUMBER.findall(part)
    if numbers:
        try:
            return Decimal(numbers[0 if marked else -1].replace(",", "")).normalize()
        except InvalidOperation:
            return None
    return normalized(part) or None if marked or boxed else None


def label_in(answer: str, labels: Sequence[str]) -> str | None:
    """Return the label that an answer equals, or else the first one that it contains as whole words."""
    plain = {normalized(label): label for label in labels}
    said = normalized(answer)
    if said in plain:
        return plain[said]
    # where two labels start at the same place the longer one counts
    places = [
        (match.start(), -len(word), label)
        for word, label in plain.items()
        if word and (match := re.search(rf"\b{re.escape(word)}\b", said))
    ]
    return min(places)[2] if places else None


def normalized(text: str) -> str:
    """Return lower-case text without punctuation, articles and double spaces, as SQuAD does (Rajpurkar 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def word_f1(answer: str, reference: str) -> float:
    """Return F1 of the words that both have, normalized, 0..1."""
    said, wanted = normalized(answer).split(), normalized(reference).split()
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


def _questions(answer: str, reference: str) -> dict[str, float]:
    return {
        "exact_match": float(normalized(answer) == normalized(reference)),
        "token_f1": word_f1(answer, reference),
    }


def _labelled(answer: str, label: str, labels: Sequence[str]) -> dict[str, float]:
    said = label_in(answer, labels)
    place = labels.index(said) if said is not None else -1
    return {
        "accuracy": float(said == label),
        "gold": float(labels.index(label)),
        "said": float(place),
        "chance": 1 / len(labels),
    }


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
