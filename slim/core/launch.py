"""Processes of their own that run a Python module: how they are named, and how they find Slim."""

import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import slim

if TYPE_CHECKING:
    import resource

ROOT = Path(slim.__file__).resolve().parent.parent
"""The folder that the package `slim` lies in."""


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module; `-P`: a file in the current folder is not taken for a module."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(**settings: str) -> dict[str, str]:
    """Return the variables of this process and `settings`; Slim is found where it was found here.

    Installed packages stay where they are in the order of imports: they must not hide Python's own modules.
    """
    paths = [] if str(ROOT) == sysconfig.get_path("purelib") else [str(ROOT)]
    paths += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **settings}


def peak_of(usage: "resource.struct_rusage") -> int:
    """Return the bytes that a process held at most."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
