"""The calibration record with its arrays: what a calibration gives, how it is kept and read again."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from slim.calibration.check_record import CriterionCheck
from slim.calibration.criteria.base import Scores
from slim.calibration.facts import CalibrationFacts
from slim.calibration.loss_sketch import LossSketch
from slim.core import workspace
from slim.core.migrations import read_record, read_run_record, readable
from slim.core.records import ModelFacts, StandsForPath
from slim.core.run_index import remember
from slim.core.statistics import Estimate
from slim.models.units import UNITS, UnitName, figure_shape

PARTS = ("value", "low", "high")
CHECK_FILE = "faithfulness.json"


@dataclass(frozen=True)
class Calibration(StandsForPath):
    """A calibration record with its arrays, and what was measured to check it, where it was."""

    facts: CalibrationFacts
    estimates: dict[str, dict[UnitName, Estimate]]
    sketch: LossSketch | None
    path: Path | None = None
    check: CriterionCheck | None = field(default=None, compare=False)

    @property
    def metrics(self) -> dict[str, Scores]:
        """The figures without their intervals."""
        return {
            name: {level: estimate.value for level, estimate in levels.items()}
            for name, levels in self.estimates.items()
        }

    def level(self, level: UnitName) -> dict[str, NDArray[np.float64]]:
        """The metrics that exist at a level, by name."""
        return {name: levels[level].value for name, levels in self.estimates.items() if level in levels}


def save_calibration(calibration: Calibration, output: Path) -> Calibration:
    """Writes the record to the new folder `output` and makes it known to the workspace."""
    arrays = {
        f"{name}.{level}.{part}": getattr(estimate, part)
        for name, levels in calibration.estimates.items()
        for level, estimate in levels.items()
        for part in PARTS
    }
    if calibration.sketch is not None:
        sketch = calibration.sketch
        arrays |= {"sketch.scores": sketch.scores, "sketch.sequence": sketch.sequence, "sketch.tokens": sketch.tokens}
    with workspace.new_folder(output, sum(array.nbytes for array in arrays.values())) as folder:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "tensors.safetensors")
        (folder / "record.json").write_text(calibration.facts.model_dump_json(indent=1), encoding="utf-8")
    remember(output, "calibration")
    return replace(calibration, path=output)


def save_check(calibration: Calibration, check: CriterionCheck) -> Calibration:
    """Puts what was measured beside the record it checks."""
    if calibration.path is None:
        raise ValueError("the calibration was never saved")
    workspace.write_file(calibration.path / CHECK_FILE, check.model_dump_json(indent=1))
    return replace(calibration, check=check)


def load_calibration_facts(folder: Path) -> CalibrationFacts:
    """The record of a saved calibration without its arrays. Raises InputError when `folder` does not hold one."""
    return read_run_record(CalibrationFacts, folder, "calibrate")


def load_calibration(folder: Path) -> Calibration:
    """A saved calibration. Raises InputError when `folder` does not hold one."""
    facts, check = load_calibration_facts(folder), folder / CHECK_FILE
    with readable(f"calibration {str(folder)!r}", "calibrate"):
        arrays = load_file(folder / "tensors.safetensors")
        estimates: dict[str, dict[UnitName, Estimate]] = {
            name: {level: Estimate(*(arrays[f"{name}.{level}.{part}"] for part in PARTS)) for level in metric.levels}
            for name, metric in facts.metrics.items()
        }
        sketch = None
        if "sketch.scores" in arrays:
            sketch = LossSketch(*(arrays[f"sketch.{part}"] for part in ("scores", "sequence", "tokens")))
        _check_shapes(facts.model, estimates, sketch)
        faithful = None
        if check.is_file():
            faithful = read_record(CriterionCheck, check, f"the check of calibration {str(folder)!r}")
    return Calibration(facts, estimates, sketch, folder, faithful)


def _check_numbers(name: str, array: NDArray[Any], unsure: bool = False) -> None:
    """Raises ValueError for values that are not finite floating-point numbers; an `unsure` one may be NaN."""
    if array.dtype.kind != "f" or np.isinf(array).any() or (not unsure and np.isnan(array).any()):
        raise ValueError(f"{name} holds values that are not finite numbers")


def _check_shapes(model: ModelFacts, estimates: dict[str, dict[UnitName, Estimate]], sketch: LossSketch | None) -> None:
    for name, levels in estimates.items():
        for level, estimate in levels.items():
            for part in PARTS:
                shape, expected = getattr(estimate, part).shape, figure_shape(UNITS[level], model)
                if shape != expected:
                    raise ValueError(f"{name}.{level}.{part} has shape {shape}, expected {expected}")
                _check_numbers(f"{name}.{level}.{part}", getattr(estimate, part), unsure=part != "value")
    if sketch is None:
        return
    _check_numbers("sketch.scores", sketch.scores)
    for name, counted in (("sequence", sketch.sequence), ("tokens", sketch.tokens)):
        if counted.ndim != 1 or counted.dtype.kind not in "iu":
            raise ValueError(f"sketch.{name} is not a list of whole numbers")
    if not (len(sketch.tokens) and sketch.tokens.min() > 0):
        raise ValueError("sketch.tokens names a sequence without any")
    if sketch.scores.shape != (len(sketch.sequence), model.layers, model.heads + 2):
        raise ValueError(f"sketch.scores has shape {sketch.scores.shape}")
    if sketch.sequence.size and not 0 <= sketch.sequence.min() <= sketch.sequence.max() < len(sketch.tokens):
        raise ValueError("sketch.sequence names a sequence that sketch.tokens does not have")
