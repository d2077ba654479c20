"""Calibrations on disk: they come back as they were, or are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from slim.calibration.check import measure_check
from slim.calibration.record import Calibration, load_calibration, save_calibration, save_check
from slim.core.errors import InputError
from slim.core.run_index import runs
from slim.data.tasks import Encoded
from slim.models.load import Loaded
from slim.planning.threshold import plan_by_threshold
from tests.pico import random_rows
from tests.reference import measured

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def calibration(pico: Callable[..., Loaded]) -> Calibration:
    """Of a llama with 4 layers of 6 heads in 2 groups, and checked."""
    made = measured(pico("llama"), random_rows((9, 12, 7, 20)), draws=4)
    check = measure_check(made, pico("llama"), Encoded(random_rows((6, 8), seed=2), 0), heads=4)
    return replace(made, check=check)


@pytest.fixture
def saved(calibration: Calibration, tmp_path: Path) -> Path:
    """The calibration as a run folder."""
    assert calibration.check is not None
    path = save_check(save_calibration(calibration, tmp_path / "calibration"), calibration.check).path
    assert path is not None
    return path


def test_a_calibration_survives_its_folder(calibration: Calibration, saved: Path) -> None:
    """Facts, check, every array bit for bit with its interval, and the plan made from them."""
    again = load_calibration(saved)
    assert again.facts == calibration.facts
    assert again.check == calibration.check
    assert again.path == saved
    assert again.estimates.keys() == calibration.estimates.keys()
    for name, levels in calibration.estimates.items():
        assert again.estimates[name].keys() == levels.keys() == set(calibration.facts.metrics[name].levels)
        for level, estimate in levels.items():
            for part in ("value", "low", "high"):
                found, expected = (getattr(e, part) for e in (again.estimates[name][level], estimate))
                np.testing.assert_array_equal(found, expected)
    assert again.sketch is not None
    assert calibration.sketch is not None
    for part in ("scores", "sequence", "tokens"):
        found, expected = (getattr(sketch, part) for sketch in (again.sketch, calibration.sketch))
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    assert plan_by_threshold(again, 0.6) == replace_calibration(plan_by_threshold(calibration, 0.6), saved)
    assert sorted(file.name for file in saved.iterdir()) == ["faithfulness.json", "record.json", "tensors.safetensors"]
    assert runs("calibration") == [saved]


def replace_calibration(plan: Any, path: Path) -> Any:
    """The plan as one of the calibration at `path`."""
    return plan.model_copy(update={"calibration": str(path)})


def test_figures_and_levels_are_those_of_the_estimates(calibration: Calibration) -> None:
    """`metrics` leaves the intervals out, `level` gives the metrics that a level has."""
    for name, levels in calibration.metrics.items():
        for level, values in levels.items():
            assert values is calibration.estimates[name][level].value
    assert "block_influence" not in calibration.level("head")
    assert calibration.level("block").keys() == calibration.estimates.keys()
    assert calibration.level("group")["variance"].shape == (4, 2)


def test_without_a_sketch_or_a_check_it_survives_too(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """`--kl none`; and what was never saved has no place for a check."""
    plain = measured(pico("llama"), random_rows((5, 6)), kl="none")
    again = load_calibration(save_calibration(plain, tmp_path / "plain").path or tmp_path)
    assert again.sketch is None
    assert again.check is None
    assert again.facts == plain.facts
    check = measure_check(plain, pico("llama"), Encoded(random_rows((6,)), 0), heads=3)
    with pytest.raises(ValueError, match="never saved"):
        save_check(plain, check)


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


def arrays(edit: Callable[[Arrays], Any]) -> Callable[[Path], None]:
    """The tensors after `edit`."""

    def damage(folder: Path) -> None:
        found = load_file(folder / "tensors.safetensors")
        edit(found)
        save_file(found, folder / "tensors.safetensors")

    return damage


def record(file: str, **changes: Any) -> Callable[[Path], None]:
    """A JSON file with other values; None takes one away."""

    def damage(folder: Path) -> None:
        value = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({name: item for name, item in value.items() if item is not None}))

    return damage


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "half": truncate,
    "cut": cut_record,
    "shape": other_shape,
    "no tensors": lambda folder: (folder / "tensors.safetensors").unlink(),
    "empty tensors": lambda folder: (folder / "tensors.safetensors").write_bytes(b""),
    "no record": lambda folder: (folder / "record.json").unlink(),
    "no text": lambda folder: (folder / "record.json").write_bytes(b"\xff\xfe"),
    "no value": arrays(lambda found: found.pop("variance.head.value")),
    "no end": arrays(lambda found: found.pop("kl_output.block.high")),
    "no tokens": arrays(lambda found: found.pop("sketch.tokens")),
    "short end": arrays(lambda found: found.update({"entropy.group.low": np.zeros((4, 1))})),
    "no columns": arrays(lambda found: found.update({"sketch.scores": found["sketch.scores"][:, :, :6].copy()})),
    "too few rows": arrays(lambda found: found.update({"sketch.sequence": found["sketch.sequence"][:-1].copy()})),
    "other sequences": arrays(lambda found: found.update({"sketch.sequence": found["sketch.sequence"] + 1})),
    "negative sequences": arrays(lambda found: found.update({"sketch.sequence": found["sketch.sequence"] - 1})),
    "unknown field": record("record.json", surprise=1),
    "unknown settings": record("record.json", settings={"samples": 0}),
    "no check": lambda folder: (folder / "faithfulness.json").write_text("{"),
    "odd check": record("faithfulness.json", rows=0),
    "half a check": record("faithfulness.json", verdicts=None),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_calibrations_are_refused(saved: Path, damage: Callable[[Path], Any]) -> None:
    """The message is one sentence that names the folder and what to run."""
    damage(saved)
    with pytest.raises(InputError, match=r"calibration .*slim calibrate") as caught:
        load_calibration(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_calibrations_of_an_older_version_are_named_as_such(saved: Path) -> None:
    """Version 1 held other arrays: what it lacks is named, what to run, and which Slim reads it."""
    record("record.json", schema_version=1)(saved)
    with pytest.raises(InputError, match=r"schema version 1.*slim calibrate.*Slim 0\.1\.0") as caught:
        load_calibration(saved)
    assert "\n" not in str(caught.value)
