"""From scores to a plan: rank, threshold, and the best shape per layer that grouped-query attention allows."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import rankdata

from slim import workspace
from slim.calibration import Calibration
from slim.errors import InputError
from slim.estimate import ratio_of_sums
from slim.metrics import CRITERIA
from slim.project import everything, project
from slim.records import Change, Forecast, Keep, Plan, Unit

DEFAULT_WEIGHTS: Mapping[str, float] = {"kl_output": 1.0, "variance": 0.25}
"""Of the mixes tried on the bundled model and task, none cost less at 5, 10, 20 and 30% (benchmarks/README.md)."""
FALLBACK_WEIGHTS: Mapping[str, float] = {"variance": 1.0}
"""For calibrations made with `--kl none`."""


def default_weights(calibration: Calibration) -> Mapping[str, float]:
    return DEFAULT_WEIGHTS if "kl_output" in calibration.metrics else FALLBACK_WEIGHTS


def prunability(values: NDArray[np.float64], high_is_prunable: bool) -> NDArray[np.float64]:
    """Ranks of `values` over the whole model as 0..1, ties sharing their mean; 1 = first to go."""
    ranks = rankdata(values if high_is_prunable else -values, axis=None) - 1
    return (ranks / max(1, values.size - 1)).reshape(values.shape)


def composite(calibration: Calibration, weights: Mapping[str, float], unit: Unit) -> NDArray[np.float64]:
    """Weighted mean of the chosen metrics' prunability: (L, H) for heads, (L,) for blocks; highest goes first.

    Raises InputError for a metric the calibration lacks at this level, a negative weight, or weights that are all 0.
    """
    there = calibration.level(unit)
    for name, weight in weights.items():
        if name not in there:
            raise InputError(
                f"weights: {name!r} is not measured per {unit} here: choose among {', '.join(sorted(there))}."
            )
        if not (weight >= 0 and math.isfinite(weight)):
            raise InputError(f"weights: {name}={weight} must be 0 or more.")
    total = sum(weights.values())
    if total <= 0:
        raise InputError("weights: every weight is 0: give at least one metric a weight above 0.")
    parts = [w / total * prunability(there[name], CRITERIA[name].high_is_prunable) for name, w in weights.items() if w]
    return np.sum(parts, axis=0)


def legal_heads(scores: NDArray[np.float64], threshold: float, kv_heads: int) -> tuple[int, ...]:
    """The heads of one layer that stay: the legal set with the largest Σ (threshold − score) over what it keeps.

    `scores` (H,) are prunabilities. Without constraints this sum is largest for exactly the heads below the threshold;
    legal sets keep equally many query heads in every KV group that stays, or nothing. For a given number of query
    heads per group the best heads of each group and the groups with a positive sum are the optimum, so trying every
    number is exact. Ties keep the heads with the lower index, and as few per group as reach the sum.
    """
    gains = (threshold - scores).reshape(kv_heads, -1)  # (K, G)
    order = np.argsort(-gains, axis=1, kind="stable")
    best, chosen = 0.0, ()
    for per_group in range(1, gains.shape[1] + 1):
        kept = np.sort(order[:, :per_group], axis=1)
        sums = np.take_along_axis(gains, kept, 1).sum(1)
        groups = [group for group in range(kv_heads) if sums[group] > 0]
        value = float(sums[groups].sum())
        if groups and value > best:
            best = value
            chosen = tuple(group * gains.shape[1] + int(head) for group in groups for head in kept[group])
    return chosen


def keep_by_threshold(scores: NDArray[np.float64], threshold: float, calibration: Calibration, unit: Unit) -> Keep:
    """What stays in each layer when everything scored at `threshold` or above should go."""
    facts = calibration.facts.model
    if unit == "block":
        return tuple(() if score >= threshold else tuple(range(facts.heads)) for score in scores)
    return tuple(legal_heads(row, threshold, facts.kv_heads) for row in scores)


def changes(scores: NDArray[np.float64], threshold: float, keep: Keep) -> tuple[Change, ...]:
    """The heads where the threshold alone and the legal shape differ."""
    found = []
    for layer, row in enumerate(scores):
        for head, score in enumerate(row):
            if (score < threshold) != (head in keep[layer]):
                found.append(Change(layer=layer, head=head, change="kept" if head in keep[layer] else "removed"))
    return tuple(found)


def removed_mask(keep: Keep, heads: int) -> NDArray[np.bool_]:
    """True where a head goes.  # (L, H)"""
    mask = np.ones((len(keep), heads), dtype=bool)
    for layer, kept in enumerate(keep):
        mask[layer, list(kept)] = False
    return mask


def removed_columns(removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Removed heads (L, H) as columns of the sketch (L, H+2): a layer without any head loses the whole block."""
    blocks = removed.all(1, keepdims=True)
    return np.concatenate((removed & ~blocks, blocks, np.zeros_like(blocks)), 1)


def forecast(calibration: Calibration, keep: Keep) -> Forecast | None:
    """Forecast loss of a plan on the sequences that did not choose it; None without a sketch.

    Where the calibration was checked, the correction fitted on measured removals is in it, and the interval is wider by
    how far the measured ones lay from the fit.
    """
    if calibration.sketch is None:
        return None
    unseen = calibration.sketch.fold(1)
    removed = removed_columns(removed_mask(keep, calibration.facts.model.heads))
    found = ratio_of_sums(unseen.costs(removed), unseen.tokens, calibration.facts.settings.seed)
    value, ends = float(found.value), (float(found.low), float(found.high))
    correction = calibration.check.correction if calibration.check else None
    factor = correction.factor(value) if correction else 1.0
    if len(unseen.tokens) < 2:
        return Forecast(nats_per_token=factor * value, sequences=len(unseen.tokens), factor=factor)
    low, high = (factor * _wider(end, value, correction.spread if correction else 0.0) for end in ends)
    return Forecast(nats_per_token=factor * value, low=low, high=high, sequences=len(unseen.tokens), factor=factor)


def _wider(end: float, middle: float, spread: float) -> float:
    """An end of an interval moved away from its middle by an error of its own, both relative."""
    if not 0 < end != middle:
        return end
    away = math.log(end / middle)
    return middle * math.exp(math.copysign(math.hypot(away, 1.96 * spread), away))


def make_plan(
    calibration: Calibration, threshold: float = 0.8, unit: Unit = "head", weights: Mapping[str, float] | None = None
) -> Plan:
    """The plan that removes what scores `threshold` or more, made legal, with its size and forecast loss.

    Raises InputError for a threshold that is no number of 0 or more, or that would remove every attention block.
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise InputError(f"threshold={threshold} must be a number of 0 or more; scores run from 0 to 1.")
    weights = dict(default_weights(calibration) if weights is None else weights)
    scores = composite(calibration, weights, unit)
    keep = keep_by_threshold(scores, threshold, calibration, unit)
    if not any(keep):
        raise InputError(
            f"threshold={threshold:g} would remove every attention block, and the last one cannot go: "
            f"choose a threshold above {float(scores.min()):.2f}."
        )
    facts = calibration.facts.model
    return Plan(
        model=facts,
        calibration=str(calibration.path.absolute()) if calibration.path else "",
        unit=unit,
        threshold=threshold,
        weights=weights,
        keep=keep,
        changes=changes(scores, threshold, keep) if unit == "head" else (),
        before=project(facts, everything(facts)),
        after=project(facts, keep),
        forecast=forecast(calibration, keep),
    )


def save(plan: Plan, output: Path) -> Path:
    """Writes the plan to a new or existing .json file."""
    if output.is_dir():
        raise InputError(f"output {str(output)!r} is a folder: name a .json file for the plan.")
    workspace.write_file(output, plan.model_dump_json(indent=1))
    workspace.remember(output, "plan")
    return output


def load(path: Path) -> Plan:
    """A saved plan. Raises InputError when `path` does not hold a legal one."""
    if not path.is_file():
        raise InputError(f"plan {str(path)!r} was not found: run `slim plan DIR --output {path}` first.")
    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "plan"
        raise InputError(
            f"plan {str(path)!r} is not valid: {field}: {first['msg']}. Make it again with `slim plan`."
        ) from error
    for name, size, keep in (("before", plan.before, everything(plan.model)), ("after", plan.after, plan.keep)):
        if size != project(plan.model, keep):
            raise InputError(
                f"plan {str(path)!r} is not valid: {name}: it is not the size of what `keep` keeps. "
                "Make it again with `slim plan`."
            )
    return plan
