"""The queue: one order for workers and commands, whoever is killed; moving, repeating, and a disk that is full."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from slim import jobs
from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.core.errors import Cancelled, InputError, SlimError
from slim.core.reporter import SILENT, Reporter
from slim.core.request import Request
from slim.evaluation.request import EvaluateRequest
from slim.jobs import Job
from slim.jobs.devices import device_of, hold
from slim.jobs.failures import DISK, GONE, MEMORY, NETWORK, death_reason, failure_reason
from slim.jobs.foreground import foreground
from slim.jobs.job import SILENT as SILENCE
from slim.jobs.kinds import KINDS
from slim.jobs.queue import queue_of
from slim.jobs.store import BALLAST, JobStore, StoreFull
from slim.judging.request import JudgeRequest
from slim.planning.request import AfterRepairRequest
from slim.recovery.request import PruneRequest
from slim.serving.request import ExportRequest, PushRequest
from tests.pico import make_pico, save_pico
from tests.reporting import Heard
from tests.waiting import ended, wait_for, wait_until

ENDLESS = {"samples": 234, "draws": 200, "batch_size": 1, "max_length": 320, "device": "cpu"}
SMALL = {"samples": 4, "max_length": 48, "device": "cpu"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A llama's folder."""
    folder = tmp_path_factory.mktemp("queue") / "model"
    save_pico(make_pico("llama"), folder)
    return str(folder)


@pytest.fixture(autouse=True)
def stopped(own_workspace: Path) -> Iterator[None]:
    """A job goes on without whoever started it, so a test that fails in the middle must stop its own."""
    yield
    for job in jobs.jobs():
        if job.pid != os.getpid():
            jobs.cancel(job.id)


@pytest.fixture
def idle(own_workspace: Path) -> Iterator[Path]:
    """A workspace whose queue nobody works off, as if its runner were busy elsewhere."""
    with JobStore() as store:
        held = hold(store.folder, "runner", "cpu")
    assert held is not None
    yield own_workspace
    for job in jobs.jobs():
        jobs.cancel(job.id)
    os.close(held)


def runners(workspace: Path) -> list[psutil.Process]:
    """The processes that work off a queue of this workspace."""
    found = []
    for process in psutil.process_iter():
        try:
            if "slim.jobs.runner" in process.cmdline() and process.environ().get("SLIM_HOME") == str(workspace):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def pushing(folder: str = "there") -> PushRequest:
    return PushRequest.asked(folder=folder, repository="me/it")


def queued(number: int = 1) -> list[Job]:
    return [jobs.start(pushing(f"there-{index}")) for index in range(number)]


def order() -> list[str]:
    return [job.id for job in jobs.in_order(jobs.jobs()) if job.state == "queued"]


def test_workers_and_commands_take_turns_in_one_order_though_the_runner_is_killed(
    model: str, own_workspace: Path
) -> None:
    """The worker of a killed runner goes on and holds the device; then the command that came first, then the last."""
    first = jobs.start(CalibrateRequest.asked(model=model, dataset="bundled:triage", **ENDLESS))
    running = wait_for(first, lambda job: job.state == "running" and job.done > 0)
    (runner,) = runners(own_workspace)
    assert not any("torch" in Path(mapped.path).name for mapped in runner.memory_maps())
    runner.send_signal(signal.SIGKILL)
    wait_until(lambda: not runners(own_workspace))
    heard = Heard()
    between: list[Job | None] = []

    def stage(request: Request, reporter: Reporter) -> str:
        between.append(jobs.state_of(last[0].id))
        return "here"

    def command() -> None:
        foreground(CheckRequest.asked(calibration=model), stage, heard)

    last: list[Job] = []
    thread = threading.Thread(target=command)
    thread.start()
    wait_until(lambda: heard.estimates)
    assert heard.estimates == [f"Waiting for calibrate {first.id} on cpu …"]
    last.append(jobs.start(CalibrateRequest.asked(model=model, dataset="bundled:nothing", **SMALL)))
    wait_until(lambda: len(runners(own_workspace)) == 1)
    time.sleep(1)
    states = {job.id: job.state for job in jobs.jobs()}
    assert states[first.id] == "running"
    assert sorted(states.values()) == ["queued", "queued", "running"]
    assert jobs.state_of(first.id) is not None
    beat = wait_for(first, lambda job: job.beat is not None and job.beat > (running.beat or 0))
    assert (beat.pid, beat.peak is not None) == (running.pid, True)
    jobs.cancel(first.id)
    thread.join()
    assert between[0] is not None
    assert between[0].state == "queued"
    after = wait_for(last[0], ended)
    assert after.state == "failed"
    assert "'bundled:nothing' is not bundled" in (after.error or "")
    (mine,) = jobs.jobs("check")
    assert (mine.state, mine.origin, mine.result) == ("done", "command line", "here")
    assert mine.ended is not None
    assert after.started is not None
    assert mine.ended <= after.started
    wait_until(lambda: not runners(own_workspace))


def test_two_servers_start_one_runner(own_workspace: Path, idle: Path) -> None:
    """Whoever looks starts one where none runs, and only there."""
    queued(3)
    assert [job.state for job in jobs.jobs()] == ["queued"] * 3
    assert runners(own_workspace) == []


def test_what_waits_can_be_moved(idle: Path) -> None:
    """To the front, or before another; nothing else can."""
    one, two, three = queued(3)
    assert order() == [one.id, two.id, three.id]
    jobs.move(three.id)
    assert order() == [three.id, one.id, two.id]
    jobs.move(two.id, before=one.id)
    assert order() == [three.id, two.id, one.id]
    jobs.move(one.id, before=three.id)
    assert order() == [one.id, three.id, two.id]
    with pytest.raises(InputError, match=r"before='none'.*name a job that does"):
        jobs.move(one.id, before="none")
    jobs.cancel(one.id)
    with pytest.raises(InputError, match="is not queued"):
        jobs.move(one.id)


def test_a_queued_job_is_cancelled_at_once_and_done_again(idle: Path) -> None:
    """It never had a process; the new one has its arguments and stands last."""
    one, two = queued(2)
    with pytest.raises(InputError, match="is not over"):
        jobs.again(one.id)
    cancelled = jobs.cancel(one.id)
    assert cancelled is not None
    assert (cancelled.state, cancelled.pid) == ("cancelled", None)
    again = jobs.again(one.id, origin="command line")
    assert (again.arguments, again.repeats, again.origin) == (one.arguments, one.id, "command line")
    assert order() == [two.id, again.id]
    with pytest.raises(InputError, match="job='none': it is not in the workspace"):
        jobs.again("none")
    jobs.forget(two.id)
    assert jobs.state_of(two.id) is not None
    jobs.forget(one.id)
    assert jobs.state_of(one.id) is None


def test_a_command_that_is_gone_or_halted_holds_up_nobody(idle: Path) -> None:
    """One that died while it waited has failed; one that was halted is passed over until it shows life again."""
    (waiting,) = queued()
    with JobStore() as store:
        common = {"kind": "push", "arguments": {}, "attached": True, "created": 1.0}
        store.put(Job(id="dead", pid=os.getpid(), pid_started=1.0, **common))
        store.put(Job(id="halted", pid=1, beat=time.time() - SILENCE - 1, **common))
        assert [job.id for job in queue_of(store, "cpu")] == [waiting.id]
        dead = store.get("dead")
        assert dead is not None
        assert (dead.state, dead.error) == ("failed", GONE)
        store.update("halted", beat=time.time())
        assert [job.id for job in queue_of(store, "cpu")] == ["halted", waiting.id]
        store.update("halted", pid_started=1.0, beat=1.0)


def test_a_process_that_is_not_heard_of_is_told_apart_and_left_alone(own_workspace: Path) -> None:
    """It may be halted, or its disk be slow; a set clock makes no live one dead."""
    common = {"kind": "push", "arguments": {}, "state": "running", "created": 1.0, "pid": os.getpid()}
    own = psutil.Process().create_time()
    with JobStore() as store:
        store.put(Job(id="silent", pid_started=own, beat=time.time() - SILENCE - 5, **common))
        store.put(Job(id="shifted", pid_started=own + 100, beat=time.time(), **common))
    found = {job.id: job for job in jobs.jobs()}
    assert (found["silent"].state, found["silent"].silent()) == ("running", True)
    assert (found["shifted"].state, found["shifted"].silent()) == ("running", False)


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (KeyboardInterrupt(), "cancelled", None),
        (Cancelled("cancelled"), "cancelled", None),
        (InputError("rows: none."), "failed", "rows: none."),
        (MemoryError(), "failed", MEMORY),
        (ZeroDivisionError("by 0"), "failed", "ZeroDivisionError: by 0"),
    ],
)
def test_how_a_command_ends_is_written(
    own_workspace: Path, error: BaseException, state: str, reason: str | None
) -> None:
    """Its error goes on to the person, with SIGTERM as it was and the device free."""
    before = signal.getsignal(signal.SIGTERM)

    def stage(request: Request, reporter: Reporter) -> str:
        raise error

    with pytest.raises(type(error)):
        foreground(pushing(), stage, SILENT)
    (job,) = jobs.jobs()
    assert (job.state, job.error) == (state, reason)
    assert ("Traceback" in jobs.log_of(job.id)) == (state == "failed")
    assert signal.getsignal(signal.SIGTERM) is before
    heard = Heard()
    assert foreground(pushing(), lambda request, reporter: "made", heard) == "made"
    assert heard.estimates == []


def test_places_are_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that exist here, and outputs, whatever folder it is done again in; nothing else is touched."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat").mkdir()
    given = {"dataset": "bundled:triage", "template": "chat", "output": Path("new"), "split": None}
    placed = {"dataset": "bundled:triage", "template": "chat", "output": str(tmp_path / "new")}
    assert CalibrateRequest.asked(model="chat", **given).arguments() == placed | {"model": str(tmp_path / "chat")}
    both = EvaluateRequest.asked(checkpoints=["chat", "me/it"], **given)
    assert both.arguments() == placed | {"checkpoints": [str(tmp_path / "chat"), "me/it"]}


@pytest.mark.parametrize("name", ["~nobody-has-this-name/model", "x" * 2**10, "a\0b"])
def test_a_name_that_no_file_can_have_stays_as_it_is(name: str) -> None:
    """Whoever opens it says what is wrong."""
    assert CalibrateRequest.asked(model=name).arguments() == {"model": name}


def test_a_job_stands_in_the_queue_of_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As asked for, that of its calibration, or the one that auto would be."""
    (tmp_path / "record.json").write_text('{"settings": {"device": "cuda:1"}}')
    monkeypatch.setattr("slim.jobs.devices.has_cuda", lambda: True)
    requests: tuple[tuple[Request, str], ...] = (
        (CalibrateRequest(device="cpu"), "cpu"),
        (CalibrateRequest(), "cuda:0"),
        (JudgeRequest(pruned="x", device="cuda"), "cuda:0"),
        (JudgeRequest(pruned="x"), "cuda:0"),
        (CheckRequest(calibration=str(tmp_path)), "cuda:1"),
        (AfterRepairRequest(calibration=str(tmp_path / "gone")), "cuda:0"),
        (PruneRequest(plan="x", repair=False, device="cuda"), "cpu"),
        (PruneRequest(plan="x", device="cuda:2"), "cuda:2"),
        (ExportRequest(folder="x", output=Path("x.gguf")), "cpu"),
        (pushing(), "cpu"),
    )
    for request, device in requests:
        assert device_of(KINDS[request.verb].device(request)) == device
    monkeypatch.setattr("slim.jobs.devices.has_cuda", lambda: False)
    assert device_of("auto") == "cpu"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DISK),
        (sqlite3.OperationalError("database or disk is full"), DISK),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MEMORY),
        (caused(InputError("model 'x' is damaged."), MemoryError()), MEMORY),
        (SlimError("out of memory on a single row: choose less."), "out of memory on a single row: choose less."),
        (caused(SlimError("no space left while writing 'x': free some."), OSError(28, "x")), None),
        (ConnectionError("refused"), NETWORK),
        (caused(ValueError("no"), ConnectionResetError()), NETWORK),
        (ValueError("no"), "ValueError: no"),
    ],
)
def test_a_reason_is_one_sentence(error: Exception, reason: str | None) -> None:
    """Whatever library it came from, and however it was wrapped."""
    assert failure_reason(error) == (reason or str(error))


@pytest.mark.parametrize(
    ("code", "log", "reason"),
    [
        (-9, "", GONE),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'\n", MEMORY),
        (
            -6,
            "memory allocation of 20000000 bytes failed\nstack backtrace:\nnote: run with `RUST_BACKTRACE=full`\n",
            MEMORY,
        ),
        (
            -6,
            "out of memory at 8 rows: 4 from now on\n" + "Sketching\n" * 4,
            "its process ended by SIGABRT; see its log, and start it again.",
        ),
        (-11, "", "its process ended by SIGSEGV; see its log, and start it again."),
        (1, "Loading\nslim: no space left: free some.\n", "no space left: free some."),
        (1, "MemoryError\n", MEMORY),
        (3, "", "its process ended with code 3 without a reason; see its log, and start it again."),
    ],
)
def test_a_death_is_told_by_its_code_and_last_words(code: int, log: str, reason: str) -> None:
    """Where the worker could not write why."""
    assert death_reason(code, log) == reason


def test_on_a_full_disk_ends_are_written_and_the_rest_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[Path], AbstractContextManager[bool]]
) -> None:
    """Room was set aside for what is dear. Once that is gone too the jobs can still be read, as they truly stand."""
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setenv("SLIM_HOME", str(room / "workspace"))
    with small_disk(room) as real:
        with JobStore() as store:
            for name in ("one", "two"):
                store.put(Job(id=name, kind="push", arguments={}, created=1.0, state="running", pid=2**22 - 1))
            ballast = store.folder / "ballast"
            assert ballast.stat().st_size == BALLAST
            if real:
                fill(room / "filler")
                with pytest.raises(StoreFull):
                    store.update("one", dear=False, message="x" * 2**16)
                assert ballast.exists()
            store.update("one", state="done", result="x" * 2**15)
        assert ballast.exists() != real
        if real:
            fill(room / "more")
        else:
            monkeypatch.setattr(JobStore, "_open", refused)
        assert {job.id: job.state for job in jobs.jobs()} == {"one": "done", "two": "failed"}
        with pytest.raises(SlimError, match="free some space"):
            jobs.start(pushing("x" * 2**20))
        if real:
            (room / "filler").unlink()
            jobs.forget("one")
            assert [job.id for job in jobs.jobs()] == ["two"]
            assert ballast.exists()


def refused(self: JobStore) -> None:
    """Fail as SQLite does on a full disk."""
    raise sqlite3.OperationalError("database or disk is full")


def fill(path: Path) -> None:
    """To the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_a_command_is_cancelled_from_elsewhere(model: str, own_workspace: Path) -> None:
    """It ends as with Ctrl-C, and leaves a record that can be gone on with."""
    command = ["slim", "calibrate", "--model", model, "--dataset", "bundled:triage", "--samples", "234"]
    command += ["--draws", "200", "--batch-size", "1", "--device", "cpu", "--output", str(own_workspace / "made")]
    with subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: any(job.done > 0 for job in jobs.jobs()) or process.poll() is not None)
        (job,) = jobs.jobs()
        assert (job.pid, job.origin, job.state) == (process.pid, "command line", "running")
        assert job.arguments["output"] == str(own_workspace / "made")
        jobs.cancel(job.id)
        assert process.wait() in (130, -signal.SIGKILL)
    after = jobs.state_of(job.id)
    assert after is not None
    assert after.state == "cancelled"
    assert not (own_workspace / "made").exists()
    assert not list(own_workspace.rglob("*.partial-*"))
