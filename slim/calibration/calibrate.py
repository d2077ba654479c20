"""Calibration: model + task rows → every head's and block's figures and the loss sketch, saved as one record."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diskcache import Cache

from slim.calibration.criteria import CRITERIA
from slim.calibration.facts import CalibrationFacts, CalibrationSettings, CriterionFacts
from slim.calibration.passes import Passes
from slim.calibration.record import Calibration, save_calibration
from slim.calibration.resources import forwards, workload
from slim.core import workspace
from slim.core.cache import open_cache
from slim.core.environment import versions
from slim.core.errors import InputError
from slim.core.progress import Progress, silent
from slim.core.resources import Workload
from slim.core.statistics import Estimate
from slim.data import tasks
from slim.data.batch_runner import Work
from slim.data.tasks import dataset_facts
from slim.models import bundled
from slim.models.load import Loaded, device_name, load_model

Tell = Callable[[Workload], None]
"""Hears what a calibration will take before it starts."""


def calibrate(
    model: str = bundled.NAME,
    dataset: str = "bundled:briefs",
    *,
    settings: CalibrationSettings | None = None,
    output: Path | None = None,
    progress: Progress = silent,
    tell: Tell | None = None,
    **data: Any,
) -> Calibration:
    """Measures `model` on rows of `dataset` and saves the record to `output` (default: a new run in the workspace).

    `data` goes to `tasks.load_task`: config, split, revision, template, columns, prompt. What earlier runs measured of
    the same rows is used again. Raises InputError for anything given that cannot be used, before the model runs.
    """
    settings = settings or CalibrationSettings()
    task = tasks.load_task(dataset, **data)
    names = (Path(source.removeprefix("bundled:")).stem for source in (model, dataset))
    output = output or workspace.fresh_path("calibration", "-".join(names))
    workspace.check_output(output)
    loaded = load_model(model, device=settings.device, dtype=settings.dtype, progress=progress)
    if loaded.model.config.is_heterogeneous:
        raise InputError(f"model {model!r} is pruned already: calibrate the original, {bundled.NAME!r} for instance.")
    examples = tasks.choose(task, settings.samples, settings.seed, progress)
    encoded = tasks.encode(examples, loaded.tokenizer, settings.max_length, settings.positions)
    longest, limit = max(encoded.lengths), getattr(loaded.model.config, "max_position_embeddings", None)
    if limit and longest > limit:
        raise InputError(
            f"max_length={settings.max_length}: {model!r} reads at most {limit:,} tokens and a row has {longest:,}: "
            f"choose {limit} or less."
        )
    if tell is not None:
        tell(workload(loaded.facts, encoded.lengths, settings, loaded.model.device, loaded.model.dtype))
    with open_cache() as cache:
        calibration = measure(loaded, encoded, task, settings, progress, cache=cache)
    return save_calibration(calibration, output)


checked_settings = CalibrationSettings.checked
"""Settings from what a person gave. Raises InputError naming the first value that cannot be."""


def measure(
    loaded: Loaded,
    encoded: tasks.Encoded,
    task: tasks.Task,
    settings: CalibrationSettings,
    progress: Progress = silent,
    padding_side: str = "right",
    cache: Cache | None = None,
) -> Calibration:
    """Every metric of `loaded` on the rows `encoded`; changes nothing in the model."""
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    work = Work(progress, forwards(loaded.facts, encoded.lengths, settings))
    run = Passes(loaded, encoded, settings, padding_side, cache, work)
    estimates, positions = run.watched()
    rows = dict.fromkeys(estimates, len(encoded.rows))
    methods = {name: CRITERIA[name].method for name in estimates}
    sketch = None
    if settings.kl != "none":
        sketch = run.sketched()
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
        notes=tuple(work.notes),
    )
    return Calibration(facts, {name: estimates[name] for name in order}, sketch)
