"""Helpers that the benchmarks share: a table, a line that says on what machine, names."""

import os
import platform
from collections.abc import Sequence

import torch
import transformers


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


def slug(name: str) -> str:
    """A line's name as that of a file."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)
