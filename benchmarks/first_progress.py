"""From the submission of a job to its first progress: with a worker that is started anew, and with one that is forked.

`python -m benchmarks.first_progress [--repeats 7]` calibrates a small model in a workspace of its own again and again,
first without and then beside a process that forks workers, as the dashboard's server keeps one.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.measure import machine, table
from slim import jobs
from slim.calibration.request import CalibrateRequest
from slim.jobs import Job
from slim.jobs.devices import hold
from slim.jobs.forking import address, keep_warm, new_socket
from slim.jobs.store import JobStore
from tests.pico import make_pico, save_pico

LOOK = 0.03
"""Seconds between two looks at a job."""
SETTINGS = {"samples": 64, "draws": 8, "max_length": 96, "batch_size": 4, "device": "cpu"}
NOT_YET = ("Waiting for its turn", "Starting")
"""Messages of a job before its worker reports anything."""


def first_progress(model: Path, seed: int) -> float:
    """Return the seconds from the submission of a calibration to its first progress. It is over when this returns."""
    begun = time.monotonic()
    job = jobs.start(CalibrateRequest.asked(model=model, dataset="bundled:triage", seed=seed, **SETTINGS))
    found: float | None = None
    while (now := jobs.state_of(job.id)) is not None and now.unfinished:
        if found is None and now.message not in NOT_YET:
            found = time.monotonic() - begun
        time.sleep(LOOK)
    if found is None or now is None or now.state != "done":
        raise RuntimeError(f"the job reported nothing, or failed: {now}")
    _settle(now)
    return found


def _settle(job: Job) -> None:
    """Wait until the runner has ended, which else takes the next job itself or must be waited for."""
    while True:
        with JobStore() as store:
            lock = hold(store.folder, "runner", job.device)
        if lock is not None:
            os.close(lock)
            return
        time.sleep(LOOK)


def _listens() -> bool:
    with new_socket() as line, address() as path:
        return line.connect_ex(path) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLIM_HOME"] = str(Path(folder) / "workspace")
        model = Path(folder) / "model"
        save_pico(make_pico("llama"), model)
        for kind in ("started anew", "forked"):
            if kind == "forked":
                keep_warm()
                while not _listens():
                    time.sleep(0.1)
            seconds = [
                first_progress(model, seed) for seed in range(len(rows) * 100, len(rows) * 100 + options.repeats)
            ]
            rows.append([kind, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}"])
    print(machine(), table(("worker", "median, s", "shortest, s", "longest, s"), rows), sep="\n\n")


if __name__ == "__main__":
    main()
