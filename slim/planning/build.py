"""What every plan goes through, whoever chose what it keeps."""

import numpy as np
from numpy.typing import NDArray

from slim.calibration.facts import Forecast
from slim.calibration.forecast import forecast, warnings
from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.core.records import Keep, ModelFacts, Unit
from slim.models.architectures import architecture_of
from slim.planning.record import ByBudget, ByThreshold, Pins, Plan
from slim.planning.shapes import PINNED, changes, valid_shapes
from slim.planning.sizes import everything, project
from slim.planning.slicing import stock_shape, whole_blocks_only


def build_plan(
    calibration: Calibration,
    keep: Keep,
    unit: Unit,
    reason: ByThreshold | ByBudget,
    pins: Pins,
    uniform: bool,
    wanted: NDArray[np.bool_] | None = None,
    repaired: Forecast | None = None,
) -> Plan:
    """The plan that keeps `keep`, with everything that follows from it; `wanted` (L, H) is what was to stay,
    `repaired` the forecast for it once it is repaired, where that was measured."""
    facts, expected = calibration.facts.model, forecast(calibration, keep)
    return Plan(
        model=facts,
        calibration=str(calibration.path.absolute()) if calibration.path else "",
        calibrated=calibration.facts.started,
        unit=unit,
        uniform=uniform,
        reason=reason,
        pins=pins,
        keep=keep,
        changes=() if wanted is None else changes(wanted, keep),
        before=project(facts, everything(facts)),
        after=project(facts, keep),
        forecast=expected,
        repaired=repaired,
        notes=_notes(expected, repaired) if keep != everything(facts) else (),
    )


def _notes(expected: Forecast | None, repaired: Forecast | None) -> tuple[str, ...]:
    if repaired is None:
        return warnings(expected)
    return (f"made for repair: without it the forecast is {expected}", *warnings(repaired))


def check_unit(unit: Unit, facts: ModelFacts) -> None:
    """Raises InputError where the family does not allow to remove parts of an attention block."""
    if unit in ("head", "group") and architecture_of(facts.model_type).whole_blocks:
        raise whole_blocks_only(facts.model_type)


def units_per_layer(unit: Unit, facts: ModelFacts) -> int:
    return {"head": facts.heads, "group": facts.kv_heads, "block": 1, "layer": 1}[unit]


def pinned(gains: NDArray[np.float64], pins: Pins, unit: Unit, facts: ModelFacts) -> NDArray[np.float64]:
    """`gains` (L, units) where pins count for more than anything. Raises InputError for a pin outside of the model."""
    gains = gains.copy()
    for layer in pins.protect:
        if layer >= facts.layers:
            raise InputError(f"protect: layer {layer} is not there: the model has layers 0 to {facts.layers - 1}.")
    for name, places, gain in (("keep", pins.keep, PINNED), ("drop", pins.drop, -PINNED)):
        for layer, index in places:
            if layer >= facts.layers or index >= gains.shape[1]:
                raise InputError(
                    f"{name}: {layer}:{index} is not there: the model has layers 0 to {facts.layers - 1} and, "
                    f"in each, {unit}s 0 to {gains.shape[1] - 1}."
                )
            gains[layer, index] = gain
    gains[list(pins.protect)] = PINNED
    if not (gains < PINNED).any():
        raise InputError("protect: every layer is protected, so nothing can go: leave one out.")
    return gains


def shapes_for(facts: ModelFacts, unit: Unit) -> list[tuple[int, int]]:
    """(KV groups, query heads per group) that a uniform plan may give every layer.

    Raises InputError for a unit that cannot be uniform.
    """
    if unit == "block":
        raise InputError("uniform: layers with and without attention are not alike: choose unit head, group or layer.")
    found = [
        (groups, per_group)
        for groups, per_group in valid_shapes(facts.kv_heads, facts.group)
        if stock_shape(facts, groups * per_group) and (unit == "head" or per_group == facts.group)
    ]
    return found if unit != "layer" else [(facts.kv_heads, facts.group)]
