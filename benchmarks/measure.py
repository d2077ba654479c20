"""What the benchmarks share: fair timing, peak memory, and a line that says on what machine."""

import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall-clock seconds of each after one warm-up, one run of each at a time, in turn.

    Whatever else the machine does then slows all of them alike, so their ratios hold even where the seconds do not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


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


def _high_water() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def in_fresh_process(module: str, arguments: Sequence[str]) -> Any:
    """What `python -m module` with these arguments prints on its last line, read as JSON."""
    command = [sys.executable, "-m", module, *arguments]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def machine() -> str:
    """The machine and the versions a figure depends on."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
