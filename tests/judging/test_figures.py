"""From verdicts to figures, checked by hand, against a fit of another kind, and on data whose truth is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit

from slim.judging.both_orders import combined
from slim.judging.figures import figures, length_controlled, overall, remarks
from slim.judging.prompt import ORDERS
from slim.judging.record import Comparison, Opinion, PairVerdict, Summary, Winner


def compared(judgments: Sequence[PairVerdict], flips: Sequence[int] = ()) -> list[Comparison]:
    """Pairs with these judgments; the answers have 10 and 10 + place characters."""
    return [
        Comparison(
            sample_id=place,
            question="q",
            response1="x" * 10,
            response2="x" * (10 + place),
            judgment=judgment,
            failure="HTTP 500" if judgment == "error" else None,
            flip=place in flips,
        )
        for place, judgment in enumerate(judgments)
    ]


def said(one: Winner | None, other: Winner | None) -> list[Opinion]:
    """The opinions of both orders; None is one that failed."""
    return [
        Opinion(order=order, verdict=verdict, failure=None if verdict else f"{order} failed")
        for order, verdict in zip(ORDERS, (one, other), strict=True)
    ]


def test_figures_by_hand() -> None:
    """Three wins, two losses, two ties of which one is a flip, and one failure among eight pairs."""
    pairs = compared(
        ["pruned_model", "pruned_model", "original_model", "tie", "error", "tie", "pruned_model", "original_model"], [3]
    )
    found = figures(pairs, both_orders=True)
    assert (found.win, found.loss, found.tie, found.flips) == (3, 2, 2, 1)
    assert found.flip_rate == 1 / 7
    assert found.coverage == 7 / 8
    assert found.win_rate is not None
    assert found.win_rate.value == pytest.approx((3 + 0.5 * 2) / 7)
    assert found.win_rate.low < found.win_rate.value < found.win_rate.high  # type: ignore[operator]
    assert found.mean_length == (10, 13.5)
    assert found.failures == {"HTTP 500": 1}
    assert figures(pairs, both_orders=True) == found
    assert figures(pairs, both_orders=True, seed=1).win_rate != found.win_rate
    summary = Summary.of(pairs)
    assert (summary.pruned_model, summary.original_model, summary.tie, summary.error) == (3, 2, 2, 1)
    assert (summary.pruned_model_pct, summary.original_model_pct, summary.tie_pct, summary.error_pct) == (
        37.5,
        25,
        25,
        12.5,
    )
    assert overall(found, 0.8) == "pruned_model"
    assert overall(found, 0.9) is None
    assert remarks(found) == ["the interval of the win rate includes 50%: the difference may be due to chance"]


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Over many samples with a true win rate of 0.7, about 95 of 100 intervals contain it."""
    generator = np.random.default_rng(3)
    hits = 0
    for trial in range(60):
        wins = generator.random(80) < 0.7
        rate = figures(compared(["pruned_model" if win else "original_model" for win in wins]), False, trial).win_rate
        assert rate is not None
        hits += rate.low <= 0.7 <= rate.high  # type: ignore[operator]
    assert 51 <= hits <= 60


def test_orders_that_disagree_are_a_tie_and_a_flip() -> None:
    """Whichever way they disagree; an order that failed leaves no verdict, never a tie."""
    assert combined(said("pruned_model", "pruned_model")) == ("pruned_model", False, None)
    assert combined(said("tie", "tie")) == ("tie", False, None)
    assert combined(said("pruned_model", "original_model")) == ("tie", True, None)
    assert combined(said("tie", "original_model")) == ("tie", True, None)
    assert combined(said(None, "original_model")) == (None, False, "original_first failed")
    assert combined(said("original_model", None)) == (None, False, "pruned_first failed")


def test_nobody_wins_where_nothing_was_judged_or_all_flipped() -> None:
    """Failures alone name no winner and no rate; flips alone name none either; a real draw is a tie."""
    nothing = figures(compared(["error", "error"]), True)
    assert nothing.win_rate is nothing.length_controlled is nothing.flip_rate is None
    assert (nothing.coverage, overall(nothing, 0.0)) == (0, None)
    flipped = figures(compared(["tie", "tie"], [0, 1]), True)
    assert overall(flipped, 0.8) is None
    assert remarks(flipped) == ["every verdict changed with the order: this judge prefers a position, not an answer"]
    assert overall(figures(compared(["tie", "tie"], [0]), True), 0.8) == "tie"
    assert overall(figures(compared(["pruned_model", "original_model"]), True), 0.8) == "tie"


def test_one_pair_has_no_interval() -> None:
    """Its rate is reported without one."""
    rate = figures(compared(["pruned_model"]), True).win_rate
    assert rate is not None
    assert (rate.value, rate.low, rate.high) == (1, None, None)


def test_length_is_taken_out() -> None:
    """Verdicts drawn from a known model, the pruned one's answers mostly longer: the rate at equal length is found."""
    generator = np.random.default_rng(0)
    longer_by = generator.normal(120, 100, 3000)
    odds = 0.4 + 1.5 * np.tanh(longer_by / longer_by.std())
    points = (generator.random(3000) < expit(odds)).astype(float)
    found = length_controlled(points, longer_by)
    assert found is not None
    assert points.mean() > 0.75
    assert found.value == pytest.approx(expit(0.4), abs=0.03)
    assert found.low < expit(0.4) < found.high  # type: ignore[operator]
    assert found == length_controlled(points, longer_by)


def test_the_fit_is_the_best_of_a_grid() -> None:
    """Ties count half: the penalised likelihood of a fine grid peaks where the fit is."""
    generator = np.random.default_rng(5)
    points, longer_by = generator.choice([0.0, 0.5, 1.0], 40), generator.normal(5, 20, 40)
    term = np.tanh(longer_by / longer_by.std())
    quality, slope = np.meshgrid(np.linspace(-2, 2, 401), np.linspace(-4, 4, 401), indexing="ij")
    odds = quality[..., None] + slope[..., None] * term
    fit = (points * np.log(expit(odds)) + (1 - points) * np.log(expit(-odds))).sum(-1) - (quality**2 + slope**2) / 50
    best = quality.flat[int(fit.argmax())]
    found = length_controlled(points, longer_by)
    assert found is not None
    assert found.value == pytest.approx(expit(best), abs=0.003)


def test_separation_stays_finite() -> None:
    """Where the longer answer always wins, or one model always, the fit still ends, between 0 and 1."""
    longer_by = np.array([-30.0, -20, -10, 10, 20, 30])
    separated = length_controlled((longer_by > 0).astype(float), longer_by)
    assert separated is not None
    assert separated.value == pytest.approx(0.5, abs=0.01)
    always = length_controlled(np.ones(6), longer_by)
    assert always is not None
    assert 0.9 < always.value < 1


def test_what_length_cannot_tell() -> None:
    """No difference in length leaves the plain rate; the same difference everywhere leaves nothing to tell by."""
    same = length_controlled(np.array([1.0, 1, 0, 0.5] * 50), np.zeros(200))
    assert same is not None
    assert same.value == pytest.approx(0.625, abs=0.001)
    assert length_controlled(np.array([1.0, 1, 0]), np.full(3, 7.0)) is None
    assert length_controlled(np.array([1.0]), np.array([7.0])) is None


def test_records_refuse_what_contradicts_itself() -> None:
    """A verdict and a failure at once, an error without a reason."""
    with pytest.raises(ValidationError, match="an opinion has exactly one of them"):
        Opinion(order="original_first", verdict="tie", failure="HTTP 500")
    with pytest.raises(ValidationError, match="an error has a reason"):
        Comparison(sample_id=0, question="", response1="", response2="", judgment="error")
