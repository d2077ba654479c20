"""The first page of a fresh server: the seconds from its start until the page is there.

`python -m benchmarks.first_page [--repeats 5] [--root FOLDER]` starts the dashboard of the repository in FOLDER anew
for each page, on a workspace with a calibration, alone and while a calibration runs.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import websockets
from websockets import Subprotocol

from benchmarks.measure import machine, table
from benchmarks.sessions import ENDLESS, MOST, Person, furnish, run_page
from slim import jobs
from slim.calibration.request import CalibrateRequest
from tests import ROOT

PAGES = ("home", "calibrate", "explore", "runs")


def first_page(home: Path, root: Path, page: str) -> float:
    """Return the seconds from the start of a server to the end of its first page."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "slim", "app", "--no-browser", "--port", str(port)]
    environment = os.environ | {"SLIM_HOME": str(home), "PYTHONPATH": str(root)}
    begun = time.monotonic()
    server = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        asyncio.run(_visit(port, page))
        return time.monotonic() - begun
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


async def _visit(port: int, page: str) -> None:
    person = Person(0)
    while True:
        try:
            async with websockets.connect(
                f"ws://127.0.0.1:{port}/_stcore/stream", subprotocols=[Subprotocol("streamlit")], max_size=MOST
            ) as stream:
                await run_page(stream, person, page)
                break
        except OSError:
            await asyncio.sleep(0.02)
    if person.problems:
        raise RuntimeError(person.problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--root", type=Path, default=ROOT, help="repository whose dashboard is started")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["SLIM_HOME"] = folder
        furnish(home, 1)
        for beside in (False, True):
            job = jobs.start(_endless(home)) if beside else None
            while job is not None and not (jobs.state_of(job.id) or job).done:
                time.sleep(0.2)
            for page in PAGES:
                seconds = [first_page(home, options.root, page) for _ in range(options.repeats)]
                where = "beside a calibration" if beside else "alone"
                rows.append([page, where, f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"])
            if job is not None:
                jobs.cancel(job.id)
    print(machine(), table(("page", "server", "median, s", "longest, s"), rows), sep="\n\n")


def _endless(home: Path) -> CalibrateRequest:
    return CalibrateRequest.asked(model=home / "model", dataset="bundled:triage", **ENDLESS)


if __name__ == "__main__":
    main()
