"""The resources of a calibration: forwards, seconds, memory, disk."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from slim.calibration.facts import CalibrationSettings
from slim.core.records import ModelFacts
from slim.core.resources import Workload, memory_there, seconds_of
from slim.models.units import UNITS, UnitName

if TYPE_CHECKING:
    import torch

BLOCK_ROWS = 4
"""Rows on which every block's removal is measured: it is exact per row, so few rows rank blocks well."""
WATCH = 1.1
"""A watched forward, in forwards. This and the next ones were measured on the bundled model."""


def sketch_cost(draws: int) -> float:
    """Forwards that a token takes in the loss sketch."""
    return 1.4 + 1.0 * draws


def ablation_cost(layers: int, variants: int) -> float:
    """Forwards that a token takes when `variants` of every layer are left out, each starting at its own layer."""
    return 1 + variants * sum(0.25 + 0.75 * (layers - layer) / layers for layer in range(layers))


def levels_ablated(settings: CalibrationSettings) -> tuple[UnitName, ...]:
    """Return the units that are ablated one at a time."""
    return {"exact": ("head", "group", "block"), "fisher": ("block",), "none": ()}[settings.kl]


def rows_ablated(lengths: Sequence[int], settings: CalibrationSettings) -> list[int]:
    """The rows on which: every other one, or a few of these spread over the lengths where only blocks are left out.

    They are chosen before batching, so that its size changes nothing.
    """
    choosing = list(range(0, len(lengths), 2))
    if settings.kl == "exact" or len(choosing) <= BLOCK_ROWS:
        return choosing if settings.kl != "none" else []
    by_length = sorted(choosing, key=lengths.__getitem__)
    places = np.linspace(0, len(by_length) - 1, BLOCK_ROWS).round().astype(int)
    return [by_length[place] for place in places] if settings.kl != "none" else []


def forwards(facts: ModelFacts, lengths: Sequence[int], settings: CalibrationSettings) -> float:
    """How often a token goes through the model, counting what takes longer than a forward as that many."""
    count = sum(lengths)
    if settings.kl == "none":
        return WATCH * count
    variants = sum(UNITS[level].count(facts) for level in levels_ablated(settings))
    tokens = sum(lengths[index] for index in rows_ablated(lengths, settings))
    return (WATCH - 1 + sketch_cost(settings.draws)) * count + ablation_cost(facts.layers, variants) * tokens


def workload(
    facts: ModelFacts,
    lengths: Sequence[int],
    settings: CalibrationSettings,
    device: "torch.device",
    dtype: "torch.dtype",
) -> Workload:
    """Estimate the work of calibrating a model of these `facts` on rows of these `lengths` in tokens on `device`."""
    count = sum(lengths)
    work = forwards(facts, lengths, settings)
    parameters = facts.parameters
    longest = max(lengths) * min(settings.batch_size, len(lengths))
    floats = _matrix_sizes(facts.shapes.values())
    saved = longest * facts.layers * floats[1] if settings.kl != "none" else 0
    memory = parameters * dtype.itemsize + longest * floats[0] * 4 * 3 + saved * dtype.itemsize
    disk = count * facts.layers * 4 + len(lengths) * facts.layers * facts.heads * facts.head_dim * 8
    seconds = seconds_of(facts, work, device, dtype)
    return Workload(len(lengths), count, work, seconds, memory, disk, memory_there(device))


def _matrix_sizes(shapes: Iterable[tuple[int, ...]]) -> tuple[int, int]:
    """The vocabulary's size, and the numbers a layer keeps of a token for the way back."""
    matrices = [shape for shape in shapes if len(shape) == 2]
    vocabulary = max(max(shape) for shape in matrices)
    width = min(min(shape) for shape in matrices if max(shape) == vocabulary)
    return vocabulary, 30 * width
