"""Figures of verdicts: win rate with its interval, the same at equal length, and the overall winner."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slim.core.statistics import bootstrap, interval, resample_counts
from slim.evaluation.metrics import Figure
from slim.judging.record import Comparison, Figures, Winner

POINTS = {"pruned_model": 1.0, "tie": 0.5, "original_model": 0.0}
SPREAD = 5.0
"""Standard deviation of the normal prior on each coefficient of the length model, in log odds: wide enough to leave
ordinary data alone, and finite where verdicts are separated by length or all alike."""
STEPS, CLOSE = 100, 1e-9
"""A fit ends after so many steps, or with one as small as this."""


def figures(comparisons: Sequence[Comparison], both_orders: bool, seed: int = 0) -> Figures:
    """The figures of the verdicts; failures count for coverage alone."""
    judged = [one for one in comparisons if one.judgment != "error"]
    points = np.array([POINTS[one.judgment] for one in judged])
    flips = sum(one.flip for one in judged)
    return Figures(
        win=sum(one.judgment == "pruned_model" for one in judged),
        loss=sum(one.judgment == "original_model" for one in judged),
        tie=sum(one.judgment == "tie" for one in judged),
        flips=flips,
        flip_rate=flips / len(judged) if judged and both_orders else None,
        coverage=len(judged) / max(1, len(comparisons)),
        win_rate=_win_rate(points, seed) if judged else None,
        length_controlled=length_controlled(points, np.array([float(one.longer_by) for one in judged]), seed),
        mean_length=(
            float(np.mean([len(one.response1) for one in comparisons])),
            float(np.mean([len(one.response2) for one in comparisons])),
        ),
        failures=dict(Counter(one.failure for one in comparisons if one.failure is not None)),
    )


def overall(found: Figures, min_coverage: float) -> Winner | None:
    """The model with more wins; None below `min_coverage`, and where every verdict changed with the order."""
    judged = found.win + found.loss + found.tie
    if not judged or found.coverage < min_coverage or found.flips == judged:
        return None
    if found.win == found.loss:
        return "tie"
    return "pruned_model" if found.win > found.loss else "original_model"


def remarks(found: Figures) -> list[str]:
    """Notes on how to read the figures."""
    judged, rate = found.win + found.loss + found.tie, found.win_rate
    if judged and found.flips == judged:
        return ["every verdict changed with the order: this judge prefers a position, not an answer"]
    unsure = rate is not None and rate.low is not None and rate.high is not None and rate.low <= 0.5 <= rate.high
    if unsure and found.win != found.loss:
        return ["the interval of the win rate includes 50%: the difference may be due to chance"]
    return []


def length_controlled(points: NDArray[np.float64], longer_by: NDArray[np.float64], seed: int = 0) -> Figure | None:
    """The win rate that a logistic model of the verdict predicts at equal lengths (Dubois et al. 2024, AlpacaEval 2).

    `points` (R,) are 1 for a win, ½ for a tie and 0 for a loss, `longer_by` (R,) the difference of the lengths:
    log odds = quality + φ · tanh(difference / its standard deviation). Their term for how hard each question is needs
    many models and is left out. None for fewer than two pairs, and where all differ in length by the same amount, as
    nothing then tells length from quality.
    """
    if len(points) < 2 or (np.ptp(longer_by) == 0 and longer_by[0] != 0):
        return None
    scale = longer_by.std() or 1.0
    term = np.tanh(longer_by / scale)
    counts = resample_counts(len(points), np.random.default_rng(seed))
    value, *drawn = _at_equal_length(points, term, np.vstack((np.ones(len(points)), counts.astype(float))))
    low, high = interval(np.array(drawn))
    return Figure(value=float(value), low=float(low), high=float(high))


def _at_equal_length(
    points: NDArray[np.float64], term: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The fitted probability of a win where the length term is 0, for each row of `weights` (W, R).  # (W,)

    By Newton's steps for all of them at once, shortened to a change of one in the log odds, so that none goes too far.
    """
    from scipy.special import expit

    design = np.stack((np.ones_like(term), term), 1)  # (R, 2)
    squares = (design[:, :, None] * design[:, None]).reshape(-1, 4)  # (R, 4)
    coefficients = np.zeros((len(weights), 2))
    for _ in range(STEPS):
        wins = expit(coefficients @ design.T)  # (W, R)
        slope = (weights * (wins - points)) @ design + coefficients / SPREAD**2
        bend = ((weights * wins * (1 - wins)) @ squares).reshape(-1, 2, 2) + np.eye(2) / SPREAD**2
        step = np.linalg.solve(bend, slope[..., None])[..., 0]
        coefficients -= step / np.maximum(1, np.abs(step).sum(1, keepdims=True))
        if np.abs(step).max() < CLOSE:
            break
    return expit(coefficients[:, 0])


def _win_rate(points: NDArray[np.float64], seed: int) -> Figure:
    value, drawn = bootstrap(points, np.ones(len(points)), np.random.default_rng(seed))
    if len(points) < 2:
        return Figure(value=float(value))
    low, high = interval(drawn)
    return Figure(value=float(value), low=float(low), high=float(high))
