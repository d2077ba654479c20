"""The estimate of a stage before it starts: tokens, time, memory and disk."""

import os
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from slim.core.records import ModelFacts

if TYPE_CHECKING:
    import torch

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
        """The estimate as a sentence."""
        return (
            f"{self.rows} rows, {self.tokens:,} tokens: about {self.time()}, {self.memory / 1e9:,.1f} GB of memory, "
            f"{self.disk / 1e6:,.0f} MB on disk. {self.too_much}"
        ).rstrip()


def seconds_of(facts: ModelFacts, forwards: float, device: "torch.device", dtype: "torch.dtype") -> float:
    """About how long `forwards` tokens through a model of these `facts` take on `device`."""
    parameters = facts.parameters
    return 2 * parameters * forwards / (EFFICIENCY * matrix_speed(device, dtype))


@cache
def matrix_speed(device: "torch.device", dtype: "torch.dtype") -> float:
    """Multiply-adds, counted as two operations each, that `device` does in a second, from one short trial a process."""
    import torch

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


def memory_there(device: "torch.device") -> int:
    """Bytes of memory that `device` has in all."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
