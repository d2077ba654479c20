"""Fair timing and peak memory: runs in turn, so that a busy machine slows all alike."""

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


def in_turn(
    functions: Mapping[str, Callable[[], object]], repeats: int, ran: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Wall-clock seconds of each after one warm-up, one run of each at a time, `repeats` times; `ran` hears of each."""
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
    """Median wall-clock seconds of each after one warm-up, one run of each at a time, in turn.

    Whatever else the machine does then slows all of them alike, so their ratios hold even where the seconds do not.
    """
    return {name: statistics.median(found) for name, found in in_turn(functions, repeats).items()}


def peak_growth(function: Callable[[], object]) -> int:
    """Bytes by which the resident memory of this process grows at most while `function` runs.

    A process gives freed memory back late or never, so measure one function per process, after a small warm-up.
    """
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if reset.exists():  # Linux: lets the kernel's high-water mark start anew
        reset.write_text("5")
    before = _high_water()
    function()
    return _high_water() - before


def in_fresh_process(module: str, arguments: Sequence[str]) -> Any:
    """What `python -m module` with these arguments prints on its last line, read as JSON."""
    command = [sys.executable, "-m", module, *arguments]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def _high_water() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _finish() -> None:
    """Waits for what was handed to a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
