"""Calibration: model + task rows → every head's and block's figures and the loss sketch, saved as one record."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from diskcache import Cache

from slim.calibration.criteria import CRITERIA
from slim.calibration.facts import CalibrationFacts, CalibrationSettings, CriterionFacts
from slim.calibration.passes import Passes, rounding
from slim.calibration.record import Calibration, save_calibration
from slim.calibration.request import CalibrateRequest
from slim.calibration.resources import forwards, workload
from slim.core import workspace
from slim.core.cache import open_cache
from slim.core.environment import versions
from slim.core.errors import InputError
from slim.core.reporter import SILENT, Reporter, Work
from slim.core.statistics import Estimate
from slim.data import tasks
from slim.data.tasks import dataset_facts
from slim.models.identity import tokenization
from slim.models.load import Loaded, device_name, load_model
from slim.models.original import named_original
from slim.models.stops import end_notes
from slim.models.stored_layers import has_stored_layers


def calibrate(request: CalibrateRequest, reporter: Reporter = SILENT) -> Calibration:
    """Measure a model on rows of a task, and save the record.

    Figures of the same rows from earlier runs are used again. Raises InputError for anything that cannot be used,
    before the model runs.
    """
    settings, model = request.part(CalibrationSettings), os.fspath(request.model)
    task = tasks.load_task(request.data)
    names = (Path(source.removeprefix("bundled:")).stem for source in (model, task.source))
    output = request.output or workspace.fresh_path("calibration", "-".join(names))
    workspace.check_output(output)
    loaded = load_model(model, device=settings.device, dtype=settings.dtype, layers=request.layers, reporter=reporter)
    if loaded.model.config.is_heterogeneous:
        original = named_original(model)
        named = f", {original!r}" if original else ""
        raise InputError(f"model {model!r} is pruned already: calibrate the original{named}.")
    examples = tasks.choose(task, settings.samples, settings.seed, reporter)
    encoded = tasks.encode(examples, loaded.tokenizer, settings.max_length, settings.positions)
    reporter.rows(tasks.reading_of(task, encoded.omissions))
    longest, limit = max(encoded.lengths), getattr(loaded.model.config, "max_position_embeddings", None)
    if limit and longest > limit:
        raise InputError(
            f"max_length={settings.max_length}: {model!r} reads at most {limit:,} tokens and a row has {longest:,}: "
            f"choose {limit} or less."
        )
    stored = has_stored_layers(loaded.model, loaded.architecture)
    device, dtype = loaded.model.device, loaded.model.dtype
    estimated = workload(loaded.facts, encoded.lengths, settings, device, dtype, stored)
    reporter.estimate(estimated.sentence())
    with open_cache() as cache:
        calibration = measure(loaded, encoded, task, settings, reporter, cache=cache)
    return save_calibration(calibration, output)


def measure(
    loaded: Loaded,
    encoded: tasks.Encoded,
    task: tasks.Task,
    settings: CalibrationSettings,
    reporter: Reporter = SILENT,
    padding_side: str = "right",
    cache: Cache | None = None,
) -> Calibration:
    """Every metric of `loaded` on the rows `encoded`; changes nothing in the model."""
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    work = Work(reporter, forwards(loaded.facts, encoded.lengths, settings, rounding(loaded, settings)))
    run = Passes(loaded, encoded, settings, padding_side, cache, work)
    sketch = None
    if settings.kl == "none":
        estimates, positions = run.watched()
    else:
        (estimates, positions), sketch = run.observed()
    rows = dict.fromkeys(estimates, len(encoded.rows))
    methods = {name: CRITERIA[name].method for name in estimates}
    if sketch is not None:
        estimates["kl_output"], positions["kl_output"], rows["kl_output"] = run.costs(sketch)
        methods["kl_output"] = run.method
    for name, criterion in CRITERIA.items():
        if criterion.of_weights is not None:
            scores = criterion.of_weights(loaded)
            estimates[name] = {level: Estimate.unsure(values) for level, values in scores.items()}
            positions[name], rows[name], methods[name] = 0, 0, criterion.method
    order = [name for name in CRITERIA if name in estimates]
    facts = CalibrationFacts(
        model=loaded.facts,
        tokenizer=tokenization(loaded.tokenizer),
        dataset=dataset_facts(task, encoded),
        settings=settings,
        metrics={
            name: CriterionFacts(
                unit=CRITERIA[name].unit,
                high_is_prunable=CRITERIA[name].high_is_prunable,
                levels=CRITERIA[name].levels,
                method=methods[name],
                rows=rows[name],
                positions=positions[name],
            )
            for name in order
        },
        versions=versions(),
        device=device_name(loaded),
        started=started,
        seconds=time.monotonic() - began,
        reused=work.reused,
        notes=(*work.notes, *end_notes(loaded.stops)),
    )
    return Calibration(facts, {name: estimates[name] for name in order}, sketch)
