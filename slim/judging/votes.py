"""A person's own votes on the pairs of a judgement, given blind, and how far person and judge agree.

The votes lie in a file of their own beside the judgement's, which stays as it is. A vote belongs to the question and
both answers, so it outlasts a judgement that is made again and does not count for answers that have changed.
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
"""Votes below which an agreement says little."""
_ONE_AT_A_TIME = threading.Lock()


class Vote(Record):
    """What a person said to a pair. It is blind where the models had not been named before."""

    choice: Choice
    blind: bool
    at: str


class Votes(Record):
    """The file of a person's votes, by the pair."""

    schema_version: Literal[1] = 1
    kind: Literal["votes"] = "votes"
    votes: dict[str, Vote] = Field(default={})


class Agreement(Record):
    """How often person and judge say the same, over the pairs that both have a verdict on."""

    counts: tuple[tuple[int, int, int], ...] = Field(description="person × judge, each: original, tie, pruned")
    share: Figure | None = Field(description="of the pairs on which both say the same")
    kappa: Figure | None = Field(description="Cohen's; None where chance alone would agree always")
    skipped: int = Field(ge=0)
    not_blind: int = Field(ge=0, description="votes among the pairs that were changed after the models were named")

    @property
    def pairs(self) -> int:
        """Pairs that both have a verdict on."""
        return sum(map(sum, self.counts))

    @property
    def same(self) -> int:
        """Pairs on which both say the same."""
        return sum(row[place] for place, row in enumerate(self.counts))


def file_of(judgement: Path) -> Path:
    """Where the votes on a judgement's file are kept."""
    return judgement.with_name(f"{judgement.stem}.votes.json")


def key_of(one: Comparison) -> str:
    """What a vote is kept under: the question and both answers."""
    told = json.dumps([one.question, one.response1, one.response2])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def load_votes(judgement: Path) -> Votes:
    """The votes on a judgement's file, none where there are none. Raises InputError for a file that is no votes'."""
    file = file_of(judgement)
    try:
        return read_record(Votes, file, f"votes {str(file)!r}")
    except FileNotFoundError:
        return Votes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"votes {str(file)!r} cannot be read ({why_invalid(error)}): move the file away to begin anew."
        ) from error


def cast(judgement: Path, one: Comparison, ballot: Ballot, pruned_is_a: bool) -> Votes:
    """Keeps a vote on a pair of a judgement's file, and gives all votes; a later vote replaces an earlier one.

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
    """Whether the pruned model's answer is shown as A: by chance for each pair, the same whenever it is shown."""
    return hashlib.sha256(f"{_seed(judgement)}/{key_of(one)}".encode()).digest()[0] % 2 == 0


def queue(judgement: Judgment) -> list[int]:
    """The places of the pairs that were answered, in an order by chance, so that the first votes are a fair sample."""
    places = [place for place, one in enumerate(judgement.comparisons) if one.orders or one.scores is not None]
    random.Random(_seed(judgement)).shuffle(places)  # noqa: S311  chance is no secret
    return places


def _seed(judgement: Judgment) -> str:
    return json.dumps([judgement.seed, judgement.started, *judgement.fingerprints])


def choices(judgement: Judgment, votes: Votes) -> dict[int, Choice]:
    """What the person said to each pair, by its place."""
    held = votes.votes
    found = ((place, held.get(key_of(one))) for place, one in enumerate(judgement.comparisons))
    return {place: vote.choice for place, vote in found if vote is not None}


def agreement(judgement: Judgment, votes: Votes) -> Agreement:
    """Person and judge compared. Skipped pairs and those that the judge gave no verdict on count for neither."""
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
    total = np.maximum(1, counts.sum((-1, -2)))
    chance = (counts.sum(-1) * counts.sum(-2)).sum(-1) / total**2
    above = _same(counts) - chance
    return np.divide(
        above, 1 - chance, out=np.full_like(above, np.nan), where=(chance < 1) & (counts.sum((-1, -2)) > 0)
    )


def _same(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share on the diagonal; NaN of an empty table."""
    total = counts.sum((-1, -2))
    hits = np.trace(counts, axis1=-2, axis2=-1).astype(np.float64)
    return np.divide(hits, total, out=np.full_like(hits, np.nan), where=total > 0)


def _figure(value: NDArray[np.float64], drawn: NDArray[np.float64] | None) -> Figure | None:
    """None where there is no number; the interval is of the resamples that have one."""
    if np.isnan(value):
        return None
    known = np.array([]) if drawn is None else drawn[~np.isnan(drawn)]
    if not len(known):
        return Figure(value=float(value))
    low, high = interval(known)
    return Figure(value=float(value), low=float(low), high=float(high))
