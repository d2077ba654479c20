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
SECOND_RUN = 1.5
"""Forwards more that a token takes where the layers' weights are read from their files: a second run, and reading."""
NUMBERS_KEPT = 30
"""Numbers that a layer keeps of a token for the way back, in widths of the model."""


def sketch_cost(draws: int, backward: str = "float32") -> float:
    """Forwards that a token takes in the loss sketch, whose `backward` may be in bfloat16."""
    return 1.2 + 0.6 * draws if backward == "bfloat16" else 1.4 + 1.0 * draws


def ablation_cost(layers: int, variants: int, precision: str = "float32") -> float:
    """Forwards that a token takes when `variants` of every layer are left out, each starting at its own layer."""
    head, rest = (0.1, 0.25) if precision == "bfloat16" else (0.25, 0.75)
    return 1 + variants * sum(head + rest * (layers - layer) / layers for layer in range(layers))


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


def forwards(
    facts: ModelFacts, lengths: Sequence[int], settings: CalibrationSettings, precision: str = "float32"
) -> float:
    """How often a token goes through the model, counting what takes longer than a forward as that many.

    `precision` is that of the sketch's backward pass and of ablated blocks.
    """
    count = sum(lengths)
    if settings.kl == "none":
        return WATCH * count
    variants = sum(UNITS[level].count(facts) for level in levels_ablated(settings))
    tokens = sum(lengths[index] for index in rows_ablated(lengths, settings))
    ablated = ablation_cost(facts.layers, variants, precision) * tokens
    return (WATCH - 1 + sketch_cost(settings.draws, precision)) * count + ablated


def workload(
    facts: ModelFacts,
    lengths: Sequence[int],
    settings: CalibrationSettings,
    device: "torch.device",
    dtype: "torch.dtype",
    stored: bool = False,
) -> Workload:
    """Estimate the work of calibrating a model of these `facts` on rows of these `lengths` in tokens on `device`.

    `stored` says that the weights of its layers stay in their files.
    """
    from slim.models.precision import fastest

    count = sum(lengths)
    parameters = facts.parameters
    longest = max(lengths) * min(settings.batch_size, len(lengths))
    vocabulary, width = _matrix_sizes(facts.shapes.values())
    work = forwards(facts, lengths, settings, "float32" if settings.kl == "exact" else fastest(device, width, dtype))
    kept, held = facts.layers * NUMBERS_KEPT, parameters
    if stored:  # of each layer its input is kept, and one or two are in memory at a time
        around = 2 * vocabulary * width
        kept, held = facts.layers + NUMBERS_KEPT, min(parameters, around + 2 * (parameters // facts.layers))
        work += SECOND_RUN * count if settings.kl != "none" else 0
    saved = longest * kept * width if settings.kl != "none" else 0
    memory = held * dtype.itemsize + longest * vocabulary * 4 * 3 + saved * dtype.itemsize
    disk = count * facts.layers * 4 + len(lengths) * facts.layers * facts.heads * facts.head_dim * 8
    seconds = seconds_of(facts, work, device, dtype)
    return Workload(len(lengths), count, work, seconds, memory, disk, memory_there(device))


def _matrix_sizes(shapes: Iterable[tuple[int, ...]]) -> tuple[int, int]:
    """Return the vocabulary's size, and the model's width."""
    matrices = [shape for shape in shapes if len(shape) == 2]
    vocabulary = max(max(shape) for shape in matrices)
    return vocabulary, min(min(shape) for shape in matrices if max(shape) == vocabulary)
