"""Which device a job works on, and who may use it: found without loading torch."""

import fcntl
import json
import os
import re
import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WITHOUT = ("export", "push")
"""Kinds that need no device beside the CPU."""
OF_CALIBRATION = ("absorb", "check")
"""Kinds that work where their calibration did."""
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def device_of(kind: str, arguments: dict[str, Any]) -> str:
    """`cpu` or `cuda:N`: in whose queue a job stands. Where the guess is wrong it only waits for others."""
    if kind in WITHOUT or (kind == "prune" and not arguments.get("repaired", True)):
        return "cpu"
    settings = arguments.get("settings") or {}
    if kind in OF_CALIBRATION:
        settings = _settings_of(arguments.get("calibration"))
    asked = str(arguments.get("device") or settings.get("device") or "auto")
    if asked == "auto":
        asked = "cuda" if has_cuda() else "cpu"
    return "cuda:0" if asked == "cuda" else asked


def _settings_of(calibration: object) -> dict[str, Any]:
    try:
        found = json.loads((Path(str(calibration)) / "record.json").read_bytes())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def has_cuda() -> bool:
    """Whether torch would find a GPU here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible not in ("", "-1") and any(Path(path).exists() for path in DRIVERS) and _built_for_gpu()


@cache
def _built_for_gpu() -> bool:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    said = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return bool(said.get("cuda") or said.get("hip"))


def hold(folder: Path, what: str, device: str) -> int | None:
    """A descriptor that holds the lock on `what` of a device, or None where another process has it.

    The lock is handed on to a process that is started with the descriptor, and is free when the last of them ends or
    closes it, however it ended.
    """
    name = re.sub(r"[^a-z0-9]+", "-", device.lower())
    descriptor = os.open(folder / f"{what}-{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
