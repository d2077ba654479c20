"""The fault matrix: every kind of job against what can happen to it, in real worker processes.

They are forked from one that has imported what they need, as the dashboard's are, so that one does not take seconds to
start; those whose workspace is a disk of its own are started anew.

The states are printed as a table at the end of the run. Each fault strikes at a moment of the work that the test chose
(tests/halting). After it nothing half written is left, the device is free, and what its stage keeps is not done again.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from slim import jobs
from slim.calibration.calibrate import calibrate
from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.core import workspace
from slim.core.reporter import SILENT
from slim.core.request import Request
from slim.evaluation.request import EvaluateRequest
from slim.jobs import Job
from slim.jobs.foreground import foreground
from slim.judging.request import JudgeRequest
from slim.planning import budget
from slim.planning.files import save_plan
from slim.planning.request import AfterRepairRequest
from slim.planning.threshold import plan_by_threshold
from slim.pruning import checkpoint
from slim.recovery.request import FinetuneRequest, PruneRequest, RepairRequest
from slim.serving.request import ExportRequest, PushRequest
from tests import ROOT
from tests.gguf_files import GPT2, trained
from tests.hub_server import Repositories, environment
from tests.pico import make_pico, save_pico
from tests.waiting import ended, gone, wait_for, wait_until
from tests.warm import Forker

SERVER = """
import json, sys, time
from slim import jobs
from slim.jobs.kinds import KINDS
print(jobs.start(KINDS[sys.argv[1]].request.of_job(json.loads(sys.argv[2]))).id, flush=True)
time.sleep(10_000)
"""
"""A server as far as jobs know of it: what started them, and may be killed."""
FAULTS = ("cancel", "worker killed", "server killed", "disk full", "corrupt record", "out of memory")
FILL = 2**16


@dataclass(frozen=True)
class Kind:
    """The request of a job (`@` is the folder of its inputs), when it is struck, and which input is garbled.

    `goes_on` tells by the messages of the repeated job whether it went on where the first one was.
    """

    request: type[Request]
    asked: dict[str, Any]
    moment: str
    garbled: str
    goes_on: Callable[[list[str]], bool] | None = None


SMALL = {"samples": 8, "max_length": 48, "device": "cpu"}
ROLES = {"samples": 40, "max_length": 32, "device": "cpu"}
"""Rows enough for all that a recovery needs them for."""
DATA = {"dataset": "bundled:triage"}
KINDS = {
    "after-repair": Kind(
        AfterRepairRequest, {"calibration": "@/calibration"}, "0 .", "calibration/tensors.safetensors"
    ),
    "calibrate": Kind(
        CalibrateRequest,
        {"model": "@/model", "batch_size": 2} | DATA | SMALL,
        "0.3 Watching",
        "model/model.safetensors",
        lambda told: "cached" in told,
    ),
    "check": Kind(
        CheckRequest,
        {"calibration": "@/calibration", "samples": 2, "heads": 4},
        "0 Ablating",
        "calibration/tensors.safetensors",
    ),
    "prune": Kind(
        PruneRequest,
        {"plan": "@/budget.json", "rounds": 2} | ROLES,
        "0 Round 2",
        "budget.json",
        lambda told: not any(message.startswith("Round 1") for message in told),
    ),
    "repair": Kind(RepairRequest, {"folder": "@/small"} | ROLES, "0 Repairing", "small/model.safetensors"),
    "finetune": Kind(
        FinetuneRequest,
        {"folder": "@/small", "steps": 4, "batch_size": 2, "evaluations": 4, "positions": "all"} | DATA | ROLES,
        "0 Training, step 3",
        "small/model.safetensors",
        lambda told: not any(message.startswith("Training, step 1 ") for message in told),
    ),
    "evaluate": Kind(
        EvaluateRequest,
        {"checkpoints": ["@/small"], "max_new_tokens": 4} | DATA | SMALL,
        "0.5 .",
        "small/model.safetensors",
        lambda told: "cached" in told,
    ),
    "judge": Kind(
        JudgeRequest,
        {
            "original": "@/model",
            "pruned": "@/small",
            "samples": 4,
            "max_new_tokens": 4,
            "batch_size": 2,
            "device": "cpu",
        }
        | DATA,
        "0.5 Answering",
        "small/model.safetensors",
        lambda told: "cached" in told,
    ),
    "export": Kind(
        ExportRequest, {"folder": "@/small", "output": "@/out/small.gguf"}, "0 Loading", "small/model.safetensors"
    ),
    "push": Kind(PushRequest, {"folder": "@/small", "repository": "me/small"}, "0 Creating", "small/slim_plan.json"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its calibration, a plan by budget, and a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(tmp_path_factory.mktemp("faults") / "workspace"))
        folder = workspace.home().parent / "inputs"
        loaded = replace(make_pico("llama", vocab_size=324), tokenizer=trained(GPT2))  # an export needs merges
        save_pico(loaded, folder / "model")
        asked = DATA | SMALL | {"samples": 12, "output": folder / "calibration"}
        measured = calibrate(CalibrateRequest.asked(model=folder / "model", **asked))
        save_plan(budget.plan_by_budget(measured, {"heads": 0.7}), folder / "budget.json")
        checkpoint.prune(plan_by_threshold(measured, 0.8), folder / "small")
        return folder


class Place:
    """Where the cells are tried: a workspace with the process that forks its workers, and a Hub."""

    def __init__(self, folder: Path) -> None:
        self.room, self.halt = folder / "room", folder / "halt"
        self.room.mkdir()
        self.hub = Repositories()
        Thread(target=self.hub.serve_forever, daemon=True).start()
        self.settings = environment(self.hub.url, folder / "hub") | {
            "PYTHONPATH": str(ROOT / "tests" / "halting"),
            "SLIM_HALT": str(self.halt),
            "SLIM_HOME": str(self.room / "workspace"),
        }
        self.forker = Forker()

    def clear(self) -> None:
        """Leave nothing of a cell but the list of jobs, which other processes hold."""
        shutil.rmtree(self.halt, ignore_errors=True)
        for path in [*self.room.iterdir(), *(self.room / "workspace").glob("*")]:
            if path.name not in ("workspace", "jobs"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.hub.forget()

    def end(self) -> None:
        self.forker.end()
        self.hub.shutdown()
        self.hub.server_close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("place"))
    yield made
    made.end()


class Case:
    """One cell of the matrix: a workspace, a copy of the inputs, and the place where workers halt."""

    def __init__(self, kind: str, inputs: Path, room: Path, halt: Path, small: bool, warm: int | None) -> None:
        self.kind, self.halt, self.room, self.small, self.warm = kind, halt, room, small, warm
        self.inputs = room / "inputs"
        self.earlier = {job.id for job in jobs.jobs()}
        shutil.copytree(inputs, self.inputs)
        (self.inputs / "out").mkdir()
        for file in ("budget.json", "small/slim_plan.json", "calibration/record.json"):
            path = self.inputs / file
            path.write_text(path.read_text().replace(str(inputs), str(self.inputs)))
        halt.mkdir()
        (halt / "moment").write_text(KINDS[kind].moment)
        self.before = self.files()

    @property
    def request(self) -> Request:
        def of(value: Any) -> Any:
            if isinstance(value, list):
                return [of(one) for one in value]
            return value.replace("@", str(self.inputs)) if isinstance(value, str) else value

        kind = KINDS[self.kind]
        return kind.request.asked(**{name: of(value) for name, value in kind.asked.items()})

    def struck(self, job: Job) -> Job:
        """The job once its worker has come to the moment that was chosen."""
        wait_until(
            lambda: (self.halt / f"{job.id}.here").exists() or ended(jobs.state_of(job.id) or job),
            lambda: f"{jobs.state_of(job.id)}\n{jobs.log_of(job.id)}",
        )
        found = jobs.state_of(job.id)
        assert found is not None
        assert found.state == "running", f"{found}\n{jobs.log_of(job.id)}"
        assert self.warm in (None, psutil.Process(found.pid).ppid())
        return found

    def go(self) -> None:
        (self.halt / "go").touch()

    def told(self, job: Job) -> list[str]:
        return (self.halt / f"{job.id}.told").read_text().splitlines()

    def files(self) -> set[str]:
        """Files that could be taken for a result, or for a leftover."""
        made = [path for path in self.inputs.rglob("*") if path.is_file()]
        home = workspace.home()
        for name in ("calibrations", "checkpoints", "evaluations", "judgements", "cut"):
            made += (home / name).glob("*")
        return {str(path) for path in [*made, *self.room.rglob("*.partial-*")]}


@pytest.fixture
def case(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inputs: Path,
    place: Place,
    small_disk: Callable[[Path], AbstractContextManager[bool]],
) -> Iterator[Case]:
    """The cell that the test is for; a full disk is a small one where this may be mounted."""
    kind, fault = request.node.callspec.params["kind"], request.node.callspec.params["fault"]
    for name, value in place.settings.items():
        monkeypatch.setenv(name, value)
    room, warm = place.room, None
    if fault == "disk full":
        room = tmp_path / "room"
        room.mkdir()
        monkeypatch.setenv("SLIM_HOME", str(room / "workspace"))
    else:
        warm = place.forker.ready()
    with small_disk(room) if fault == "disk full" else nullcontext(False) as real:
        made = Case(kind, inputs, room, place.halt, real, warm)
        yield made
        made.go()
        for job in jobs.jobs():
            jobs.cancel(job.id)
    place.clear()


def cancel(case: Case) -> Job:
    """From elsewhere, while it works."""
    job = case.struck(jobs.start(case.request))
    jobs.cancel(job.id)
    wait_until(lambda: gone(job.pid))
    return wait_for(job, ended)


def kill_worker(case: Case) -> Job:
    """As the system does where memory runs out."""
    job = case.struck(jobs.start(case.request))
    os.kill(job.pid or 0, signal.SIGKILL)
    return wait_for(job, ended)


def kill_server(case: Case) -> Job:
    """The process that started the job, with its whole group.

    Its environment may hold more than this process knows of its own, as libraries set variables, and so its worker need
    not be a forked one.
    """
    case.warm = None
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, case.kind, json.dumps(case.request.arguments())],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None
    with server:
        try:
            job = jobs.state_of(server.stdout.readline().strip())
            assert job is not None
            case.struck(job)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    case.go()
    return wait_for(job, ended)


def fill_disk(case: Case) -> Job:
    """To the last byte, while it works; then there is room again. Without a small disk the worker's writes fail."""
    job = case.struck(jobs.start(case.request))
    filler = case.room / "filler"
    if case.small:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(FILL))
    else:
        (case.halt / "full").touch()
    case.go()
    found = wait_for(job, ended)
    filler.unlink(missing_ok=True)
    return found


def garble(case: Case) -> Job:
    """Cut off the file that it reads."""
    path = case.inputs / KINDS[case.kind].garbled
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    case.go()
    return wait_for(jobs.start(case.request), ended)


def take_memory(case: Case) -> Job:
    """It gets no more than it has."""
    job = case.struck(jobs.start(case.request))
    assert job.pid is not None
    held = psutil.Process(job.pid).memory_info().vms
    resource.prlimit(job.pid, resource.RLIMIT_AS, (held, held))
    case.go()
    return wait_for(job, ended)


STRIKES: dict[str, Callable[[Case], Job]] = dict(
    zip(FAULTS, (cancel, kill_worker, kill_server, fill_disk, garble, take_memory), strict=True)
)
EXPECTED = {
    "cancel": ("cancelled", ""),
    "worker killed": ("failed", "start it again"),
    "server killed": ("done", ""),
    "disk full": ("failed", "free some space"),
    "corrupt record": ("failed", ":"),
    "out of memory": ("failed", "memory"),
}
HARMLESS = {("push", "disk full")}
"""Faults that a kind has nothing to do with: what is sent is only read, and the end has room that was set aside."""


def _always(row: int, column: int) -> bool:
    """Whether a cell is tried with every run: one of each kind, one or more of each fault, and whatever goes on."""
    goes_on = FAULTS[column] == "worker killed" and [*KINDS.values()][row].goes_on is not None
    return goes_on or row % len(FAULTS) == column


CELLS = [
    pytest.param(fault, kind, marks=() if _always(row, column) else pytest.mark.release, id=f"{fault}-{kind}")
    for row, kind in enumerate(KINDS)
    for column, fault in enumerate(FAULTS)
]


@pytest.mark.parametrize(("fault", "kind"), CELLS)
def test_faults(case: Case, kind: str, fault: str, record_property: Callable[[str, object], None]) -> None:
    """The state afterwards, its reason and remedy, nothing half written, the device free, and what was kept."""
    job = STRIKES[fault](case)
    record_property("fault", (kind, fault, job.state))
    state, reason = EXPECTED[fault] if (kind, fault) not in HARMLESS else ("done", "")
    assert job.state == state, f"{job.error}\n{jobs.log_of(job.id)}"
    assert reason in (job.error or ""), f"{job.error}\n{jobs.log_of(job.id)}"
    assert not re.match(r"\w*(Error|Exception): ", job.error or ""), job.error
    asked = PushRequest.asked(folder=case.inputs, repository="me/small")
    foreground(asked, lambda request, reporter: "the device is free", SILENT)
    assert [one.state for one in jobs.jobs() if one.id not in {job.id, *case.earlier}] == ["done"]
    if state == "done":
        assert job.result is not None
        assert job.result.startswith("http") or Path(job.result).exists()
        assert not list(case.room.rglob("*.partial-*"))
        return
    assert case.files() - {str(case.inputs / KINDS[kind].garbled)} <= case.before
    goes_on = KINDS[kind].goes_on
    assert ("goes on" in jobs.what_is_kept(job)) == (goes_on is not None)
    if fault == "worker killed" and goes_on is not None:
        case.go()
        repeated = wait_for(jobs.again(job.id), ended)
        assert repeated.state == "done", f"{repeated.error}\n{jobs.log_of(repeated.id)}"
        assert repeated.repeats == job.id
        record_property("fault", (kind, fault, f"{job.state}, then {repeated.state}"))
        assert goes_on(case.told(repeated)), case.told(repeated)
