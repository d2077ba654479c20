"""The state of the board, as a plan and as a link that anyone can read."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, TypeVar

import numpy as np
from pydantic import Field

from slim.calibration.criteria import CRITERIA
from slim.calibration.record import Calibration
from slim.calibration.scores import composite, default_weights, measured
from slim.core.errors import InputError
from slim.core.records import ModelFacts, Place, Record
from slim.models.units import UNITS, UnitName
from slim.planning.build import check_unit, uniform_shapes
from slim.planning.record import Pins, Plan
from slim.planning.threshold import plan_by_threshold

THRESHOLD = 0.8
"""The first one on the board."""
Value = TypeVar("Value")
NotNegative = Annotated[float, Field(ge=0)]


class BoardState(Record):
    """The settings of a plan by threshold, as they are set on the board."""

    unit: UnitName
    threshold: NotNegative = THRESHOLD
    weights: dict[str, NotNegative]
    per_layer: dict[Annotated[int, Field(ge=0)], NotNegative] = Field(default={})
    pins: Pins = Pins()
    uniform: bool = False

    def plan(self, calibration: Calibration) -> Plan:
        """The plan of this choice, by the first weights where all are 0. Raises InputError as `make_plan` does."""
        return plan_by_threshold(
            calibration,
            self.threshold,
            self.unit,
            self.weights if any(self.weights.values()) else None,
            per_layer=self.per_layer,
            pins=self.pins,
            uniform=self.uniform,
        )


def why_not(calibration: Calibration, unit: UnitName) -> str | None:
    """Why nothing can be removed by this unit here, in a sentence; None where it can."""
    try:
        check_unit(unit, calibration.facts.model)
        composite(calibration, default_weights(calibration, unit), unit)
    except InputError as error:
        return str(error)
    return None


def why_not_uniform(facts: ModelFacts, unit: UnitName) -> str | None:
    """Why plans by this unit cannot have one shape in all layers; None where they can."""
    try:
        uniform_shapes(facts, unit)
    except InputError as error:
        return str(error)
    return None


def metrics_of(calibration: Calibration, unit: UnitName) -> tuple[str, ...]:
    """The metrics that may weigh in the score of a unit, in the order of CRITERIA."""
    there = measured(calibration, unit)
    return tuple(name for name in CRITERIA if name in there)


def first_state(calibration: Calibration, unit: UnitName | None = None) -> BoardState:
    """Return the first state: `unit`, or else the smallest that can be removed, at the first threshold and weights."""
    unit = unit or next(unit for unit in UNITS if why_not(calibration, unit) is None)
    return BoardState(unit=unit, weights=_all_weights(calibration, unit, default_weights(calibration, unit)))


def to_query(choice: BoardState) -> dict[str, str]:
    """The choice as parameters of a link."""
    pairs = {
        "unit": choice.unit,
        "threshold": _digits(choice.threshold),
        "weights": _pairs({name: weight for name, weight in choice.weights.items() if weight > 0}),
        "keep": _places(choice.pins.keep),
        "drop": _places(choice.pins.drop),
        "protect": ",".join(map(str, choice.pins.protect)),
        "layers": _pairs(choice.per_layer),
        "uniform": "1" if choice.uniform else "",
    }
    return {name: text for name, text in pairs.items() if text}


def from_query(query: Mapping[str, str], calibration: Calibration) -> tuple[BoardState, tuple[str, ...]]:
    """The choice that a link's parameters name, and a sentence for each that cannot be followed and is left out."""
    facts, notes = calibration.facts.model, list[str]()

    def read(name: str, parse: Callable[[str], Value], otherwise: Value) -> Value:
        text = query.get(name, "").strip()
        if not text:
            return otherwise
        try:
            return parse(text)
        except (ValueError, InputError) as error:
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            notes.append(f"the link's {name}={shown} is left out: {str(error).rstrip('.')}.")
            return otherwise

    unit: UnitName = read("unit", partial(_unit, calibration=calibration), first_state(calibration).unit)
    first = first_state(calibration, unit)
    bounds = facts.layers, UNITS[unit].count(facts)
    keep = read("keep", lambda text: _read_places(text, *bounds), ())
    drop = read("drop", lambda text: _read_places(text, *bounds), ())
    if both := sorted(set(keep) & set(drop)):
        notes.append(f"the link's {_places(tuple(both))} is both kept and dropped, so it is left out.")
    choice = BoardState(
        unit=unit,
        threshold=read("threshold", _number, first.threshold),
        weights=read("weights", lambda text: _read_weights(text, calibration, unit), first.weights),
        per_layer=read("layers", lambda text: _read_layers(text, facts), {}),
        pins=Pins(
            keep=tuple(place for place in keep if place not in both),
            drop=tuple(place for place in drop if place not in both),
            protect=read("protect", lambda text: tuple(layer for layer, _ in _read_places(text, facts.layers, 1)), ()),
        ),
        uniform=read("uniform", lambda text: _read_switch(text, facts, unit), False),
    )
    return choice, tuple(notes)


def _all_weights(calibration: Calibration, unit: UnitName, weights: Mapping[str, float]) -> dict[str, float]:
    return {name: float(weights.get(name, 0.0)) for name in metrics_of(calibration, unit)}


def _digits(value: float) -> str:
    """As few digits as tell the number from every other."""
    return np.format_float_positional(value, trim="-")


def _pairs(numbers: Mapping[str, float] | Mapping[int, float]) -> str:
    return ",".join(f"{name}:{_digits(value)}" for name, value in numbers.items())


def _places(places: tuple[Place, ...]) -> str:
    return ",".join(f"{layer}:{index}" for layer, index in places)


def _unit(text: str, calibration: Calibration) -> UnitName:
    if text not in UNITS:
        raise ValueError(f"units are {', '.join(UNITS)}")
    if reason := why_not(calibration, text):
        raise ValueError(reason)
    return text


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("it must be a number of 0 or more")
    return value


def _read_pairs(text: str) -> dict[str, float]:
    pairs = [part.replace("=", ":").rpartition(":") for part in text.split(",")]
    return {name.strip(): _number(value) for name, _, value in pairs}


def _read_weights(text: str, calibration: Calibration, unit: UnitName) -> dict[str, float]:
    given, there = _read_pairs(text), metrics_of(calibration, unit)
    for name in given:
        if name not in there:
            raise ValueError(f"{name!r} is not measured per {unit} here; {', '.join(there)} are")
    if not any(given.values()):
        raise ValueError("at least one metric needs a weight above 0")
    largest = max(1.0, *given.values())
    return _all_weights(calibration, unit, {name: weight / largest for name, weight in given.items()})


def _read_layers(text: str, facts: ModelFacts) -> dict[int, float]:
    found = {}
    for name, value in _read_pairs(text).items():
        ((layer, _),) = _read_places(name, facts.layers, 1)
        found[layer] = value
    return found


def _read_places(text: str, layers: int, per_layer: int) -> tuple[Place, ...]:
    found = []
    for part in text.split(","):
        layer, _, index = (piece.strip() for piece in part.partition(":"))
        if not (layer.isdecimal() and (index or "0").isdecimal()):
            raise ValueError(f"{part!r} is not of the form layer:number")
        place = int(layer), int(index or 0)
        if place[0] >= layers or place[1] >= per_layer:
            raise ValueError(f"{part} is not there: layers run to {layers - 1} and numbers in each to {per_layer - 1}")
        found.append(place)
    return tuple(dict.fromkeys(found))


def _read_switch(text: str, facts: ModelFacts, unit: UnitName) -> bool:
    if text not in ("0", "1"):
        raise ValueError("it is 1 or 0")
    if text == "1" and (reason := why_not_uniform(facts, unit)):
        raise ValueError(reason)
    return text == "1"
