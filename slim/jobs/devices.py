"""The device of a job and the lock on it, without loading torch."""

import fcntl
import os
import re
import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def device_of(asked: str) -> str:
    """Return `cpu` or `cuda:N`, in whose queue a job for a device stands. A wrong guess only waits for others."""
    if asked == "auto":
        asked = "cuda" if has_cuda() else "cpu"
    return "cuda:0" if asked == "cuda" else asked


def has_cuda() -> bool:
    """Return whether torch would find a GPU here."""
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

    A process that is started with the descriptor shares the lock, which is free when the last of them ends or closes
    it, however it ends.
    """
    name = re.sub(r"[^a-z0-9]+", "-", device.lower())
    descriptor = os.open(folder / f"{what}-{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
