"""What a calibration takes, told before it starts: tokens, time, memory and disk."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from slim.metrics.base import Level
from slim.records import CalibrationSettings, ModelFacts

BLOCK_ROWS = 4
"""Rows on which every block's removal is measured: it is exact per row, so few rows rank blocks well."""
WATCH = 1.1
"""A watched forward, in forwards. This and the next ones were measured on the bundled model."""
EFFICIENCY = 0.6
"""Share of a matrix product's speed that a whole forward reaches."""


@dataclass(frozen=True)
class Workload:
    """`forwards` counts a token through the model once; seconds and bytes are estimates, good to a factor of two."""

    rows: int
    tokens: int
    forwards: float
    seconds: float
    memory: int
    disk: int
    there: int
    """Bytes of memory that the device has in all."""

    @property
    def too_much(self) -> str:
        """A sentence where it may not fit in memory, else nothing."""
        if self.memory <= self.there:
            return ""
        return (
            f"That is more than the {self.there / 1e9:,.1f} GB there are: take a smaller batch or shorter rows; "
            "a batch that does not fit is halved."
        )

    def time(self) -> str:
        """In seconds or minutes."""
        return f"{self.seconds / 60:,.0f} min" if self.seconds >= 90 else f"{max(1, self.seconds):.0f} s"

    def sentence(self) -> str:
        """The estimate as a person would say it."""
        return (
            f"{self.rows} rows, {self.tokens:,} tokens: about {self.time()}, {self.memory / 1e9:,.1f} GB of memory, "
            f"{self.disk / 1e6:,.0f} MB on disk. {self.too_much}"
        ).rstrip()


def sketch_cost(draws: int) -> float:
    """Forwards that a token takes in the loss sketch."""
    return 1.4 + 1.0 * draws


def ablation_cost(layers: int, variants: int) -> float:
    """Forwards that a token takes when `variants` of every layer are left out, each starting at its own layer."""
    return 1 + variants * sum(0.25 + 0.75 * (layers - layer) / layers for layer in range(layers))


def levels_ablated(settings: CalibrationSettings) -> tuple[Level, ...]:
    """What is really left out, one by one."""
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
    found = WATCH * count
    if settings.kl == "none":
        return found
    units = {"head": facts.heads, "group": facts.kv_heads, "block": 1}
    variants = sum(units[level] for level in levels_ablated(settings))
    tokens = sum(lengths[index] for index in rows_ablated(lengths, settings))
    return found + sketch_cost(settings.draws) * count + ablation_cost(facts.layers, variants) * tokens


def workload(
    facts: ModelFacts, lengths: Sequence[int], settings: CalibrationSettings, device: torch.device, dtype: torch.dtype
) -> Workload:
    """What calibrating a model of these `facts` on rows of these `lengths` in tokens takes on `device`."""
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


def seconds_of(facts: ModelFacts, forwards: float, device: torch.device, dtype: torch.dtype) -> float:
    """About how long `forwards` tokens through a model of these `facts` take on `device`."""
    parameters = facts.parameters
    return 2 * parameters * forwards / (EFFICIENCY * matrix_speed(device, dtype))


def _matrix_sizes(shapes: Iterable[tuple[int, ...]]) -> tuple[int, int]:
    """The vocabulary's size, and the numbers a layer keeps of a token for the way back."""
    matrices = [shape for shape in shapes if len(shape) == 2]
    vocabulary = max(max(shape) for shape in matrices)
    width = min(min(shape) for shape in matrices if max(shape) == vocabulary)
    return vocabulary, 30 * width


@cache
def matrix_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds, counted as two operations each, that `device` does in a second, from one short trial a process."""
    size = 1024 if device.type == "cpu" else 4096
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        product = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
        del product
    return 2 * size**3 / best


def memory_there(device: torch.device) -> int:
    """Bytes of memory that `device` has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
