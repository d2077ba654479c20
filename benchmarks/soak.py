"""Many short jobs through one queue: no process, file or memory may be left behind.

`python -m benchmarks.soak [JOBS]` calibrates a tiny model so many times (default 200). One process starts and watches
the jobs, as a server does. It prints what that process and the runner held after a tenth of them and at the end.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from slim import jobs
from slim.calibration.request import CalibrateRequest
from slim.jobs import Job
from tests.pico import make_pico, save_pico

LOOK = 0.2
"""Seconds between two looks, as of a page that is open."""
GROWTH = 16 * 2**20
"""Bytes by which a process may grow on the way: its allocator's slack, whatever the number of jobs."""
SETTINGS = {"samples": 2, "max_length": 16, "batch_size": 2, "device": "cpu"}


@dataclass(frozen=True)
class Held:
    """Resources that a process holds; memory in bytes."""

    memory: int
    files: int
    threads: int

    @classmethod
    def by(cls, process: psutil.Process) -> "Held":
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads())

    def __str__(self) -> str:
        return f"{self.memory / 1e6:,.1f} MB, {self.files} files, {self.threads} threads"


@dataclass(frozen=True)
class Soak:
    """Resources of the server and the runner after a tenth of the jobs and at the end."""

    jobs: int
    failed: int
    seconds: float
    server: tuple[Held, Held]
    runner: tuple[Held, Held]
    peak: int
    left: tuple[str, ...]

    def problems(self) -> list[str]:
        """A sentence for every failed job, process left behind and resource that grew."""
        found = [f"{self.failed} jobs failed"] if self.failed else []
        found += [f"a process is left: {words}" for words in self.left]
        for name, (early, late) in (("server", self.server), ("runner", self.runner)):
            if late.memory > early.memory + GROWTH:
                found.append(f"the {name} grew from {early} to {late}")
            if late.files > early.files or late.threads > early.threads:
                found.append(f"the {name} left files or threads open: {early}, then {late}")
        return found


def soak(count: int, home: Path) -> Soak:
    """Puts `count` jobs through the queue of a workspace `home`."""
    os.environ["SLIM_HOME"] = str(home)
    save_pico(make_pico("llama"), home / "model")
    here, begun = psutil.Process(), time.monotonic()
    started = [_start(home, number) for number in range(count)]
    early: tuple[Held, Held] | None = None
    late_runner: Held | None = None
    while (found := _mine(started)) and any(job.unfinished for job in found):
        over = sum(not job.unfinished for job in found)
        if (runner := _runner(here)) is not None:
            try:
                held = Held.by(runner)
            except psutil.Error:
                continue
            late_runner = held
            if early is None and over >= max(1, count // 10):
                early = Held.by(here), held
        time.sleep(LOOK)
    seconds, late = time.monotonic() - begun, Held.by(here)
    deadline = time.monotonic() + 30
    while (left := _left(home)) and time.monotonic() < deadline:
        time.sleep(LOOK)
    if early is None or late_runner is None:
        raise RuntimeError("the jobs were over before they were looked at")
    return Soak(
        jobs=count,
        failed=sum(job.state != "done" for job in found),
        seconds=seconds,
        server=(early[0], late),
        runner=(early[1], late_runner),
        peak=max(job.peak or 0 for job in found),
        left=tuple(left),
    )


def _start(home: Path, number: int) -> Job:
    return jobs.start(CalibrateRequest.asked(model=home / "model", dataset="bundled:triage", seed=number, **SETTINGS))


def _mine(started: list[Job]) -> list[Job]:
    ids = {job.id for job in started}
    return [job for job in jobs.jobs() if job.id in ids]


def _runner(here: psutil.Process) -> psutil.Process | None:
    return next((one for one in here.children() if "slim.jobs.runner" in _words(one)), None)


def _left(home: Path) -> list[str]:
    """The processes of jobs of this workspace, zombies too."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("SLIM_HOME") == str(home) and process.pid != os.getpid()
        except psutil.Error:
            mine = False
        if mine:
            found.append(" ".join(_words(process)))
    own = [child for child in psutil.Process().children(recursive=True) if child.status() == psutil.STATUS_ZOMBIE]
    return found + [f"zombie {child.pid}" for child in own]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description="Many short jobs through one queue.")
    parser.add_argument("jobs", nargs="?", type=int, default=200)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(parser.parse_args().jobs, Path(folder))
    print(f"{found.jobs} jobs, {found.failed} failed; no worker held more than {found.peak / 1e6:,.0f} MB")
    for name, held in (("server", found.server), ("runner", found.runner)):
        print(f"{name}, after a tenth of them → at the end: {' → '.join(map(str, held))}")
    if problems := found.problems():
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
