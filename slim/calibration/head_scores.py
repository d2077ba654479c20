"""The figures of every head as they are shown, and what leaving one out costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slim.calibration.criteria import CRITERIA
from slim.calibration.forecast import forecast
from slim.calibration.record import Calibration
from slim.calibration.scores import composite
from slim.core.statistics import Estimate
from slim.models.units import UNITS, LayerKeep, whole_model

DECADES = ("kl_output", "variance", "sketch", "damage")
"""Figures whose size says more than their difference."""


@dataclass(frozen=True)
class HeadScore:
    """A figure of every head (L, H) as it is shown: NaN where it was not measured."""

    name: str
    title: str
    unit: str
    estimate: Estimate
    high_is_prunable: bool

    @property
    def values(self) -> NDArray[np.float64]:
        return self.estimate.value

    @property
    def log(self) -> bool:
        """Whether it spans decades."""
        return self.name in DECADES

    def place(self, layer: int, head: int) -> tuple[int, int] | None:
        """The head's place among those measured, 1 = first to go, ties sharing the best; None where it was not."""
        known = np.isfinite(self.values)
        if not known[layer, head]:
            return None
        signed = -self.values if self.high_is_prunable else self.values
        return 1 + int((signed[known] < signed[layer, head]).sum()), int(known.sum())


def head_scores(calibration: Calibration, weights: Mapping[str, float]) -> dict[str, HeadScore]:
    """Every per-head figure there is, by name: the composite by `weights`, the metrics, and what is known of the cost.

    `sketch` is the forecast of leaving a head out alone on the held-out fold, `damage` what it really cost
    where the calibration was checked.
    """
    score = Estimate.unsure(composite(calibration, weights, "head"))
    found = [HeadScore("composite", "Composite score", "1 = first to go", score, True)]
    for name, levels in calibration.estimates.items():
        if "head" in levels:
            criterion = CRITERIA[name]
            found.append(HeadScore(name, criterion.title, criterion.unit, levels["head"], criterion.high_is_prunable))
    if calibration.sketch is not None:
        heads = calibration.sketch.fold(1).of_unit(
            UNITS["head"], calibration.facts.model, calibration.facts.settings.seed
        )
        found.append(HeadScore("sketch", "Forecast cost on other rows", "nats/token", heads, False))
    if calibration.check is not None:
        damage = np.full(score.value.shape, np.nan)
        for place, cost in zip(calibration.check.heads, calibration.check.damage, strict=True):
            damage[place] = cost
        found.append(HeadScore("damage", "Measured damage", "nats/token", Estimate.unsure(damage), False))
    return {measure.name: measure for measure in found}


@dataclass(frozen=True)
class Cost:
    """The loss of leaving something out, in nats/token, with its 95% interval where there is one."""

    what: str
    value: float
    low: float | None
    high: float | None
    measured: bool
    factor: float = 1.0
    """Correction that is in a forecast."""


def costs(calibration: Calibration, layer: int, head: int) -> list[Cost]:
    """The cost of leaving out the head alone, all heads that share its keys, and its whole attention block.

    Heads are forecast on the held-out fold, corrected where the calibration was checked; the head is
    measured too where it was among those left out alone, and a block always is. Nothing where KL was not measured.
    """
    if calibration.sketch is None:
        return []
    facts = calibration.facts.model
    first = head // facts.group * facts.group
    group = range(first, first + facts.group)
    found = [_forecast(calibration, "The head alone", layer, [head])]
    if calibration.check is not None and (layer, head) in calibration.check.heads:
        damage = calibration.check.damage[calibration.check.heads.index((layer, head))]
        found.append(Cost("The head alone", damage, None, None, measured=True))
    if 1 < facts.group < facts.heads:
        found.append(_forecast(calibration, f"Its KV group, heads {first} to {group[-1]}", layer, group))
    block = calibration.estimates["kl_output"]["block"]
    value, low, high = (float(part[layer]) for part in (block.value, block.low, block.high))
    known = np.isfinite((low, high)).all()
    found.append(Cost("Its attention block", value, low if known else None, high if known else None, measured=True))
    return found


def _forecast(calibration: Calibration, what: str, layer: int, gone: Sequence[int]) -> Cost:
    keep = list(whole_model(calibration.facts.model))
    keep[layer] = LayerKeep(heads=tuple(head for head in keep[layer].heads if head not in gone))
    found = forecast(calibration, tuple(keep))
    if found is None:
        raise ValueError("the calibration holds no loss sketch")
    return Cost(what, found.nats_per_token, found.low, found.high, measured=False, factor=found.factor)
