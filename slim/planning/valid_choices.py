"""The shapes of layers that are valid for a unit of removal and for all targets of a plan."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.models.units import NO_LAYER, UNITS, Keep, LayerKeep, Shape, UnitName, head_counts, whole_model
from slim.planning.build import uniform_shapes
from slim.planning.served_size import matrices
from slim.targets.matrices import Matrix
from slim.targets.target import Target

PROJECTED = ("query", "key", "value", "fused")
"""Kinds of matrices of whose shape pruning changes the number of rows alone."""


@dataclass(frozen=True)
class ValidChoice:
    """One of `shapes` of a layer's attention, or `gone` where a layer may go."""

    shapes: tuple[Shape, ...]
    gone: LayerKeep | None


def valid_choices(
    facts: ModelFacts, unit: UnitName, targets: Sequence[Target] = (), uniform: bool = False
) -> list[ValidChoice]:
    """Return what layers may keep; of several choices a plan takes one for all its layers.

    Raises InputError where no plan is valid: it names the rule.
    """
    row = UNITS[unit]
    for target in targets:
        if reason := target.why_not_model(facts):
            raise InputError(f"target={target.name!r}: {reason}; choose another target.")
        if reason := why_not_width(facts, target):
            raise InputError(f"target={target.name!r}: {reason}, which pruning does not change; choose another format.")
    shapes = uniform_shapes(facts, unit) if uniform and not row.whole_layers else row.shapes(facts)
    found = [shape for shape in shapes if not any(target.why_not(facts, shape) for target in targets)]
    if not found:
        reasons = [f"{target.name}: {reason}" for target in targets if (reason := target.why_not(facts, shapes[-1]))]
        raise InputError(
            f"target: no {row.noun} can be removed so that a layer is valid: {'; '.join(reasons)}. Nearest valid "
            f"shapes of a layer: {_nearest(facts, targets)}."
        )
    gone: LayerKeep | None = NO_LAYER if uniform and not row.whole_layers else row.gone
    if gone is not None and not all(may_go(target, facts, gone) for target in targets):
        gone = None
    return [ValidChoice(tuple(one), gone) for one in _alike(facts, found, targets, uniform and not row.whole_layers)]


def check_valid(facts: ModelFacts, keep: Keep, target: Target) -> None:
    """Raise InputError where a target does not take what stays, with the layer and the rule."""
    if reason := target.why_not_model(facts):
        raise InputError(f"target={target.name!r}: {reason}.")
    counts = [head_counts(kept, facts.group) for kept in keep]
    shapes = [(groups, queries // groups) if groups else None for queries, groups in counts]
    for layer, (kept, shape) in enumerate(zip(keep, shapes, strict=True)):
        if shape is None and not may_go(target, facts, kept):
            what = "layer" if not kept.layer else "attention block"
            raise InputError(f"target={target.name!r}: it takes no model that lacks the {what} of layer {layer}.")
        if shape is not None and (reason := target.why_not(facts, shape)):
            raise InputError(
                f"target={target.name!r}: layer {layer} has {shape[0] * shape[1]} query and {shape[0]} KV heads, and "
                f"{reason}. Nearest valid shapes of a layer: {_nearest(facts, [target], shape)}."
            )
    there = {shape for shape in shapes if shape is not None}
    if len([*_alike(facts, sorted(there), [target], False)]) > 1:
        raise InputError(f"target={target.name!r}: its layers must be alike: plan with --target {target.name}.")


def why_not_width(facts: ModelFacts, target: Target) -> str | None:
    """Return why a format refuses matrices whose rows pruned heads leave as they are; None where it does not."""
    for one in matrices(facts, whole_model(facts)) if target.format else ():
        fixed = {"gate": one.shape, "up": one.shape, "down": one.shape} | dict.fromkeys(PROJECTED, (0, one.row))
        if one.kind in fixed and target.format:
            shape = fixed[one.kind]
            if reason := target.format.refuses(Matrix(one.name, one.kind, shape)):
                return f"{one.name}: {reason}"
    return None


def may_go(target: Target, facts: ModelFacts, gone: LayerKeep) -> bool:
    """Return whether a target takes a layer of which this is left: nothing, or its MLP."""
    return target.runtime.layers if not gone.layer else target.without_attention(facts)


def _alike(
    facts: ModelFacts, shapes: Iterable[Shape], targets: Sequence[Target], uniform: bool
) -> Iterator[list[Shape]]:
    """Yield sets of shapes that may stand beside each other."""
    heads = uniform or any(target.heads(facts) == "all layers" for target in targets)
    groups = uniform or any(target.groups(facts) == "all layers" for target in targets)

    def key(shape: Shape) -> tuple[int, int]:
        return (shape[0] * shape[1] if heads else 0, shape[0] if groups else 0)

    for _, alike in groupby(sorted(shapes, key=key), key):
        yield sorted(alike)


def _nearest(facts: ModelFacts, targets: Sequence[Target], to: Shape | None = None) -> str:
    """Return the valid shapes closest to one in words."""
    groups, per_group = to or (facts.kv_heads, facts.group)
    every = UNITS["head"].shapes(facts)
    valid = [shape for shape in every if not any(target.why_not(facts, shape) for target in targets)]
    valid.sort(key=lambda shape: (abs(shape[0] * shape[1] - groups * per_group), abs(shape[0] - groups)))
    words = [f"{n * m} query and {n} KV heads" for n, m in valid[:3]]
    return ", ".join(words) or "none"


def what_targets_cost(free: Keep, keep: Keep, facts: ModelFacts) -> tuple[str, ...]:
    """Return a note on the layers where `keep`, which is valid, has other heads than the plan without targets."""
    more: dict[int, list[int]] = {}
    for layer, (one, other) in enumerate(zip(free, keep, strict=True)):
        if change := len(other.heads) - len(one.heads):
            more.setdefault(change, []).append(layer)
    words = [
        f"{abs(change)} {'more' if change > 0 else 'fewer'} in layer{'s' if len(layers) > 1 else ''} "
        + ", ".join(map(str, layers))
        for change, layers in sorted(more.items(), reverse=True)
    ]
    return (f"to be valid for its targets it keeps other heads: {'; '.join(words)}",) if words else ()
