"""The steps of every plan, by whichever rule it was chosen."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slim.calibration.facts import Forecast
from slim.calibration.forecast import forecast, warnings
from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.models.architectures import architecture_of
from slim.models.columns import removed_heads
from slim.models.units import UNITS, Keep, Shape, UnitName, whole_model
from slim.planning.record import ByBudget, ByThreshold, Pins, Plan
from slim.planning.served_size import served
from slim.planning.shapes import changes
from slim.planning.sizes import original_size, size_of
from slim.planning.slicing import stock_shape, whole_blocks_only
from slim.targets.target import Target


def build_plan(
    calibration: Calibration,
    keep: Keep,
    unit: UnitName,
    reason: ByThreshold | ByBudget,
    pins: Pins,
    uniform: bool,
    wanted: NDArray[np.bool_] | None = None,
    repaired: Forecast | None = None,
    targets: Sequence[Target] = (),
    notes: tuple[str, ...] = (),
) -> Plan:
    """The plan that keeps `keep`, with everything that follows from it; `wanted` (L, H) is what was to stay,
    `repaired` the forecast after repair, where that was measured, and `notes` are said before all others."""
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
        before=original_size(facts),
        after=size_of(facts, keep),
        forecast=expected,
        repaired=repaired,
        targets=tuple(served(facts, keep, target) for target in targets),
        notes=(
            *notes,
            *(_notes(expected, repaired) if keep != whole_model(facts) else ()),
            *_not_followed(pins, unit, keep, facts),
        ),
    )


def _not_followed(pins: Pins, unit: UnitName, keep: Keep, facts: ModelFacts) -> tuple[str, ...]:
    """Return a note that names the pins that a plan's shapes have no room for, if there are any."""
    wanted = pinned(pins, unit, facts)
    gone = removed_heads(keep, facts.heads).reshape(*wanted.shape, -1)  # (L, count, heads of a unit)
    stay = [f"{layer}:{index}" for layer, index in np.argwhere((wanted == 1) & gone.any(2))]
    go = [f"{layer}:{index}" for layer, index in np.argwhere((wanted == -1) & ~gone.all(2))]
    said = [f"{word} {', '.join(places)}" for word, places in (("keep", stay), ("drop", go)) if places]
    return (f"pins not followed, as the valid shapes have no room for them: {'; '.join(said)}",) if said else ()


def _notes(expected: Forecast | None, repaired: Forecast | None) -> tuple[str, ...]:
    if repaired is None:
        return warnings(expected)
    return (f"made for repair: without it the forecast is {expected}", *warnings(repaired))


def check_unit(unit: UnitName, facts: ModelFacts) -> None:
    """Raises InputError where the family does not allow to remove parts of an attention block."""
    if UNITS[unit].slices and architecture_of(facts.model_type).whole_blocks:
        raise whole_blocks_only(facts.model_type)


def pinned(pins: Pins, unit: UnitName, facts: ModelFacts) -> NDArray[np.int64]:
    """1 where a unit is pinned to stay, −1 where it is pinned to go, else 0.  # (L, count)

    Raises InputError for a pin outside of the model, and where nothing may go.
    """
    found = np.zeros((facts.layers, UNITS[unit].count(facts)), dtype=np.int64)
    for layer in pins.protect:
        if layer >= facts.layers:
            raise InputError(f"protect: layer {layer} is not there: the model has layers 0 to {facts.layers - 1}.")
    for name, places, value in (("keep", pins.keep, 1), ("drop", pins.drop, -1)):
        for layer, index in places:
            if layer >= facts.layers or index >= found.shape[1]:
                raise InputError(
                    f"{name}: {layer}:{index} is not there: the model has layers 0 to {facts.layers - 1} and, "
                    f"in each, {unit}s 0 to {found.shape[1] - 1}."
                )
            found[layer, index] = value
    found[list(pins.protect)] = 1
    if (found == 1).all():
        raise InputError("protect: every layer is protected, so nothing can go: leave one out.")
    return found


def uniform_shapes(facts: ModelFacts, unit: UnitName) -> list[Shape]:
    """The shapes that a uniform plan may give every layer: those that the family's stock class takes.

    Raises InputError for a unit that cannot be uniform.
    """
    found = UNITS[unit]
    if found.single and not found.whole_layers:
        raise InputError("uniform: layers with and without attention are not alike: choose unit head, group or layer.")
    return [shape for shape in found.shapes(facts) if stock_shape(facts, shape[0] * shape[1])]
