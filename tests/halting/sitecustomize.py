"""Python runs this before a worker whose path names this folder: it halts its work at the moment that a test chose.

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
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("SLIM_HALT")

if FOLDER and "slim.jobs.worker" in sys.orig_argv:
    from slim.core.reporter import Work
    from slim.jobs.reporter import JobReporter

    _place, _job = Path(FOLDER), sys.orig_argv[-1]
    _share, _, _pattern = (_place / "moment").read_text().partition(" ")
    _progress, _advance = JobReporter.progress, Work.advance

    def _tell(line: str) -> None:
        with (_place / f"{_job}.told").open("a") as told:
            told.write(f"{line}\n")

    def _halting(self: JobReporter, done: float, total: float, message: str) -> None:
        _progress(self, done, total, message)
        _tell(message)
        go = _place / "go"
        if not go.exists() and done >= float(_share) * total and re.search(_pattern, message):
            (_place / f"{_job}.here").touch()
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

    JobReporter.progress, Work.advance = _halting, _telling
