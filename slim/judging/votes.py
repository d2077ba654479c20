"""The user's blind votes on the pairs of a judgement, and their agreement with the judge.

Votes are saved in a file of their own beside the judgement's, which stays unchanged. A vote is keyed by the question
and both answers, so it survives a repeated judgement and does not count for changed answers.
"""

import hashlib
import json
import random
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from slim.core import workspace
from slim.core.errors import InputError
from slim.core.migrations import read_record
from slim.core.records import Record, why_invalid
from slim.core.statistics import interval, resample_counts
from slim.evaluation.metrics import Figure
from slim.judging.record import Comparison, Judgment

Ballot = Literal["A", "B", "tie", "skip"]
Choice = Literal["original_model", "pruned_model", "tie", "skip"]
SIDES: tuple[Choice, ...] = ("original_model", "tie", "pruned_model")
FEW = 20
"""Votes below which an agreement is not informative."""
_ONE_AT_A_TIME = threading.Lock()


class Vote(Record):
    """The user's vote on a pair. It is blind where the models had not been named before."""

    choice: Choice
    blind: bool
    at: str


class Votes(Record):
    """The file of the user's votes, by the key of a pair."""

    schema_version: Literal[1] = 1
    kind: Literal["votes"] = "votes"
    votes: dict[str, Vote] = Field(default={})


class Agreement(Record):
    """The agreement of the user and the judge over the pairs on which both have a verdict."""

    counts: tuple[tuple[int, int, int], ...] = Field(description="user × judge, each: original, tie, pruned")
    share: Figure | None = Field(description="share of the pairs on which both agree")
    kappa: Figure | None = Field(description="Cohen's; None where agreement by chance is certain")
    skipped: int = Field(ge=0)
    not_blind: int = Field(ge=0, description="votes among the pairs that were changed after the models were named")

    @property
    def pairs(self) -> int:
        """Pairs on which both have a verdict."""
        return sum(map(sum, self.counts))

    @property
    def same(self) -> int:
        """Pairs on which both agree."""
        return sum(row[place] for place, row in enumerate(self.counts))


def file_of(judgement: Path) -> Path:
    """The path of the votes on a judgement's file."""
    return judgement.with_name(f"{judgement.stem}.votes.json")


def key_of(one: Comparison) -> str:
    """The key of a pair's vote: a hash of the question and both answers."""
    told = json.dumps([one.question, one.response1, one.response2])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def load_votes(judgement: Path) -> Votes:
    """The votes on a judgement's file, empty without a votes file. Raises InputError where that cannot be read."""
    file = file_of(judgement)
    try:
        return read_record(Votes, file, f"votes {str(file)!r}")
    except FileNotFoundError:
        return Votes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"votes={str(file)!r}: the file cannot be read ({why_invalid(error)}); move it away to begin anew."
        ) from error


def cast(judgement: Path, one: Comparison, ballot: Ballot, pruned_is_a: bool) -> Votes:
    """Save a vote on a pair of a judgement's file, and return all votes; a later vote replaces an earlier one.

    A vote on a pair that has one already is not blind, because after the first the models were named.
    """
    with _ONE_AT_A_TIME:
        held = load_votes(judgement).votes
        key = key_of(one)
        vote = Vote(
            choice=_meant(ballot, pruned_is_a),
            blind=key not in held,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        votes = Votes(votes=held | {key: vote})
        workspace.write_file(file_of(judgement), votes.model_dump_json(indent=2))
    return votes


def _meant(ballot: Ballot, pruned_is_a: bool) -> Choice:
    if ballot in ("tie", "skip"):
        return ballot
    return "pruned_model" if (ballot == "A") == pruned_is_a else "original_model"


def pruned_is_a(judgement: Judgment, one: Comparison) -> bool:
    """Return whether the pruned model's answer is shown as A: random for each pair, and the same each time."""
    return hashlib.sha256(f"{_seed(judgement)}/{key_of(one)}".encode()).digest()[0] % 2 == 0


def queue(judgement: Judgment) -> list[int]:
    """The indices of the pairs that were answered, in random order, so that the first votes are a fair sample."""
    places = [place for place, one in enumerate(judgement.comparisons) if one.orders or one.scores is not None]
    random.Random(_seed(judgement)).shuffle(places)  # noqa: S311  not for secrets
    return places


def _seed(judgement: Judgment) -> str:
    return json.dumps([judgement.seed, judgement.started, *judgement.fingerprints])


def choices(judgement: Judgment, votes: Votes) -> dict[int, Choice]:
    """The user's vote on each pair, by its index."""
    held = votes.votes
    found = ((place, held.get(key_of(one))) for place, one in enumerate(judgement.comparisons))
    return {place: vote.choice for place, vote in found if vote is not None}


def agreement(judgement: Judgment, votes: Votes) -> Agreement:
    """The agreement of user and judge. Skipped pairs and pairs without a verdict are left out."""
    said = choices(judgement, votes)
    both = [
        (SIDES.index(choice), SIDES.index(verdict), place)
        for place, choice in said.items()
        if choice != "skip" and (verdict := judgement.comparisons[place].judgment) != "error"
    ]
    crossed = np.zeros((len(both), len(SIDES), len(SIDES)), dtype=np.int64)
    for row, (person, judge, _) in enumerate(both):
        crossed[row, person, judge] = 1
    counts = crossed.sum(0)
    drawn = (
        np.tensordot(resample_counts(len(both), np.random.default_rng(judgement.seed)), crossed, 1)
        if len(both) > 1
        else None
    )
    return Agreement(
        counts=tuple((int(row[0]), int(row[1]), int(row[2])) for row in counts),
        share=_figure(_same(counts), None if drawn is None else _same(drawn)),
        kappa=_figure(kappa(counts), None if drawn is None else kappa(drawn)),
        skipped=sum(choice == "skip" for choice in said.values()),
        not_blind=sum(not votes.votes[key_of(judgement.comparisons[place])].blind for _, _, place in both),
    )


def kappa(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cohen's kappa (1960) of tables of counts (…, C, C): (agreement − chance) / (1 − chance).

    NaN where agreement by chance is certain, and for empty tables.
    """
    from sklearn.metrics import cohen_kappa_score

    person, judge = np.indices(counts.shape[-2:]).reshape(2, -1)  # of each cell

    def of(table: NDArray[np.int64]) -> float:
        if table.sum() == table.diagonal().max():
            return np.nan
        return cohen_kappa_score(person, judge, sample_weight=table.ravel())

    return np.vectorize(of, signature="(c,c)->()", otypes=[np.float64])(counts)


def _same(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share on the diagonal; NaN of an empty table."""
    total = counts.sum((-1, -2))
    hits = np.trace(counts, axis1=-2, axis2=-1).astype(np.float64)
    return np.divide(hits, total, out=np.full_like(hits, np.nan), where=total > 0)


def _figure(value: NDArray[np.float64], drawn: NDArray[np.float64] | None) -> Figure | None:
    """The figure, or None where the value is NaN; the interval is of the resamples that are not."""
    if np.isnan(value):
        return None
    known = np.array([]) if drawn is None else drawn[~np.isnan(drawn)]
    if not len(known):
        return Figure(value=float(value))
    low, high = interval(known)
    return Figure(value=float(value), low=float(low), high=float(high))
