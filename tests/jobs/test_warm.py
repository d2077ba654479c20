"""Workers that are forked from a process that has imported what they need: like those that are started anew."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from slim import jobs
from slim.calibration.calibrate import calibrate
from slim.calibration.record import load_calibration
from slim.calibration.request import CalibrateRequest
from slim.core import launch
from slim.core.errors import SlimError
from slim.jobs import Job
from slim.jobs.devices import hold
from slim.jobs.executor import LocalProcess
from slim.jobs.forking import address, fork, new_socket, stamp
from slim.jobs.store import JobStore
from slim.jobs.worker import NICE
from tests.pico import make_pico, save_pico
from tests.waiting import ended, gone, wait_for, wait_until
from tests.warm import listens, warm_process

SMALL = {"samples": 4, "max_length": 48, "device": "cpu"}
ENDLESS = {"samples": 234, "draws": 200, "batch_size": 1, "max_length": 320, "device": "cpu"}


class Home:
    """A workspace with a model, and the processes that fork its workers."""

    def __init__(self, folder: Path) -> None:
        self.place, self.model = folder / "workspace", folder / "model"
        self.processes: list[subprocess.Popen[bytes]] = []
        save_pico(make_pico("llama"), self.model)

    def new(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start such a process, as the server does."""
        process = warm_process(**{"SLIM_HOME": str(self.place)} | settings)
        self.processes.append(process)
        return process

    def warm(self) -> subprocess.Popen[bytes]:
        """Return one that listens."""
        running = [process for process in self.processes if process.poll() is None]
        process = running[0] if running else self.new()
        wait_until(lambda: listens() or process.poll() is not None)
        assert process.poll() is None
        return process

    def started(self, **settings: Any) -> Job:
        given = SMALL | settings
        return jobs.start(CalibrateRequest.asked(model=self.model, dataset="bundled:triage", **given))

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """The workspace of this module: a process that has imported everything takes seconds to start."""
    made = Home(tmp_path_factory.mktemp("warm"))
    yield made
    made.end()


@pytest.fixture
def home(shared: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """The same as this process's workspace."""
    monkeypatch.setenv("SLIM_HOME", str(shared.place))
    yield shared
    for job in jobs.jobs():
        jobs.cancel(job.id)


def begun(job: Job) -> Job:
    """Return the job once it works."""
    return wait_for(job, lambda found: found.state == "running" and found.done > 0)


def parent(job: Job) -> int:
    assert job.pid is not None
    return psutil.Process(job.pid).ppid()


def device_is_free() -> bool:
    with JobStore() as store:
        lock = hold(store.folder, "device", "cpu")
    if lock is not None:
        os.close(lock)
    return lock is not None


def test_a_forked_worker_finds_what_this_process_finds(home: Home) -> None:
    """Its end and its peak memory are written; then its process is gone, and the device is free."""
    warm = home.warm()
    done = wait_for(home.started(), ended)
    assert done.state == "done", jobs.log_of(done.id)
    found = load_calibration(Path(done.result or ""))
    expected = calibrate(CalibrateRequest.asked(model=home.model, dataset="bundled:triage", **SMALL))
    assert found.estimates.keys() == expected.estimates.keys()
    for name, levels in expected.estimates.items():
        for level, estimate in levels.items():
            np.testing.assert_allclose(found.estimates[name][level].value, estimate.value, rtol=1e-4, atol=1e-6)
    wait_until(device_is_free)
    assert not psutil.pid_exists(done.pid or 0)
    assert (wait_for(done, lambda job: job.peak).peak or 0) > 2**27
    assert psutil.Process(warm.pid).children() == []


def test_a_forked_worker_is_cancelled_with_all_that_is_its_own(home: Home) -> None:
    """It has a session, an input, a log and a folder as if it had been started anew; the other process goes on."""
    warm = home.warm()
    job = begun(home.started(**ENDLESS))
    assert job.pid is not None
    assert (parent(job), os.getsid(job.pid)) == (warm.pid, job.pid)
    assert psutil.Process(job.pid).nice() == os.nice(0) + NICE
    files = [os.readlink(f"/proc/{job.pid}/fd/{number}") for number in range(3)]
    assert files == [os.devnull, *[str(home.place / "jobs" / f"{job.id}.log")] * 2]
    assert os.readlink(f"/proc/{job.pid}/cwd") == os.getcwd()
    cancelled = jobs.cancel(job.id)
    assert cancelled is not None
    assert cancelled.state == "cancelled"
    wait_until(lambda: gone(job.pid))
    wait_until(device_is_free)
    assert warm.poll() is None


def test_a_forked_worker_outlives_its_runner_and_keeps_the_device(home: Home) -> None:
    """Then it is killed, and the job has failed."""
    home.warm()
    job = begun(home.started(**ENDLESS))
    (runner,) = [
        one
        for one in psutil.process_iter()
        if one.status() != psutil.STATUS_ZOMBIE
        and one.cmdline()[3:4] == ["slim.jobs.runner"]
        and one.environ()["SLIM_HOME"] == str(home.place)
    ]
    runner.kill()
    runner.wait()
    later = wait_for(job, lambda found: found.done > job.done)
    assert (later.pid, later.state, device_is_free()) == (job.pid, "running", False)
    os.kill(job.pid or 0, signal.SIGKILL)
    after = wait_for(job, ended)
    assert (after.state, "start it again" in (after.error or "")) == ("failed", True)
    wait_until(device_is_free)


def test_the_exit_code_of_a_forked_worker_is_told(home: Home, tmp_path: Path) -> None:
    """That of an error, and the signal that killed it."""
    warm = home.warm()
    with (tmp_path / "log").open("wb") as log, (tmp_path / "lock").open("wb") as lock:
        worker = LocalProcess().submit(Job(id="missing", kind="calibrate", arguments={}, created=0), log, lock.fileno())
        assert worker.wait().code == SlimError.exit_code
        with JobStore() as store:
            job = store.put(Job(id="endless", kind="calibrate", arguments={}, created=0, attached=True))
        worker = LocalProcess().submit(job, log, lock.fileno())
        assert psutil.Process(worker.identity["pid"]).ppid() == warm.pid
        worker.kill()
        killed = worker.wait()
    assert killed.code == -signal.SIGKILL
    assert killed.peak > 2**27
    assert "job='missing': it is not in the workspace" in (tmp_path / "log").read_text()


def test_what_does_not_fit_is_refused(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another environment, words that nobody understands, and a runner that is gone: no worker, or one started anew."""
    warm = home.warm()
    with address() as path:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        for words in (b"words", b"{}", b"[]", b'{"stamp": 1}'):
            with new_socket() as line:
                line.connect(path)
                line.sendall(words)
                with suppress(ConnectionResetError):
                    assert line.recv(64) == b""
        with new_socket() as line, (tmp_path / "log").open("wb") as log:
            line.connect(path)
            asked = {"job": "missing", "stamp": stamp(launch.environment()), "folder": str(tmp_path)}
            socket.send_fds(line, [json.dumps(asked).encode()], [log.fileno(), log.fileno()])
            unconfirmed = int(line.recv(64))
    wait_until(lambda: not psutil.pid_exists(unconfirmed))
    assert (tmp_path / "log").read_bytes() == b""
    monkeypatch.setenv("SLIM_OTHER", "1")
    job = begun(home.started(**ENDLESS))
    assert parent(job) != warm.pid
    assert warm.poll() is None


def test_a_worker_goes_on_where_the_process_that_forked_it_is_killed(home: Home) -> None:
    """The runner waits for it; the next worker is started anew."""
    warm = home.warm()
    job = begun(home.started(**ENDLESS))
    assert parent(job) == warm.pid
    warm.kill()
    warm.wait()
    later = wait_for(job, lambda found: found.done > job.done)
    assert (later.pid, later.state, device_is_free()) == (job.pid, "running", False)
    following = home.started()
    cancelled = jobs.cancel(job.id)
    assert cancelled is not None
    assert cancelled.state == "cancelled"
    assert wait_for(following, ended).state == "done"


def test_it_ends_with_its_server_and_another_takes_its_place(home: Home) -> None:
    """But not before its worker has."""
    first = home.warm()
    job = begun(home.started(**ENDLESS))
    second = home.new()
    assert first.stdin is not None
    first.stdin.close()
    wait_until(lambda: not listens())
    wait_until(listens)
    other = begun(home.started(**ENDLESS)) if jobs.cancel(job.id) else job
    assert parent(other) == second.pid
    assert first.wait() == 0
    assert second.stdin is not None
    second.stdin.close()
    wait_until(lambda: not listens())
    assert second.poll() is None
    jobs.cancel(other.id)
    assert second.wait() == 0


def test_it_ends_when_slim_has_changed(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that it cannot meet makes it look at its files."""
    copied = tmp_path / "copy"
    shutil.copytree(launch.ROOT / "slim", copied / "slim", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("SLIM_HOME", str(tmp_path / "workspace"))
    process = home.new(SLIM_HOME=str(tmp_path / "workspace"), PYTHONPATH=str(copied))
    wait_until(lambda: listens() or process.poll() is not None)
    with (tmp_path / "log").open("wb") as log:
        assert fork("job", log, log.fileno()) is None
        assert listens()
        os.utime(copied / "slim" / "jobs" / "worker.py")
        assert fork("job", log, log.fileno()) is None
    assert process.wait() == 0
