"""Judgements made by hand, for tests of what is read from them."""

from collections.abc import Sequence
from typing import Any

from slim.evaluation.settings import AnswerSettings
from slim.judging.both_orders import combined
from slim.judging.figures import figures, overall, remarks
from slim.judging.record import Comparison, Generated, JudgeFacts, Judgment, Opinion, Summary, Winner

NONE = Generated(truncated=0, empty=0, not_asked=0, mean_tokens=1)
LETTERS: dict[str, Winner] = {"o": "original_model", "p": "pruned_model", "t": "tie"}


def compared(said: str, original: str, pruned: str, **more: Any) -> Comparison:
    """A pair with the verdict of each order: `po` is a flip, `x` no verdict."""
    orders = tuple(
        Opinion(order=order, failure="refusal", raw="I cannot.")
        if letter == "x"
        else Opinion(order=order, verdict=LETTERS[letter], reason=f"{letter} it is")
        for order, letter in zip(("original_first", "pruned_first"), said, strict=True)
    )
    verdict, flip, failure = combined(orders)
    given = {"sample_id": 0, "question": "What?", "response1": original, "response2": pruned} | more
    return Comparison(**given, judgment=verdict or "error", failure=failure, flip=flip, orders=orders)


def judgement(pairs: Sequence[Comparison], min_coverage: float = 0.8, **more: Any) -> Judgment:
    """A judgement of these pairs by an endpoint."""
    numbered = [one.model_copy(update={"sample_id": place}) for place, one in enumerate(pairs)]
    found = figures(numbered, both_orders=True)
    given: dict[str, Any] = {
        "original_model": "bundled:smollm2-135m",
        "pruned_model": "/somewhere/small",
        "dataset": "bundled:briefs",
        "num_samples": len(pairs),
        "comparisons": tuple(numbered),
        "summary": Summary.of(numbered),
        "overall_winner": overall(found, min_coverage),
        "figures": found,
        "judge": JudgeFacts(kind="endpoint", name="strict", endpoint="http://127.0.0.1:1/v1", both_orders=True),
        "split": "test",
        "seed": 0,
        "min_coverage": min_coverage,
        "answers": AnswerSettings(),
        "generated": {"original_model": NONE, "pruned_model": NONE},
        "fingerprints": ("a", "b"),
        "versions": {},
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "notes": tuple(remarks(found)),
    }
    return Judgment(**given | more)
