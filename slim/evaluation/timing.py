"""Fair timing and peak memory: models run in turn, so that a busy machine slows all of them alike."""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from slim.core import launch


def in_turn(
    functions: Mapping[str, Callable[[], object]], repeats: int, ran: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Return the wall-clock seconds of each after one warm-up, one run of each in turn, `repeats` times.

    `ran` is called after each run, the warm-up included.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            _finish()
            began = time.perf_counter()
            function()
            _finish()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
            ran()
    return seconds


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return median wall-clock seconds of each after one warm-up, one run of each in turn.

    Other load of the machine slows all of them alike, so their ratios hold even where the seconds do not.
    """
    return {name: statistics.median(found) for name, found in in_turn(functions, repeats).items()}


def peak_growth(function: Callable[[], object]) -> int:
    """Return the peak growth in bytes of this process's resident memory while `function` runs.

    A process returns freed memory late or never, so measure one function per process, after a small warm-up.
    """
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if reset.exists():  # Linux: resets the kernel's high-water mark
        reset.write_text("5")
    before = _high_water()
    function()
    return _high_water() - before


def in_fresh_process(module: str, arguments: Sequence[str]) -> Any:
    """Return the last line that `python -m module` prints with these arguments, read as JSON."""
    command = launch.module_command(module, *arguments)
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=launch.environment())
    return json.loads(ran.stdout.splitlines()[-1])


def _high_water() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _finish() -> None:
    """Wait for the work that was sent to a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
