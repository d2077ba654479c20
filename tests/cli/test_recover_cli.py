"""Fine-tuning as a command and as a job, and one that is killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from slim import jobs
from slim.pruning import checkpoint
from slim.pruning.history import load_recovery
from slim.recovery.request import FinetuneRequest
from tests.commands import Run
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.recovery.test_finetune import same, states, written
from tests.surgery import WHOLE

SMALL = ("--rows", "60", "--batch-size", "2", "--micro-batch", "2", "--max-length", "48", "--rank", "2")
PATIENCE = 180.0
"""Seconds after which a test gives up; nothing is asserted about time."""


class Files(NamedTuple):
    """A checkpoint and rows to learn from."""

    pruned: Path
    rows: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("recover")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        original = save_pico(make_pico("llama"), folder / "original")
        checkpoint.prune(plan_of(original.facts, keeping((), (0, 2, 3, 5), WHOLE, WHOLE)), folder / "pruned")
    return Files(folder / "pruned", written(folder / "rows.jsonl"))


def test_for_people_and_programs(files: Files, tmp_path: Path, run: Run) -> None:
    """The estimate first, then the figures before and after; the record with --json."""
    given = (files.pruned, "--dataset", files.rows, *SMALL, "--steps", 4, "--evaluations", 2, "--learning-rate", 0.01)
    code, out, err = run("finetune", *given, "--output", tmp_path / "one")
    (step,) = load_recovery(tmp_path / "one").steps
    assert code == 0
    assert "60 rows, " in err
    assert "GB of memory" in err
    for figure in (f"{step.before.kl:.4f}", f"{step.after.kl:.4f}", f"{step.after.ratio:.3f}×"):
        assert figure in out
    assert f"Checkpoint: {tmp_path / 'one'}" in out
    code, out, err = run("finetune", *given, "--method", "lora", "--adapter", "--json", "--output", tmp_path / "two")
    told = json.loads(out)
    assert (code, told["method"], told["path"]) == (0, "lora", str(tmp_path / "two"))
    assert (tmp_path / "two" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--steps", "0"), "steps=0"),
        (("--rank", "-1"), "rank=-1"),
        (("--rank", "0", "--adapter"), "merge=False"),
        (("--original", "nowhere"), "model 'nowhere' was not found"),
        (("--columns", "question"), "columns='question': "),
    ],
)
def test_bad_input_is_one_line(files: Files, tmp_path: Path, run: Run, given: tuple[str, ...], said: str) -> None:
    code, _, err = run("finetune", files.pruned, "--dataset", files.rows, *SMALL, *given, "--output", tmp_path / "none")
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "none").exists()


def test_as_a_job(files: Files, tmp_path: Path) -> None:
    """In a worker process; its result is the folder."""
    short = {"steps": 2, "samples": 60, "batch_size": 2, "max_length": 48, "evaluations": 1}
    job = jobs.start(FinetuneRequest.asked(folder=files.pruned, dataset=files.rows, method="lora", **short))
    deadline = time.monotonic() + PATIENCE
    while (found := jobs.state_of(job.id)) is not None and found.state not in ("done", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert found is not None
    assert (found.state, found.error) == ("done", None)
    assert load_recovery(Path(str(found.result))).steps[0].method == "lora"


@pytest.mark.integration
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL after step 60 of 100, then the same command again: bit for bit."""
    monkeypatch.setenv("SLIM_HOME", str(tmp_path / "workspace"))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "slim", "finetune", str(files.pruned), "--dataset", str(files.rows), *SMALL]
    command += ["--steps", "100", "--evaluations", "20", "--patience", "20", "--device", "cpu", "--output"]
    with (tmp_path / "log").open("wb") as log:
        killed = subprocess.Popen([*command, str(tmp_path / "resumed")], env=env, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not any(int(state.name.rpartition("-")[2]) >= 60 for state in states()):
            assert killed.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert states()
    assert not (tmp_path / "resumed").exists()
    subprocess.run([*command, str(tmp_path / "resumed")], env=env, check=True, capture_output=True)
    assert not states()
    subprocess.run([*command, str(tmp_path / "unbroken")], env=env, check=True, capture_output=True)
    assert same(tmp_path / "resumed", tmp_path / "unbroken")
    assert not same(tmp_path / "resumed", files.pruned)
    one, other = (load_recovery(tmp_path / name).steps[0] for name in ("resumed", "unbroken"))
    assert one.curve == other.curve
    assert one.after == other.after
