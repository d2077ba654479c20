"""A calibration's own model and rows, loaded again."""

from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.core.progress import Progress, silent
from slim.core.records import DatasetFacts
from slim.data import tasks
from slim.models.load import Loaded, load_model


def task_of(data: DatasetFacts) -> tasks.Task:
    """The rows that a record tells of."""
    return tasks.load_task(
        data.source, data.config, data.split, data.revision, data.template, data.columns or None, data.prompt
    )


def same_model(calibration: Calibration, progress: Progress = silent) -> Loaded:
    """The calibration's model. Raises InputError when its source names another one now."""
    settings = calibration.facts.settings
    loaded = load_model(calibration.facts.model.source, device=settings.device, dtype=settings.dtype, progress=progress)
    if loaded.facts.fingerprint != calibration.facts.model.fingerprint:
        raise InputError(
            f"calibration: {calibration.facts.model.source!r} is another model now than when it was measured: "
            "calibrate again."
        )
    return loaded


def calibrated_rows(calibration: Calibration, loaded: Loaded) -> tasks.Encoded:
    """The rows of the calibration as its model's tokens."""
    settings = calibration.facts.settings
    rows = tasks.choose(task_of(calibration.facts.dataset), settings.samples, settings.seed)
    return tasks.encode(rows, loaded.tokenizer, settings.max_length, settings.positions)
