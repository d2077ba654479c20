"""Pruning that is refused or fails on the way, and leaves nothing behind."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import slim.calibration
from slim import workspace
from slim.calibrate import calibrate
from slim.errors import Cancelled, InputError, SlimError
from slim.models import Loaded, load
from slim.prune import prune
from slim.records import Keep, Plan, Settings
from tests.pico import plan_of, random_rows, save_pico
from tests.reference import measured

KEEP: Keep = ((), (0, 2, 3, 5), (3, 4, 5), (0, 1, 2, 3, 4, 5))


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
    with pytest.raises(InputError, match="pruned already"):
        calibrate(str(pruned), settings=Settings(samples=2, device="cpu"), output=tmp_path / "calibration")
    assert not (tmp_path / "calibration").exists()


class Usage(NamedTuple):
    """What shutil.disk_usage gives."""

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
    assert workspace.runs("checkpoint") == []


@pytest.mark.parametrize("error", [Cancelled("cancelled"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, error: BaseException) -> None:
    """Whatever ends the block before its end."""
    output = tmp_path / "deep" / "run"
    with pytest.raises(type(error)), workspace.new_folder(output) as partial:  # noqa: PT012
        (partial / "half").write_text("half")
        assert not output.exists()
        raise error
    assert not output.exists()
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_calibration_that_cannot_be_written_leaves_nothing(
    pico: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up after its first bytes."""

    def full(arrays: dict[str, np.ndarray[Any, Any]], file: Path) -> None:
        save_file({"part": np.zeros(2)}, file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(slim.calibration, "save_file", full)
    calibration = measured(pico("llama"), random_rows((4, 5)), kl="none")
    with pytest.raises(SlimError, match="no space left"):
        slim.calibration.save(calibration, tmp_path / "calibration")
    assert not list(tmp_path.glob("*calibration*"))
    assert workspace.runs("calibration") == []


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
        load(original.facts.source, device="cpu")


@pytest.mark.parametrize("source", ["bundled:nothing", "no such model", "nowhere/at all", "/nowhere/model.gguf"])
def test_sources_that_are_no_model(source: str) -> None:
    """The message repeats the value."""
    with pytest.raises(InputError) as caught:
        load(source)
    assert source in str(caught.value)


def test_a_device_that_is_not_there_is_refused(original: Loaded) -> None:
    """The message names it."""
    assert torch.device("cpu") == original.model.device
    with pytest.raises(InputError, match="'cuda:9'"):
        load(original.facts.source, device="cuda:9")
