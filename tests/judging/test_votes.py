"""Votes of people: kept beside the judgement, blind, and compared with the judge by figures worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from slim.core.errors import InputError
from slim.judging import votes
from slim.judging.record import Judgment
from slim.judging.votes import Ballot, Votes
from tests.judgements import compared, judgement


def made(said: list[str]) -> Judgment:
    return judgement([compared(one, f"original {place}", f"pruned {place}") for place, one in enumerate(said)])


def written(found: Judgment, folder: Path) -> Path:
    path = folder / "judged.json"
    path.write_text(found.model_dump_json(indent=2))
    return path


def vote_all(path: Path, found: Judgment, wanted: str) -> Votes:
    """`o`, `p`, `t` or `s` for each pair, whatever place it has there."""
    for one, letter in zip(found.comparisons, wanted, strict=True):
        is_a = votes.pruned_is_a(found, one)
        ballots: dict[str, Ballot] = {"p": "A" if is_a else "B", "o": "B" if is_a else "A", "t": "tie", "s": "skip"}
        votes.cast(path, one, ballots[letter], is_a)
    return votes.load_votes(path)


def test_votes_are_kept_beside_the_judgement(tmp_path: Path) -> None:
    found = made(["pp", "oo", "tt"])
    path = written(found, tmp_path)
    before = path.read_bytes()
    given = vote_all(path, found, "pos")
    assert votes.choices(found, given) == {0: "pruned_model", 1: "original_model", 2: "skip"}
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["judged.json", "judged.votes.json"]
    assert votes.load_votes(path) == given


def test_a_later_vote_replaces_and_is_not_blind(tmp_path: Path) -> None:
    found = made(["pp", "oo"])
    path = written(found, tmp_path)
    given = vote_all(path, found, "pp")
    assert votes.agreement(found, given).not_blind == 0
    one = found.comparisons[0]
    again = votes.cast(path, one, "tie", votes.pruned_is_a(found, one))
    assert len(again.votes) == 2
    assert again.votes[votes.key_of(one)].choice == "tie"
    assert not again.votes[votes.key_of(one)].blind
    assert again.votes[votes.key_of(found.comparisons[1])].blind
    assert votes.agreement(found, again).not_blind == 1


def test_a_vote_belongs_to_the_answers(tmp_path: Path) -> None:
    """A judgement made again keeps the votes on what stayed, in whatever order, and loses those on what changed."""
    found = made(["pp", "oo"])
    path = written(found, tmp_path)
    given = vote_all(path, found, "po")
    one, other = found.comparisons
    later = judgement([other, one.model_copy(update={"response2": "changed"})])
    assert votes.choices(later, given) == {0: "original_model"}


def test_a_file_that_is_no_votes_is_refused(tmp_path: Path) -> None:
    found = made(["pp"])
    path = written(found, tmp_path)
    for content in ("", "{", '{"kind": "judgement"}', json.dumps({"votes": {"a": {"choice": "A"}}})):
        votes.file_of(path).write_text(content)
        with pytest.raises(InputError, match=r"judged.votes.json.*cannot be read"):
            votes.load_votes(path)


def test_the_order_is_hidden_and_stays() -> None:
    """About half of the pruned answers are A; the same each time; not told by the verdict or the row."""
    found = made(["pp", "oo", "tt", "po"] * 100)
    order = [votes.pruned_is_a(found, one) for one in found.comparisons]
    assert order == [votes.pruned_is_a(found, one) for one in found.comparisons]
    for start in range(4):
        assert 30 < sum(order[start::4]) < 70
    other = found.model_copy(update={"seed": 1})
    assert 120 < sum(was != votes.pruned_is_a(other, one) for was, one in zip(order, other.comparisons)) < 280  # noqa: B905


def test_the_queue_holds_every_answered_pair_once() -> None:
    pairs = [compared("pp", f"a {place}", "b") for place in range(30)]
    failed = pairs[3].model_copy(update={"judgment": "error", "failure": "not asked", "orders": ()})
    found = judgement([*pairs[:3], failed, *pairs[4:]])
    places = votes.queue(found)
    assert sorted(places) == [place for place in range(30) if place != 3]
    assert places != sorted(places)
    assert places == votes.queue(found)


def test_agreement_by_hand(tmp_path: Path) -> None:
    """9 of 12 the same; by chance 51/144 (rows 5, 2, 5 and columns 4, 3, 5 of original, tie, pruned)."""
    judge = ["oo", "oo", "oo", "tt", "pp", "po", "tt", "pp", "pp", "pp", "pp", "oo", "xx", "pp"]
    person = "ooooottppppp" + "ps"
    found = made(judge)
    path = written(found, tmp_path)
    both = votes.agreement(found, vote_all(path, found, person))
    assert both.counts == ((3, 1, 1), (0, 2, 0), (1, 0, 4))
    assert (both.pairs, both.same, both.skipped) == (12, 9, 1)
    chance = (5 * 4 + 2 * 3 + 5 * 5) / 144
    assert both.share is not None
    assert both.kappa is not None
    assert both.share.value == pytest.approx(9 / 12)
    assert both.kappa.value == pytest.approx((9 / 12 - chance) / (1 - chance))
    assert both.share.low is not None
    assert both.share.high is not None
    assert both.share.low < 9 / 12 < both.share.high


def test_kappa_of_tables() -> None:
    """Cohen's own bounds, and the textbook table 20, 5, 10, 15: (0.7 − 0.5) / 0.5."""
    tables = np.array([[[20, 5], [10, 15]], [[5, 0], [0, 5]], [[0, 5], [5, 0]], [[5, 5], [5, 5]]])
    assert votes.kappa(tables) == pytest.approx([0.4, 1, -1, 0])
    assert votes.kappa(np.array([[0, 7], [0, 0]])) == 0
    assert np.isnan(votes.kappa(np.array([[[7, 0], [0, 0]], [[0, 0], [0, 7]], [[0, 0], [0, 0]]]))).all()


def test_what_few_votes_cannot_say(tmp_path: Path) -> None:
    """No vote has no figure, one vote no interval, and one that chance explains no kappa."""
    found = made(["pp", "oo"])
    none = votes.agreement(found, Votes())
    assert (none.pairs, none.share, none.kappa) == (0, None, None)
    path = written(found, tmp_path)
    both = votes.agreement(found, vote_all(path, found, "ps"))
    assert both.share is not None
    assert (both.share.value, both.share.low) == (1, None)
    assert both.kappa is None
