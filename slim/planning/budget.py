"""Plans by budget: the least forecast loss within limits of size and speed, or the smallest model within a loss.

Each layer has candidates, one for every valid shape: its cost alone comes from the loss sketch, its sizes from the size
model. Choosing one candidate per layer is a small integer program, solved exactly with HiGHS (Huangfu & Hall 2018,
through scipy) for costs that add up over layers. They do not quite: removals in two layers interact, and the sketch
knows how. So the program is solved again with each candidate's cost beside what the other layers lost, a few layers at
a time, and then pairs of layers exchange, as long as the joint cost falls; and the result counts only if it is better
on the rows that took no part in choosing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim.calibration.facts import Forecast
from slim.calibration.forecast import forecast
from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.models.units import UNITS, Keep, UnitName, whole_model
from slim.planning.after_repair_record import AfterRepairSketch
from slim.planning.build import build_plan, check_unit
from slim.planning.layer_options import LayerCandidates, layer_candidates
from slim.planning.quantities import LIMITS, LOSS, QUANTITIES
from slim.planning.record import ByBudget, Pins, Plan
from slim.planning.served_size import ServedSizes
from slim.planning.sizes import Sizes, size_models
from slim.planning.valid_choices import valid_choices
from slim.targets.target import Target

MOVES = 12
"""Most layers that change in one step of the search that minds interactions."""
STEPS, EXCHANGES, TRIED = 24, 12, 1500
BISECTIONS, MORE = 10, 5
TIGHTENED, ROUNDED = 6, 1e-9


class Infeasible(Exception):
    """No choice satisfies all limits."""


@dataclass(frozen=True)
class Bound:
    """The amounts of each option of each layer, and the most that all layers may take together."""

    amounts: list[NDArray[np.float64]]
    most: float


def plan_by_budget(
    calibration: Calibration,
    limits: Mapping[str, float],
    unit: UnitName = "head",
    *,
    uniform: bool = False,
    pins: Pins | None = None,
    absorbed: AfterRepairSketch | None = None,
    targets: Sequence[Target] = (),
) -> Plan:
    """The plan with the least forecast loss within `limits`; with a limit of loss alone, the one with the fewest bytes.

    With a sketch of the plan after repair (`absorbed`), that is the loss once it is repaired. The plan is valid for all
    `targets`, and `bytes` are those of the first of them that has a number format of its own.

    `limits` are `heads`, `params`, `bytes`, `kv`, `flops` (share of the original at most), `prefill`, `decode` (times
    as fast at least) and `loss` (nats/token at most, on the held-out fold).

    Raises InputError for a limit that makes no sense, or that cannot be met: it says which, and what can be reached.
    """
    check_limits(limits)
    planner = Planner(calibration, unit, uniform, pins, absorbed, targets)
    keep = planner.solve(limits)
    reason = ByBudget(limits=dict(limits))
    repaired = planner.repaired(keep)
    return build_plan(calibration, keep, unit, reason, planner.pins, uniform, repaired=repaired, targets=targets)


def curve(
    calibration: Calibration,
    unit: UnitName = "head",
    *,
    uniform: bool = False,
    pins: Pins | None = None,
    points: int = 50,
) -> Iterator[tuple[float, Keep]]:
    """The cheapest plan for each of `points` budgets of bytes from the original down to what can be reached, as
    (share of the bytes, keep), one by one.
    """
    planner = Planner(calibration, unit, uniform, pins)
    for share in np.linspace(1, planner.least("bytes"), points):
        keep = planner.additive({"bytes": float(share) + 1e-9})
        yield planner.models["bytes"].of(keep, planner.facts.group) / planner.whole["bytes"], keep


def check_limits(limits: Mapping[str, float]) -> None:
    """Raises InputError for an unknown limit or one out of its range."""
    known = LIMITS
    if not limits:
        raise InputError(f"budget: it is empty: give at least one of {', '.join(known)}, for instance params=0.9.")
    for name, value in limits.items():
        if name not in known:
            raise InputError(f"budget: {name!r} is not a limit: choose among {', '.join(known)}.")
        if name == LOSS:
            if not 0 < value < np.inf:
                raise InputError(f"budget: loss={value:g} must be above 0 nats/token.")
        elif QUANTITIES[name].faster:
            if not 1 <= value < np.inf:
                raise InputError(f"budget: {name}={value:g} must be times as fast as the original: 1 or more.")
        elif not 0 < value <= 1:
            raise InputError(f"budget: {name}={value:g} must be a share of the original, above 0 and at most 1.")


class Planner:
    """Everything that plans of one model, unit and set of pins share."""

    def __init__(
        self,
        calibration: Calibration,
        unit: UnitName,
        uniform: bool = False,
        pins: Pins | None = None,
        absorbed: AfterRepairSketch | None = None,
        targets: Sequence[Target] = (),
    ) -> None:
        if calibration.sketch is None:
            raise InputError("budget: the calibration has no loss sketch: calibrate with --kl fisher or exact.")
        self.calibration, self.facts, self.unit, self.pins = calibration, calibration.facts.model, unit, pins or Pins()
        check_unit(unit, self.facts)
        if absorbed and UNITS[unit].whole_layers:
            raise InputError(
                "unit=layer: only heads, groups and blocks have a forecast after repair: choose one of them."
            )
        self.absorbed, choosing = absorbed, absorbed.fold(0) if absorbed else None
        self.models: dict[str, Sizes] = {**size_models(self.facts)}
        if served := next((target for target in targets if target.format), None):
            self.models["bytes"] = ServedSizes(self.facts, served)
        whole = whole_model(self.facts)
        self.whole = {name: model.of(whole, self.facts.group) for name, model in self.models.items()}
        sketch = calibration.sketch.fold(0)
        choices = valid_choices(self.facts, unit, targets, uniform)
        found = [layer_candidates(self.facts, sketch, unit, self.pins, valid, choosing) for valid in choices]
        self.options = [options for options in found if options]
        if not self.options:
            raise InputError("pins: no valid shape honors all of them: take one back.")

    def additive(self, limits: Mapping[str, float]) -> Keep:
        """The exact optimum if the costs of layers added up. Raises Infeasible."""
        options, chosen = self._cheapest(limits)
        return options.keep(chosen)

    def solve(self, limits: Mapping[str, float]) -> Keep:
        """The plan for `limits`, interactions minded. Raises InputError for limits that cannot be met."""
        sizes = {name: value for name, value in limits.items() if name != LOSS}
        if not sizes:
            return self._smallest(limits[LOSS])
        try:
            keep = self._within(sizes)
        except Infeasible:
            raise InputError(self._why(sizes)) from None
        if LOSS in limits and (least := self.loss(keep)) > limits[LOSS]:
            raise InputError(
                f"budget: loss={limits[LOSS]:g} cannot be met together with {_words(sizes)}: the least forecast loss "
                f"found there is {least:.3f} nats/token. Allow more loss, or ask for less."
            )
        return keep

    def _within(self, sizes: Mapping[str, float]) -> Keep:
        """The plan within limits, where a format's bytes do not quite add up over layers: they are asked for less."""
        asked = dict(sizes)
        for _ in range(TIGHTENED):
            keep = self._minded(asked)
            over = self.models["bytes"].of(keep, self.facts.group) / self.whole["bytes"] - sizes.get("bytes", np.inf)
            if over <= ROUNDED:
                return keep
            asked["bytes"] -= over
        raise Infeasible

    def loss(self, keep: Keep) -> float:
        """Forecast nats/token on the held-out fold, as a plan shows it."""
        found = self.repaired(keep) or forecast(self.calibration, keep)
        return found.nats_per_token if found else float("nan")

    def repaired(self, keep: Keep) -> Forecast | None:
        """The forecast for a plan once it is repaired, where that was measured."""
        return self.absorbed.forecast(keep, self.calibration.facts.settings.seed) if self.absorbed else None

    def least(self, quantity: str, limits: Mapping[str, float] | None = None) -> float:
        """The smallest share of the original that a quantity can be brought to within `limits`. Raises Infeasible."""
        found = []
        for options in self.options:
            with suppress(Infeasible):
                amounts = self._amounts(options, quantity)
                chosen = self._solved(options, amounts, limits or {})
                found.append(sum(amount[option] for amount, option in zip(amounts, chosen, strict=True)))
        if not found:
            raise Infeasible
        return float(min(found) + self.models[quantity].fixed) / self.whole[quantity]

    def _minded(self, sizes: Mapping[str, float]) -> Keep:
        """The better one of the additive optimum and what minding interactions makes of it, by unseen rows."""
        options, chosen = self._cheapest(sizes)
        return min((options.keep(chosen), options.keep(self._improved(options, chosen, sizes))), key=self.loss)

    def _smallest(self, loss: float) -> Keep:
        """The fewest bytes whose forecast on unseen rows is within `loss`: bisection over the budget of bytes."""
        best, low, high = whole_model(self.facts), self.least("bytes"), 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            keep = self.additive({"bytes": middle})
            if self.loss(keep) <= loss:
                high, best = middle, keep
            else:
                low = middle
        for share in np.linspace(high, low - 0.25 * (1 - high), MORE)[1:]:  # interactions may allow a little less
            with suppress(Infeasible):
                keep = self._minded({"bytes": float(share)})
                if self.loss(keep) <= loss:
                    best = keep
        return best

    def _cheapest(self, limits: Mapping[str, float]) -> tuple[LayerCandidates, list[int]]:
        found = []
        for options in self.options:
            with suppress(Infeasible):
                chosen = self._solved(options, options.alone, limits)
                cost = sum(alone[option] for alone, option in zip(options.alone, chosen, strict=True))
                found.append((float(cost), options, chosen))
        if not found:
            raise Infeasible
        return min(found, key=lambda one: one[0])[1:]

    def _improved(self, options: LayerCandidates, chosen: list[int], limits: Mapping[str, float]) -> list[int]:
        """Steps of a few layers each, then exchanges between two layers, as long as the joint cost falls."""
        moves, cost = min(MOVES, self.facts.layers), options.joint(chosen)
        for _ in range(STEPS):
            other = self._solved(options, options.beside(chosen), limits, (chosen, moves))
            if other == chosen:
                break
            if (reached := options.joint(other)) < cost:
                chosen, cost = other, reached
            elif moves <= 2:  # exchanges are exact there
                break
            else:
                moves = (moves + 1) // 2
        for _ in range(EXCHANGES):
            other = self._exchanged(options, chosen, limits)
            if other is None:
                break
            chosen = other
        return chosen

    def _exchanged(self, options: LayerCandidates, chosen: list[int], limits: Mapping[str, float]) -> list[int] | None:
        """The best change of one or two layers within `limits`, interactions exact; None where none is better."""
        sizes = [len(kept) for kept in options.kept]
        layer = np.repeat(np.arange(len(sizes)), sizes)
        starts = np.cumsum([0, *sizes[:-1]])
        beside = options.beside(chosen)
        gain = np.concatenate([cost - cost[at] for cost, at in zip(beside, chosen, strict=True)])
        tried = np.argsort(np.abs(gain), kind="stable")[:TRIED]  # with every choice that stays as it is
        change = np.concatenate([effect - effect[at] for effect, at in zip(options.effects, chosen, strict=True)])
        gain, change = gain[tried].astype(np.float32), change[tried].astype(np.float32)  # (n,), (n, R)
        joint = gain[:, None] + gain[None] + change @ change.T / options.tokens
        joint[layer[tried][:, None] == layer[tried][None]] = np.inf
        for bound in self._bounds(options, limits):
            now = sum(amount[at] for amount, at in zip(bound.amounts, chosen, strict=True))
            more = np.concatenate([amount - amount[at] for amount, at in zip(bound.amounts, chosen, strict=True)])
            joint[more[tried][:, None] + more[tried][None] > bound.most - now + 1e-12] = np.inf
        pair = np.unravel_index(int(joint.argmin()), joint.shape)
        if joint[pair] >= -1e-6 * options.joint(chosen):
            return None
        found = [*chosen]
        for place in tried[list(pair)]:
            found[layer[place]] = int(place - starts[layer[place]])
        return found if any(kept.attention for kept in options.keep(found)) else None

    def _bounds(self, options: LayerCandidates, limits: Mapping[str, float]) -> list["Bound"]:
        """Every limit as shares of the original."""
        found = []
        for name, limit in limits.items():
            field = QUANTITIES[name].field
            whole = self.whole[field]
            amounts = [amount / whole for amount in self._amounts(options, field)]
            found.append(Bound(amounts, QUANTITIES[name].share(limit) - self.models[field].fixed / whole))
        return found

    def _solved(
        self,
        options: LayerCandidates,
        costs: Sequence[NDArray[Any]],
        limits: Mapping[str, float],
        near: tuple[Sequence[int], int] | None = None,
    ) -> list[int]:
        """One option per layer with the least sum of `costs` within `limits`; `near` a choice, but for some layers.

        Raises Infeasible.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        sizes = [len(kept) for kept in options.kept]
        layers, starts = len(sizes), np.cumsum([0, *sizes[:-1]])
        every = np.repeat(np.arange(layers), sizes)
        one_each = csr_array((np.ones(len(every)), (every, np.arange(len(every)))))
        without = np.array([float(not option.attention) for kept in options.kept for option in kept])
        constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(without[None], -np.inf, layers - 1)]
        for bound in self._bounds(options, limits):
            amounts = np.concatenate(bound.amounts)
            scale = 1 / max(float(amounts.max()), 1e-30)
            constraints.append(LinearConstraint(scale * amounts[None], -np.inf, scale * bound.most))
        if near is not None:
            stays = np.zeros(len(every))
            stays[starts + np.asarray(near[0])] = 1
            constraints.append(LinearConstraint(stays[None], layers - near[1], np.inf))
        flat = np.concatenate(costs).astype(float)
        found = milp(
            flat / max(float(np.abs(flat).max()), 1e-30),
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 1e-6},
        )
        if found.x is None:
            raise Infeasible
        return [int(part.argmax()) for part in np.split(found.x, starts[1:])]

    def _amounts(self, options: LayerCandidates, quantity: str) -> list[NDArray[np.int64]]:
        """Return the amount of each option of each layer."""
        model, group = self.models[quantity], self.facts.group
        return [
            np.array([model.of_layer(layer, option, group) for option in kept])
            for layer, kept in enumerate(options.kept)
        ]

    def _why(self, sizes: Mapping[str, float]) -> str:
        """Which of the limits binds, and what can be reached."""
        for name, limit in sizes.items():
            least = self.least(QUANTITIES[name].field)
            if QUANTITIES[name].share(limit) < least:
                return f"budget: {name}={limit:g} cannot be met by removing {self.unit}s: {_reach(name, least)}."
        *others, last = sizes
        rest = {name: sizes[name] for name in others}
        try:
            least = self.least(QUANTITIES[last].field, rest)
        except Infeasible:
            return self._why(rest)
        return f"budget: {last}={sizes[last]:g} cannot be met together with {_words(rest)}: {_reach(last, least)}."


def _reach(name: str, least: float) -> str:
    return f"the most is {1 / least:.2f}" if QUANTITIES[name].faster else f"the least is {least:.3f}"


def _words(limits: Mapping[str, float]) -> str:
    return " and ".join(f"{name}={value:g}" for name, value in limits.items())
