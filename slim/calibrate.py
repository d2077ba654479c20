"""Calibration: model + task rows → every head's and block's figures and the loss sketch, saved as one record."""

import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from diskcache import Cache

import slim
from slim import bundled, models, results, tasks, workspace
from slim.calibration import Calibration, save_calibration
from slim.errors import InputError
from slim.estimate import Estimate
from slim.metrics import CRITERIA
from slim.models import Loaded
from slim.passes import Passes
from slim.progress import Progress, silent
from slim.records import CalibrationFacts, CalibrationSettings, CriterionFacts, DatasetFacts
from slim.rowwise import Work
from slim.workload import Workload, forwards, workload

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
    loaded = models.load_model(model, device=settings.device, dtype=settings.dtype, progress=progress)
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
    with results.open_cache() as cache:
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


def dataset_facts(task: tasks.Task, encoded: tasks.Encoded) -> DatasetFacts:
    """What a record says of the rows it comes from."""
    layout = task.layout
    return DatasetFacts(
        source=task.source,
        config=task.config,
        revision=task.revision,
        split=task.split,
        kind=task.kind,
        template=layout.template.name if layout else None,
        columns=dict(layout.columns) if layout else {},
        prompt=layout.prompt if layout else None,
        rows=len(encoded.rows),
        tokens=encoded.tokens,
        truncated_rows=encoded.truncated_rows,
        lost_tokens=encoded.lost_tokens,
        left_out=encoded.left_out,
    )


def device_name(loaded: Loaded) -> str:
    """The device, and which card it is."""
    device = loaded.model.device
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def versions() -> dict[str, str]:
    """What a record needs to be understood later."""
    return {
        "slim": slim.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
