"""A calibration's own model and rows, loaded again."""

from typing import TYPE_CHECKING

from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.core.records import DatasetFacts
from slim.core.reporter import SILENT, Reporter
from slim.data import tasks
from slim.data.request import DataSource
from slim.models.identity import tokenization

if TYPE_CHECKING:
    from slim.models.load import Loaded


def task_of(facts: DatasetFacts) -> tasks.Task:
    """Return the rows that a record was made from."""
    return tasks.load_task(DataSource.of_facts(facts))


def same_model(calibration: Calibration, reporter: Reporter = SILENT) -> "Loaded":
    """Return the calibration's model. Raises InputError where its source names another one now."""
    from slim.models.load import load_model

    settings = calibration.facts.settings
    loaded = load_model(calibration.facts.model.source, device=settings.device, dtype=settings.dtype, reporter=reporter)
    check_model(calibration, loaded)
    return loaded


def check_model(calibration: Calibration, loaded: "Loaded") -> None:
    """Raise InputError where `loaded` is not the model that was measured."""
    measured = calibration.facts.model
    if loaded.facts.fingerprint != measured.fingerprint:
        raise InputError(f"model={measured.source!r}: it has other weights now than when measured; calibrate again.")


def ended(calibration: Calibration) -> bool:
    """Return whether the answers of its rows had ends: an older Slim, which names no stops, added none to them."""
    return bool(calibration.facts.model.stops)


def calibrated_rows(calibration: Calibration, loaded: "Loaded", reporter: Reporter = SILENT) -> tasks.Encoded:
    """Return the rows of the calibration as tokens of its model. Raises InputError where there are others now."""
    facts, settings = calibration.facts.dataset, calibration.facts.settings
    if calibration.facts.tokenizer and calibration.facts.tokenizer != tokenization(loaded.tokenizer):
        source = calibration.facts.model.source
        raise InputError(f"model={source!r}: its tokenizer makes other tokens now than when measured; calibrate again.")
    task = task_of(facts)
    rows = tasks.choose(task, settings.samples, settings.seed)
    encoded = tasks.encode(rows, loaded.tokenizer, settings.max_length, settings.positions, ended(calibration))
    if (len(encoded.rows), encoded.tokens) != (facts.rows, facts.tokens):
        raise InputError(
            f"dataset={facts.source!r}: it has other rows now than when measured, or the model makes other tokens of "
            "them; calibrate again."
        )
    reporter.rows(tasks.reading_of(task, encoded.omissions))
    return encoded
