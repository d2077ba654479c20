"""Many people on one dashboard while a job runs: how long a page takes, and that nobody sees another's choice.

`python -m benchmarks.sessions [--people 20] [--pages 10]` serves the dashboard on a workspace with a calibration for
each person, starts a long calibration, and opens a session for each over the browser's own protocol. All of them at
once, with a pause as people make, go from page to page, each with a calibration and a setting of their own. It prints
how long a page took from the request to its last element.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import websockets
from safetensors.numpy import load_file, save_file
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets import Subprotocol

from benchmarks.measure import machine, table
from slim import jobs
from slim.calibration.calibrate import calibrate
from slim.calibration.record import load_calibration
from slim.calibration.request import CalibrateRequest
from slim.core.run_index import remember
from tests.pico import make_pico, save_pico

PATH = ("explore", "prune", "runs", "explore", "calibrate", "prune", "home", "compare", "evaluate", "recover")
"""The pages in the order in which a session opens them; it starts anew at the end."""
OWN = ("explore", "prune")
"""Pages that show one calibration, which their address names."""
SLIDER = "Write variance"
PAUSE = 2.0
"""Seconds in the mean between a page and the next request."""
MOST = 2**26
ENDLESS = {"samples": 234, "draws": 500, "batch_size": 1, "max_length": 320, "device": "cpu"}


@dataclass
class Person:
    """One session, and what it saw."""

    number: int
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sliders: dict[str, Any] = field(default_factory=dict)
    """The page's sliders by their labels."""
    text: str = ""
    """All that the page said in its last run."""

    @property
    def mark(self) -> str:
        """Text that is on a page where this session's calibration is shown, and nowhere else."""
        return f"mark-{self.number:03}-"

    @property
    def weight(self) -> float:
        return round(0.05 * (1 + self.number % 19), 2)


def furnish(home: Path, people: int) -> None:
    """A workspace with a calibration for each person, told apart by its rows' name and its figures."""
    save_pico(make_pico("llama"), home / "model")
    asked = {"model": home / "model", "dataset": "bundled:triage", "device": "cpu"}
    first = home / "first"
    calibrate(CalibrateRequest.asked(samples=6, max_length=48, output=first, **asked))
    record, tensors = json.loads((first / "record.json").read_text()), load_file(first / "tensors.safetensors")
    for number in range(people):
        folder = home / "calibrations" / f"of-{number:03}"
        folder.mkdir(parents=True)
        record["dataset"]["source"] = f"{Person(number).mark}rows.jsonl"
        (folder / "record.json").write_text(json.dumps(record))
        factor = np.float32(1 + number / 100)
        own = {name: values * factor if values.dtype.kind == "f" else values for name, values in tensors.items()}
        save_file(own, folder / "tensors.safetensors")
        load_calibration(folder)
        remember(folder, "calibration")


async def visit(person: Person, address: str, pages: int, people: int, pause: float) -> None:
    """Goes over `pages` pages, sets a slider on the first, and finds it as it was left."""
    where = address.replace("http", "ws", 1) + "/_stcore/stream"
    chance = random.Random(person.number)  # noqa: S311  times of clicks, no secret
    async with websockets.connect(where, subprotocols=[Subprotocol("streamlit")], max_size=MOST) as socket:
        for number in range(pages):
            page = PATH[number % len(PATH)]
            await asyncio.sleep(chance.expovariate(1 / pause) if pause else 0)
            begun = time.monotonic()
            await run_page(socket, person, page)
            person.seconds.append(time.monotonic() - begun)
            _look(person, page, people, number > 0)
            if number == 0:
                await run_page(socket, person, page, set_slider=True)  # its own setting is not said to a browser again
                _look(person, page, people, False)


async def run_page(socket: Any, person: Person, page: str, set_slider: bool = False) -> None:
    """One run of a page, until its script has ended."""
    asked = BackMsg()
    asked.rerun_script.page_name = "" if page == "home" else page
    asked.rerun_script.query_string = f"calibration=of-{person.number:03}" if page in OWN else ""
    if set_slider:
        state = asked.rerun_script.widget_states.widgets.add()
        state.id = person.sliders[SLIDER].id
        state.double_array_value.data.append(person.weight)
    await socket.send(asked.SerializeToString())
    said: list[str] = []
    ended = False
    while not ended:
        message = ForwardMsg.FromString(await asyncio.wait_for(socket.recv(), 120))
        kind = message.WhichOneof("type")
        if kind == "new_session":
            said.clear()
            person.sliders.clear()
        elif kind == "delta":
            said.append(str(message.delta))
            _note(person, page, message.delta)
        elif kind == "page_not_found":
            person.problems.append(f"{page}: not found")
        ended = kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY
        if kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
            person.problems.append(f"{page}: it does not compile")
            ended = True
    person.text = " ".join(said)


def _note(person: Person, page: str, delta: Any) -> None:
    element = delta.new_element
    kind = element.WhichOneof("type") if delta.HasField("new_element") else None
    if kind == "exception":
        person.problems.append(f"{page}: {element.exception.message}")
    elif kind == "alert" and element.alert.format == element.alert.ERROR:
        person.problems.append(f"{page}: {element.alert.body}")
    elif kind == "slider":
        person.sliders[element.slider.label] = element.slider


def _look(person: Person, page: str, people: int, is_set: bool) -> None:
    """Note where the page lacks the mark of this session or shows that of another."""
    if page not in OWN:
        return
    if person.mark not in person.text and page == "explore":
        person.problems.append(f"{page}: their own calibration is not there")
    others = [number for number in range(people) if number != person.number and Person(number).mark in person.text]
    person.problems += [f"{page}: the calibration of {number} is there" for number in others]
    if is_set and SLIDER in person.sliders:
        slider = person.sliders[SLIDER]
        found = (slider.value or slider.default)[0]
        if abs(found - person.weight) > 1e-9:
            person.problems.append(f"{page}: the weight is {found}, and they set {person.weight}")


async def everybody(address: str, people: int, pages: int, pause: float) -> list[Person]:
    """All sessions at once."""
    found = [Person(number) for number in range(people)]
    await asyncio.gather(*(visit(person, address, pages, people, pause) for person in found))
    return found


def sessions(home: Path, address: str, people: int, pages: int, pause: float = PAUSE) -> list[Person]:
    """Results of `people` sessions of a served workspace while a job ran, which still runs at their end."""
    job = jobs.start(CalibrateRequest.asked(model=home / "model", dataset="bundled:triage", **ENDLESS))
    try:
        while not (jobs.state_of(job.id) or job).done:
            time.sleep(0.2)
        found = asyncio.run(everybody(address, people, pages, pause))
        now = jobs.state_of(job.id)
        if now is None or now.state != "running":
            raise RuntimeError(f"the job did not run to the end: {now}")
    finally:
        jobs.cancel(job.id)
    return found


def main() -> None:
    from tests.browser_setup import served

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--pages", type=int, default=len(PATH))
    parser.add_argument("--pause", type=float, default=PAUSE, help="seconds in the mean between two pages of a session")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["SLIM_HOME"] = folder
        furnish(home, options.people)
        with served(home) as address:
            rows = []
            for people in (1, options.people):
                found = sessions(home, address, people, options.pages, options.pause)
                for person in found:
                    for problem in person.problems:
                        print(f"person {person.number}: {problem}")
                seconds = sorted(second for person in found for second in person.seconds)
                cuts = statistics.quantiles(seconds, n=20)
                rows.append(
                    [str(people), str(len(seconds)), *(f"{cuts[place]:.2f}" for place in (9, 17)), f"{seconds[-1]:.2f}"]
                )
    print(machine(), table(("sessions", "pages", "median, s", "90%, s", "longest, s"), rows), sep="\n\n")


if __name__ == "__main__":
    main()
