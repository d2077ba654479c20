"""Pruning that is refused or fails on the way, and leaves nothing behind."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from slim.calibration import record
from slim.calibration.calibrate import calibrate
from slim.calibration.request import CalibrateRequest
from slim.core import workspace
from slim.core.errors import Cancelled, InputError, SlimError
from slim.core.run_index import runs
from slim.models.columns import channel_mask
from slim.models.load import Loaded, load_model
from slim.models.units import whole_model
from slim.planning.record import Plan
from slim.pruning.checkpoint import prune
from tests import ROOT
from tests.pico import keeping, plan_of, random_rows, save_pico
from tests.reference import measured

KEEP = keeping((), (0, 2, 3, 5), (3, 4, 5), (0, 1, 2, 3, 4, 5))
HALF = """
import sys, time
from pathlib import Path
from slim.core import workspace
with workspace.new_folder(Path(sys.argv[1])) as partial:
    (partial / "config.json").write_text("{")
    (partial / "model.safetensors").write_bytes(bytes(64))
    print("half", flush=True)
    time.sleep(600)
"""
"""A save that does not come to its end."""


@pytest.fixture
def original(pico: Callable[..., Loaded], tmp_path: Path) -> Loaded:
    """A llama in a folder."""
    return save_pico(pico("llama"), tmp_path / "original")


@pytest.fixture
def plan(original: Loaded) -> Plan:
    """A plan that takes something from three layers."""
    return plan_of(original.facts, KEEP)


def test_a_folder_with_something_in_it_is_refused(plan: Plan, tmp_path: Path) -> None:
    """And keeps what it has; an empty one is used."""
    output = tmp_path / "output"
    output.mkdir()
    (output / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty") as caught:
        prune(plan, output)
    assert str(output) in str(caught.value)
    assert [file.name for file in output.iterdir()] == ["mine.txt"]
    (output / "mine.txt").unlink()
    assert prune(plan, output) == output
    assert (output / "config.json").is_file()


def test_an_output_that_is_a_file_is_refused(plan: Plan, tmp_path: Path) -> None:
    """It stays as it is."""
    (tmp_path / "output").write_text("keep")
    with pytest.raises(InputError, match="existing file"):
        prune(plan, tmp_path / "output")
    assert (tmp_path / "output").read_text() == "keep"


def test_the_plan_of_another_model_is_refused(plan: Plan, pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """The folder's weights changed since the plan was made."""
    other = pico("llama", seed=1)
    other.model.save_pretrained(tmp_path / "original")
    with pytest.raises(InputError, match="fingerprint") as caught:
        prune(plan, tmp_path / "pruned")
    assert plan.model.fingerprint[:12] in str(caught.value)
    assert not (tmp_path / "pruned").exists()


def test_a_missing_original_is_refused(plan: Plan, tmp_path: Path) -> None:
    """The folder went away since the plan was made."""
    (tmp_path / "original").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="original"):
        prune(plan, tmp_path / "pruned")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"]


def test_a_pruned_model_is_not_calibrated(plan: Plan, tmp_path: Path) -> None:
    """Its layers differ: the original is what plans are made for."""
    pruned = prune(plan, tmp_path / "pruned")
    with pytest.raises(InputError, match=f"pruned already: calibrate the original, '{plan.model.source}'"):
        calibrate(CalibrateRequest.asked(model=pruned, samples=2, device="cpu", output=tmp_path / "calibration"))
    assert not (tmp_path / "calibration").exists()


def test_a_plan_that_removes_channels_is_refused(plan: Plan, tmp_path: Path) -> None:
    """Its sizes are counted, and nothing carries it out yet: before anything is loaded, and nothing is written."""
    keep = (*plan.keep[:3], plan.keep[3].model_copy(update={"channels": channel_mask(range(40), 48)}))
    (tmp_path / "original").rename(tmp_path / "moved")
    with pytest.raises(InputError) as caught:
        prune(plan_of(plan.model, keep), tmp_path / "pruned")
    assert str(caught.value) == (
        "keep[3].channels=…: MLP channels cannot be removed yet; plan heads, groups, blocks or layers."
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"]


class Usage(NamedTuple):
    """The result of shutil.disk_usage."""

    total: int
    used: int
    free: int


def test_a_disk_too_small_is_named_before_anything_is_done(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what is needed and what is there."""
    monkeypatch.setattr(workspace.shutil, "disk_usage", lambda path: Usage(100, 99, 1))
    with pytest.raises(InputError, match=r"needs 0 MB and its disk has 0 MB free"):
        prune(plan, tmp_path / "pruned")
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_a_disk_that_fills_up_while_saving_leaves_nothing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the weights was written when the space ran out."""
    written: list[Path] = []

    def full(tensors: Any, file: Any, **options: Any) -> None:
        Path(file).write_bytes(b"part")
        written.append(Path(file))
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(SlimError, match="no space left") as caught:
        prune(plan, tmp_path / "pruned")
    assert str(tmp_path / "pruned") in str(caught.value)
    assert written
    assert not list(tmp_path.glob("*pruned*"))
    assert not list(tmp_path.glob(".*pruned*"))
    assert runs("checkpoint") == []


@contextmanager
def little_room(place: Path, size: int) -> Iterator[bool]:
    """A folder on a disk of `size` bytes, or, where none can be mounted, a limit on files; says whether it is one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if shutil.which("mount") and subprocess.run(command, check=False, capture_output=True).returncode == 0:
        try:
            yield True
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)  # weights that were loaded are mapped
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield False
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_real_disk_that_fills_up_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    """Whichever file is the one that finds no room: weights, tokenizer, recipe or card."""
    refused: list[SlimError] = []
    for room in range(0, 400_000, 8_192):
        place = tmp_path / f"disk-{room}"
        with little_room(place, plan.after.bytes + room) as mounted:
            try:
                prune(plan, place / "pruned")
            except SlimError as error:
                refused.append(error)
                left = [*place.iterdir(), *runs("checkpoint")]
            else:
                assert load_model(str(place / "pruned"), device="cpu").facts.layers == 4
                break
        assert left == []
        assert str(place / "pruned") in str(refused[-1])
        assert ("no space left" if mounted else "could not be written") in str(refused[-1])
    assert 0 < len(refused) < 48


@contextmanager
def half_saved(output: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a save."""
    command = [sys.executable, "-c", HALF, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            yield process
        finally:
            process.kill()


def test_what_a_killed_save_left_is_removed_by_the_next(plan: Plan, tmp_path: Path) -> None:
    """It never loads, and is gone with the next save beside it; what another process is writing stays."""
    output = tmp_path / "pruned"
    with half_saved(output) as killed, half_saved(tmp_path / "other") as busy:
        killed.kill()
        killed.wait()
        left = {path.name for path in tmp_path.glob(".*")}
        assert left == {f".pruned.partial-{killed.pid}", f".other.partial-{busy.pid}"}
        assert not output.exists()
        with pytest.raises(InputError, match="was not found"):
            load_model(str(output), device="cpu")
        prune(plan, output)
        assert {path.name for path in tmp_path.glob(".*")} == {f".other.partial-{busy.pid}"}
    assert load_model(str(output), device="cpu").facts.layers == 4


def test_a_process_number_given_anew_protects_nothing(tmp_path: Path) -> None:
    """Files of a dead process are not taken for those of the one that has its number now; strangers' files stay."""
    mine, dead, stranger = (
        tmp_path / name for name in (f".a.partial-{os.getpid()}", f".b.partial-{os.getpid()}", ".c.partial-x")
    )
    for path in (mine, dead, stranger):
        path.mkdir()
    file = tmp_path / ".plan.json.partial-999999999"
    file.write_text("{")
    os.utime(dead, (1, 1))
    workspace.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, stranger])


def test_two_saves_to_one_place_do_not_harm_each_other(tmp_path: Path) -> None:
    """The second is refused, and the first comes to its end."""
    output = tmp_path / "run"
    with workspace.new_folder(output) as partial:
        (partial / "file").write_text("whole")
        with pytest.raises(SlimError, match="could not be written"), workspace.new_folder(output):
            pass
    assert [path.name for path in output.iterdir()] == ["file"]


def test_a_layer_without_heads_loses_its_block(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """With its norm and its output bias, not only its heads."""
    original = save_pico(pico("llama", attention_bias=True), tmp_path / "original")
    full = whole_model(original.facts)
    made = plan_of(original.facts, keeping(full[0], (), *full[2:]))
    assert made.removed_blocks == (1,)
    loaded = load_model(str(prune(made, tmp_path / "pruned")), device="cpu")
    left = {name for name, p in loaded.model.named_parameters() if name.startswith("model.layers.1.") and p.numel()}
    parts = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm")
    assert left == {f"model.layers.1.{part}.weight" for part in parts}


@pytest.mark.parametrize("error", [Cancelled("cancelled"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, error: BaseException) -> None:
    """Whatever ends the block before its end."""
    output = tmp_path / "deep" / "run"
    with pytest.raises(type(error)), workspace.new_folder(output) as partial:  # noqa: PT012
        (partial / "half").write_text("half")
        assert not output.exists()
        raise error
    assert not output.parent.exists()


def test_a_calibration_that_cannot_be_written_leaves_nothing(
    pico: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up after its first bytes."""

    def full(arrays: dict[str, np.ndarray[Any, Any]], file: Path) -> None:
        save_file({"part": np.zeros(2)}, file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record, "save_file", full)
    calibration = measured(pico("llama"), random_rows((4, 5)), kl="none")
    with pytest.raises(SlimError, match="no space left"):
        record.save_calibration(calibration, tmp_path / "calibration")
    assert not list(tmp_path.glob("*calibration*"))
    assert runs("calibration") == []


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "without a config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read|can be read|not a valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bloom", "architectures": ["B"]}'),
            "'bloom' is not supported.*llama",
        ),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nonsense"}'), "nonsense"),
    ],
    ids=["no config", "broken config", "no weights", "unsupported", "unknown"],
)
def test_folders_that_are_no_model(original: Loaded, break_it: Callable[[Path], Any], words: str) -> None:
    """The message names what is wrong."""
    break_it(Path(original.facts.source))
    with pytest.raises(InputError, match=words):
        load_model(original.facts.source, device="cpu")


@pytest.mark.parametrize("source", ["bundled:nothing", "no such model", "nowhere/at all", "/nowhere/model.gguf"])
def test_sources_that_are_no_model(source: str) -> None:
    """The message repeats the value."""
    with pytest.raises(InputError) as caught:
        load_model(source)
    assert source in str(caught.value)


def test_a_device_that_is_not_there_is_refused(original: Loaded) -> None:
    """The message names it."""
    assert torch.device("cpu") == original.model.device
    with pytest.raises(InputError, match="'cuda:9'"):
        load_model(original.facts.source, device="cuda:9")
