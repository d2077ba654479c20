"""The command line within the process of a test; `run` in conftest.py gives it."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from slim import cli


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`slim` and the words it is given; its output is 200 columns wide unless COLUMNS is set again."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["slim", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capfd.readouterr()
        return Result(code, str(said.out), str(said.err))

    return command
