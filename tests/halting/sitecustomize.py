"""Python runs this before a worker, or what forks it, whose path names this folder: it halts work when a test chose to.

SLIM_HALT is a folder. Its file `moment` holds a share of the work and a pattern. The first progress that has reached
the share, and whose message has the pattern, makes a file JOB.here and goes on once there is a file `go`; if there is a
file `full`, then without any room for new files. All that a job reports is kept in JOB.told, a line each, and `cached`
for work that an earlier run did.
"""

import builtins
import errno
import io
import os
import re
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("SLIM_HALT")

if FOLDER and {"slim.jobs.worker", "slim.jobs.warm"} & set(sys.orig_argv):
    from slim.core.reporter import Work
    from slim.jobs.reporter import JobReporter

    _place, _jobs = Path(FOLDER), list[str]()
    _init, _progress, _advance = JobReporter.__init__, JobReporter.progress, Work.advance

    def _begun(self: JobReporter, store: Any, job: str, *given: Any) -> None:
        _init(self, store, job, *given)
        _jobs.append(job)

    @cache
    def _moment() -> tuple[float, str]:
        share, _, pattern = (_place / "moment").read_text().partition(" ")
        return float(share), pattern

    def _tell(line: str) -> None:
        with (_place / f"{_jobs[-1]}.told").open("a") as told:
            told.write(f"{line}\n")

    def _halting(self: JobReporter, done: float, total: float, message: str) -> None:
        _progress(self, done, total, message)
        _tell(message)
        go, (share, pattern) = _place / "go", _moment()
        if not go.exists() and done >= share * total and re.search(pattern, message):
            (_place / f"{_jobs[-1]}.here").touch()
            while not go.exists():
                time.sleep(0.02)
            if (_place / "full").exists():
                _fill_disk()

    def _fill_disk() -> None:
        """Neither a folder nor a file can be made any more, but for what SQLite has open."""

        def refused(*given: Any, **more: Any) -> Any:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def opened(file: Any, mode: str = "r", *given: Any, **more: Any) -> Any:
            return refused() if mode[0] in "wax" else plain(file, mode, *given, **more)

        plain = io.open
        os.mkdir, io.open, builtins.open = refused, opened, opened

    def _telling(self: Work, amount: float, message: str, cached: bool = False) -> None:
        if cached:
            _tell("cached")
        _advance(self, amount, message, cached)

    reporter: Any = JobReporter
    reporter.__init__, reporter.progress, Work.advance = _begun, _halting, _telling
