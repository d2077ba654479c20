"""Calibrations on disk: they come back as they were, or are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slim import calibrate
from slim.calibration import Calibration
from slim.errors import InputError
from slim.models import Loaded
from slim.plan import make_plan
from tests.pico import random_rows
from tests.reference import measured


@pytest.fixture(scope="module")
def calibration(pico: Callable[..., Loaded]) -> Calibration:
    """Of a llama with 4 layers of 6 heads in 2 groups."""
    return measured(pico("llama"), random_rows((9, 12, 7, 10)), draws=4)


@pytest.fixture
def saved(calibration: Calibration, tmp_path: Path) -> Path:
    """The calibration as a run folder."""
    path = calibrate.save(calibration, tmp_path / "calibration").path
    assert path is not None
    return path


def test_a_calibration_survives_its_folder(calibration: Calibration, saved: Path) -> None:
    """Facts, every array bit for bit, and the plan made from them."""
    again = calibrate.load(saved)
    assert again.facts == calibration.facts
    assert again.metrics.keys() == calibration.metrics.keys()
    for name, scores in calibration.metrics.items():
        assert again.metrics[name].keys() == scores.keys()
        for level, values in scores.items():
            np.testing.assert_array_equal(again.metrics[name][level], values)
    assert again.sketch is not None
    assert calibration.sketch is not None
    for part in ("scores", "tokens", "sequence"):
        np.testing.assert_array_equal(getattr(again.sketch, part), getattr(calibration.sketch, part))
    assert make_plan(again, 0.6).keep == make_plan(calibration, 0.6).keep
    assert sorted(file.name for file in saved.iterdir()) == ["record.json", "tensors.safetensors"]


def truncate(folder: Path) -> None:
    """The tensors lose their last half."""
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_record(folder: Path) -> None:
    """The record stops in the middle."""
    file = folder / "record.json"
    file.write_text(file.read_text()[:200])


def other_shape(folder: Path) -> None:
    """The record speaks of a layer more than the tensors have."""
    file = folder / "record.json"
    file.write_text(file.read_text().replace('"layers": 4', '"layers": 5'))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        cut_record,
        other_shape,
        lambda folder: (folder / "tensors.safetensors").unlink(),
        lambda folder: (folder / "tensors.safetensors").write_bytes(b""),
        lambda folder: (folder / "record.json").unlink(),
        lambda folder: (folder / "record.json").write_bytes(b"\xff\xfe"),
    ],
)
def test_damaged_calibrations_are_refused(saved: Path, damage: Callable[[Path], Any]) -> None:
    """The message names the folder and what to run."""
    damage(saved)
    with pytest.raises(InputError, match=r"calibration .*slim calibrate") as caught:
        calibrate.load(saved)
    assert str(saved) in str(caught.value)
