"""The records of a judgement: every pair with its verdicts, their figures, and how they were reached."""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from slim.core.records import Record
from slim.evaluation.metrics import Figure
from slim.evaluation.model_answer import ModelAnswer
from slim.evaluation.settings import AnswerSettings
from slim.judging.prompt import Order

PairVerdict = Literal["original_model", "pruned_model", "tie", "error"]
JUDGMENTS: tuple[PairVerdict, ...] = ("original_model", "pruned_model", "tie", "error")
Winner = Literal["original_model", "pruned_model", "tie"]


class Opinion(Record):
    """A judge's verdict on a pair in one order, or why there is no verdict."""

    order: Order
    verdict: Winner | None = None
    reason: str = ""
    failure: str | None = None
    raw: str = Field(default="", description="the judge's raw answer")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.verdict is None) == (self.failure is None):
            raise ValueError("verdict, failure: an opinion has exactly one of them")
        return self


class Comparison(Record):
    """One row: both models' answers and which is better. `response1` is the original's, `response2` the pruned's."""

    sample_id: int = Field(ge=0)
    question: str
    response1: str
    response2: str
    judgment: PairVerdict
    failure: str | None = Field(default=None, description="why there is no verdict")
    flip: bool = Field(default=False, description="whether the verdict changed with the order, which makes it a tie")
    orders: tuple[Opinion, ...] = Field(default=(), description="of a judge that was asked in both orders")
    reference: str = ""
    scores: tuple[float, float] | None = Field(default=None, description="against the reference: original, pruned")
    truncated: tuple[bool, bool] = Field(default=(False, False), description="answers cut at max_new_tokens")

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if (self.judgment == "error") != (self.failure is not None):
            raise ValueError("judgment, failure: an error has a reason, and nothing else has one")
        return self

    @property
    def longer_by(self) -> int:
        """Characters by which the pruned model's answer is longer than the original's."""
        return len(self.response2) - len(self.response1)


class Summary(Record):
    """Pairs by verdict, and each count in percent of all pairs."""

    original_model: int = Field(ge=0)
    pruned_model: int = Field(ge=0)
    tie: int = Field(ge=0)
    error: int = Field(ge=0)
    original_model_pct: float
    pruned_model_pct: float
    tie_pct: float
    error_pct: float

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> "Summary":
        """The counts over all pairs."""
        total = max(1, len(comparisons))
        counts = {name: sum(one.judgment == name for one in comparisons) for name in JUDGMENTS}
        shares = {f"{name}_pct": 100 * count / total for name, count in counts.items()}
        return cls.model_validate(counts | shares)


class Figures(Record):
    """The figures of the verdicts, seen from the pruned model: a win is the pruned model's."""

    win: int = Field(ge=0)
    loss: int = Field(ge=0)
    tie: int = Field(ge=0, description="flips included")
    flips: int = Field(ge=0)
    flip_rate: float | None = Field(default=None, description="share of judged pairs; None without a second order")
    coverage: float = Field(ge=0, le=1, description="share of the pairs that got a verdict")
    win_rate: Figure | None = Field(default=None, description="(wins + ½ ties) / judged")
    length_controlled: Figure | None = Field(default=None, description="win rate at equal answer length")
    mean_length: tuple[float, float] = Field(description="characters of an answer: original, pruned")
    failures: dict[str, int] = Field(default={}, description="pairs without a verdict by reason")


class Generated(Record):
    """Counts over a model's answers."""

    truncated: int = Field(ge=0, description="answers cut at max_new_tokens")
    empty: int = Field(ge=0)
    not_asked: int = Field(ge=0, description="prompts longer than the context leaves room for")
    mean_tokens: float = Field(ge=0)

    @classmethod
    def of(cls, answers: Sequence[ModelAnswer]) -> "Generated":
        """Count a model's answers."""
        asked = [one for one in answers if one.failure is None]
        return cls(
            truncated=sum(one.truncated for one in asked),
            empty=sum(not one.text for one in asked),
            not_asked=len(answers) - len(asked),
            mean_tokens=sum(one.tokens for one in asked) / max(1, len(asked)),
        )


class JudgeFacts(Record):
    """The judge and its settings, never the key."""

    kind: Literal["endpoint", "local", "reference"] = Field(description="local: a model served for the run")
    name: str
    fingerprint: str | None = Field(default=None, description="of a local judge's files, or its commit on the Hub")
    endpoint: str | None = None
    rubric: str | None = None
    both_orders: bool
    calls: int = Field(default=0, ge=0, description="answered in this run")
    known_calls: int = Field(default=0, ge=0, description="cached from earlier runs")
    tokens_in: int = Field(default=0, ge=0, description="of all answers, as the endpoint counts them")
    tokens_out: int = Field(default=0, ge=0)


class Judgment(Record):
    """The file of a judgement. The fields up to `overall_winner` are those that readers of older files know."""

    original_model: str
    pruned_model: str
    dataset: str
    num_samples: int = Field(ge=1)
    comparisons: tuple[Comparison, ...]
    summary: Summary
    overall_winner: Winner | None = Field(description="None where too few pairs were judged, or all verdicts flipped")
    figures: Figures
    schema_version: Literal[1] = 1
    kind: Literal["judgement"] = "judgement"
    judge: JudgeFacts
    config: str | None = None
    split: str
    revision: str | None = None
    seed: int = Field(ge=0)
    min_coverage: float = Field(ge=0, le=1)
    answers: AnswerSettings
    generated: Mapping[Literal["original_model", "pruned_model"], Generated]
    fingerprints: tuple[str, str] = Field(description="of the weights: original, pruned")
    versions: dict[str, str]
    started: str
    seconds: float = Field(ge=0)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(self.comparisons) != self.num_samples:
            raise ValueError(f"num_samples={self.num_samples}: there are {len(self.comparisons)} comparisons")
        if self.summary != Summary.of(self.comparisons):
            raise ValueError("summary: it does not count the comparisons")
        return self
