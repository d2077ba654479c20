"""Corner cases: batching of the block ablations, odd uniform shapes, damaged input, and jobs that end oddly."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from slim import cli, jobs
from slim.core import workspace
from slim.core.errors import Cancelled, InputError, SlimError
from slim.core.reporter import SILENT
from slim.core.run_index import references, remember
from slim.data import tasks
from slim.jobs import worker
from slim.jobs.foreground import foreground
from slim.jobs.job import Job
from slim.jobs.kinds import JobKind
from slim.jobs.store import JobStore
from slim.models.load import Loaded, load_model
from slim.planning.files import load_plan, save_plan
from slim.planning.shapes import valid_heads
from slim.pruning.checkpoint import prune
from slim.serving.request import PushRequest
from tests.pico import keeping, make_pico, pico_tokenizer, plan_of, random_rows, save_pico
from tests.reference import block_kl, measured

ROWS = random_rows((5, 11, 3, 8, 16, 7, 4, 9, 20, 2, 6, 12))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_block_kl_does_not_depend_on_the_batch_size(pico: Callable[..., Loaded], batch_size: int) -> None:
    """The rows it is measured on are chosen before they are batched."""
    alone = measured(pico("llama"), ROWS, batch_size=1).metrics["kl_output"]["block"]
    other = measured(pico("llama"), ROWS, batch_size=batch_size).metrics["kl_output"]["block"]
    np.testing.assert_allclose(other, alone, rtol=1e-6)


def test_block_kl_is_measured_on_short_and_long_rows(pico: Callable[..., Loaded]) -> None:
    """Four of every other row, spread evenly over the lengths, the shortest and the longest among them."""
    found = measured(pico("llama"), ROWS, batch_size=4)
    expected = block_kl(pico("llama"), [ROWS[index] for index in (2, 0, 10, 8)])
    np.testing.assert_allclose(found.metrics["kl_output"]["block"], expected, rtol=1e-5)
    assert "on 4 of the rows" in found.facts.metrics["kl_output"].method


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_uniform_plan_whose_heads_do_not_divide_the_width_loads(
    pico: Callable[..., Loaded], tmp_path: Path, family: str
) -> None:
    """Five heads and a hidden size of 24: llama's config refuses that as a stock checkpoint."""
    original = save_pico(pico(family, kv_heads=6), tmp_path / "original")
    made = plan_of(original.facts, keeping((0, 1, 2, 3, 4)) * 4)
    smaller = load_model(str(prune(made, tmp_path / "pruned")), device="cpu", dtype="float64")
    assert sum(parameter.numel() for parameter in smaller.model.parameters()) == made.after.parameters


def test_truncated_weights_are_refused(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """A file that ends early is not loaded."""
    save_pico(pico("llama"), tmp_path / "original")
    file = tmp_path / "original" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="original"):
        load_model(str(tmp_path / "original"), device="cpu")


def test_a_full_disk_as_safetensors_tells_it(
    pico: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors raises its own error, not an OSError."""
    original = save_pico(pico("llama"), tmp_path / "original")

    def full(tensors: Any, file: Any, **options: Any) -> None:
        Path(file).write_bytes(b"part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(SlimError, match="no space left"):
        prune(
            plan_of(
                original.facts,
                keeping(
                    (0, 3),
                )
                * 4,
            ),
            tmp_path / "pruned",
        )
    assert [path.name for path in tmp_path.iterdir() if "pruned" in path.name] == []


@pytest.mark.parametrize("output", ["{tmp}/taken", "{tmp}/new"])
def test_standard_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], output: str
) -> None:
    """No blank line and no progress bars of other libraries before it, where nobody watches a terminal."""
    save_pico(make_pico("llama"), tmp_path / "model")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    arguments = ["--model", str(tmp_path / "model"), "--output", output.format(tmp=tmp_path), "--device", "quantum"]
    monkeypatch.setattr(sys, "argv", ["slim", "calibrate", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    said = capfd.readouterr().err
    assert said.startswith("slim: ")
    assert said.count("\n") == 1


def test_a_legal_threshold_is_followed_exactly() -> None:
    """Where the heads below the threshold are a valid shape, that set stays: a head at the threshold goes."""
    rng = np.random.default_rng(3)
    for _ in range(500):
        costs, threshold = rng.integers(0, 9, 6), int(rng.integers(0, 10))
        free = tuple(np.flatnonzero(costs < threshold).tolist())
        if len({sum(head // 3 == group for head in free) for group in {head // 3 for head in free}}) <= 1:
            assert valid_heads(costs, threshold, 2, (1, 2, 3)) == free


@pytest.mark.parametrize("gold", [5, -4, "b", 1.5])
def test_a_key_that_names_no_choice_is_refused(tmp_path: Path, gold: Any) -> None:
    """The message names the file, the column and the row."""
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"query": "Which?", "choices": ["x", "y"], "gold": gold}) + "\n")
    with pytest.raises(InputError, match=rf"{file.name}.*'gold' is not the place of one of the choices \(row 1\)"):
        tasks.load_task(str(file))


def test_a_question_that_is_a_number_is_text(tmp_path: Path) -> None:
    """A CSV column of numbers is read as such, and a chat template that joins strings needs one."""
    (tmp_path / "a.csv").write_text("question,answer\n12,13\n")
    (example,) = tasks.load_task(str(tmp_path / "a.csv")).examples
    assert example == tasks.Example("12", "13")
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ '<bos>' + m['content'] }}{% endfor %}"
    assert tasks.text_of(example, tokenizer) == "<bos>12<bos>13"


def test_a_cancelled_job_is_not_a_failed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library on the way may turn the cancellation into an error of its own."""

    def cancelled_on_the_way(kind: JobKind, request: Any, reporter: Any) -> str:
        with JobStore() as store:
            store.update("a", state="cancelling")
        try:
            raise Cancelled("cancelled")
        except Exception as error:
            raise InputError("dataset could not be read") from error

    monkeypatch.setattr(JobKind, "run", cancelled_on_the_way)
    with JobStore() as store:
        store.put(Job(id="a", kind="calibrate", arguments={}, created=0))
    monkeypatch.setattr(worker.signal, "signal", lambda *arguments: None)
    assert worker.run("a") == 130
    with JobStore() as store:
        job = store.get("a")
    assert job is not None
    assert job.state == "cancelled"


def test_a_job_of_another_version_does_not_hide_the_others(own_workspace: Path) -> None:
    """A field that this version does not know is passed over, a state that it does not know hides that job alone."""
    with JobStore() as store:
        mine = store.put(Job(id="mine", kind="prune", arguments={}, created=0, state="done"))
        cache: Any = store._cache
        cache.set("newer", {**mine.model_dump(mode="json"), "id": "newer", "created": 1, "colour": "red"})
        cache.set("other", {**mine.model_dump(mode="json"), "id": "other", "state": "asleep"})
    assert [job.id for job in jobs.jobs()] == ["newer", "mine"]
    assert jobs.state_of("other") is None


def test_a_run_that_a_newer_slim_knows_more_of_stays_in_the_list(own_workspace: Path, tmp_path: Path) -> None:
    """Its reference has a field that this version does not know."""
    (tmp_path / "run.json").write_text("{}")
    kept = remember(tmp_path / "run.json", "plan")
    file = workspace.subfolder("runs") / f"{kept.key}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"colour": "red"}))
    assert references() == [kept]


@pytest.mark.parametrize("field", ["before", "after"])
def test_a_plan_whose_sizes_do_not_fit_its_heads_is_refused(
    pico: Callable[..., Loaded], tmp_path: Path, field: str
) -> None:
    """Editing `keep` by hand must not leave the old sizes standing."""
    path = save_plan(plan_of(pico("llama").facts, keeping((0, 3), (0, 3), (0, 3), (1, 4))), tmp_path / "plan.json")
    value = json.loads(path.read_text())
    value[field]["parameters"] += 1
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=field):
        load_plan(path)


def test_a_done_job_is_written_before_the_next_one_may_start(
    own_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is free only when the job's end is known, so two jobs never show as running."""
    held: list[bool] = []
    update = JobStore.update

    def watch(self: JobStore, job_id: str, **changes: Any) -> Job | None:
        if changes.get("state") == "done":
            held.append(_locked(self.folder / "device-cpu.lock"))
        return update(self, job_id, **changes)

    monkeypatch.setattr(JobStore, "update", watch)
    asked = PushRequest.asked(folder="small", repository="me/small")
    assert foreground(asked, lambda request, reporter: "there", SILENT) == "there"
    assert held == [True]
    (job,) = jobs.jobs()
    assert (job.state, job.result) == ("done", "there")
    assert not _locked(own_workspace / "jobs" / "device-cpu.lock")


def _locked(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
