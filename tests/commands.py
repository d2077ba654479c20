"""The command line within the process of a test, which `run` in conftest.py gives, or within one other process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
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
        code = _code()
        said = capfd.readouterr()
        return Result(code, str(said.out), str(said.err))

    return command


@contextmanager
def in_another_process(**settings: str) -> Iterator[Run]:
    """The same in a process with `settings` in its environment, which libraries read once; a call may add to it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_TOKEN")}
    env |= {"COLUMNS": "200"} | settings
    asked = [sys.executable, "-P", __file__]  # no module of the package, which sets more
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        told, heard = process.stdin, process.stdout
        assert told is not None
        assert heard is not None

        def command(*arguments: object, **more: str) -> Result:
            print(json.dumps([[*map(str, arguments)], more]), file=told, flush=True)
            return Result(*json.loads(heard.readline()))

        yield command


def _code() -> int:
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _answer() -> None:
    """Answer what `in_another_process` asks, a line each."""
    answers = sys.stdout
    for line in sys.stdin:
        arguments, more = json.loads(line)
        os.environ |= more
        sys.argv = ["slim", *arguments]
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = _code()
        print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    _answer()
