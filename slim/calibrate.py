"""Calibration: model + task rows → every head's and block's figures and the loss sketch, saved as one record."""

import json
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import slim
from slim import bundled, models, tasks, workspace
from slim.errors import InputError, SlimError
from slim.metrics import CRITERIA
from slim.metrics.base import Level, Scores
from slim.metrics.kl_output import block_costs
from slim.models import Loaded
from slim.probe import Probe
from slim.progress import Progress, silent
from slim.records import CalibrationFacts, DatasetFacts, MetricFacts, Settings
from slim.sketch import LossSketch, score_rows

BLOCK_ROWS = 4
"""Rows on which every block's removal is measured: it is exact per row, so few rows rank blocks well."""


@dataclass(frozen=True)
class Calibration:
    """A calibration record with its arrays."""

    facts: CalibrationFacts
    metrics: dict[str, Scores]
    sketch: LossSketch | None
    path: Path | None = None

    def level(self, level: Level) -> dict[str, NDArray[np.float64]]:
        """The metrics that exist at a level, by name."""
        return {name: scores[level] for name, scores in self.metrics.items() if level in scores}


def calibrate(
    model: str = bundled.NAME,
    dataset: str = "bundled:briefs",
    *,
    config: str | None = None,
    split: str | None = None,
    settings: Settings | None = None,
    output: Path | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Measures `model` on rows of `dataset` and saves the record to `output` (default: a new run in the workspace).

    Raises InputError for anything given that cannot be used, before the model runs.
    """
    settings = settings or Settings()
    task = tasks.load_task(dataset, config, split)
    names = (Path(source.removeprefix("bundled:")).stem for source in (model, dataset))
    output = output or workspace.fresh_path("calibration", "-".join(names))
    workspace.check_output(output)
    loaded = models.load(model, device=settings.device, dtype=settings.dtype, progress=progress)
    if loaded.model.config.is_heterogeneous:
        raise InputError(f"model {model!r} is pruned already: calibrate the original, {bundled.NAME!r} for instance.")
    encoded = tasks.encode(tasks.choose(task, settings.samples, settings.seed), loaded.tokenizer, settings.max_length)
    try:
        calibration = measure(loaded, encoded, task, settings, progress)
    except torch.OutOfMemoryError as error:
        raise SlimError("the device ran out of memory: choose a smaller batch_size or max_length.") from error
    return save(calibration, output)


def checked_settings(**values: Any) -> Settings:
    """Settings from what a person gave. Raises InputError naming the first value that cannot be."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}={first['input']!r}: {first['msg']}.") from error


def measure(
    loaded: Loaded,
    encoded: tasks.Encoded,
    task: tasks.Task,
    settings: Settings,
    progress: Progress = silent,
    padding_side: str = "right",
) -> Calibration:
    """Every metric of `loaded` on the rows `encoded`; changes nothing in the model."""
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    batched = list(tasks.batches(encoded, settings.batch_size, padding_side))
    meters = {name: criterion.meter(loaded) for name, criterion in CRITERIA.items() if criterion.meter}
    block_batches = block_rows(encoded, settings.batch_size, padding_side) if settings.kl != "none" else []
    work = _Work(progress, _estimate(batched, block_batches, settings, loaded.facts.layers))
    positions = dict.fromkeys(CRITERIA, 0)

    with torch.no_grad(), Probe(loaded.model, loaded.architecture, list(meters.values())) as probe:
        for batch in batched:
            probe.valid = batch.valid.to(loaded.model.device)
            logits = loaded.model(**batch.inputs(loaded.model.device), use_cache=False).logits
            if not bool(torch.isfinite(logits[probe.valid]).all()):
                raise SlimError(
                    f"the model gives NaN or infinite logits on row {batch.rows[0]} or a neighbour: try dtype float32."
                )
            work.advance(1.4 * batch.ids.numel(), "Watching every head")
    metrics = {name: meter.scores() for name, meter in meters.items()}
    positions |= {name: meter.positions for name, meter in meters.items()}

    sketch = None
    if settings.kl != "none":
        sketch = _sketch(loaded, batched, settings, work)
        metrics["kl_output"] = _kl_output(sketch, loaded, block_batches, work)
        positions["kl_output"] = int(sketch.fold(0).tokens.sum()) // settings.draws
    facts = CalibrationFacts(
        model=loaded.facts,
        dataset=DatasetFacts(
            source=task.source,
            config=task.config,
            split=task.split,
            kind=task.kind,
            rows=len(encoded.rows),
            tokens=encoded.tokens,
            truncated_rows=encoded.truncated_rows,
        ),
        settings=settings,
        metrics={
            name: MetricFacts(
                unit=CRITERIA[name].unit,
                high_is_prunable=CRITERIA[name].high_is_prunable,
                levels=CRITERIA[name].levels,
                method=CRITERIA[name].method,
                positions=positions[name],
            )
            for name in metrics
        },
        versions=versions(),
        device=str(loaded.model.device),
        started=started,
        seconds=time.monotonic() - began,
    )
    return Calibration(facts, metrics, sketch)


def block_rows(encoded: tasks.Encoded, size: int, padding_side: str) -> list[tasks.Batch]:
    """Batches of BLOCK_ROWS rows spread over the lengths, chosen before batching so that its size changes nothing."""
    by_length = sorted(encoded.rows, key=len)
    places = np.linspace(0, len(by_length) - 1, min(BLOCK_ROWS, len(by_length))).round().astype(int)
    chosen = tasks.Encoded(tuple(by_length[place] for place in places), 0)
    return list(tasks.batches(chosen, size, padding_side))


def _sketch(loaded: Loaded, batched: list[tasks.Batch], settings: Settings, work: "_Work") -> LossSketch:
    scores, lengths, sequences = [], [], []
    for batch in batched:
        score, length = score_rows(loaded, batch, settings.draws, settings.seed)  # (draws, B, L·H), (B,)
        scores.append(score)
        lengths.append(length)
        sequences.append(np.array(batch.rows))
        work.advance(_sketch_cost(settings) * batch.ids.numel(), "Sketching the loss")
    rows = np.concatenate(scores, axis=1)  # (draws, rows, L·H)
    order = np.argsort(np.concatenate(sequences))
    rows = rows[:, order]
    if not np.isfinite(rows).all():
        raise SlimError("the gradients of the gates are NaN or infinite: try dtype float32.")
    return LossSketch(
        scores=rows.reshape(-1, rows.shape[-1]),
        tokens=np.tile(np.concatenate(lengths)[order], settings.draws),
        sequence=np.tile(np.concatenate(sequences)[order], settings.draws),
    )


def _kl_output(sketch: LossSketch, loaded: Loaded, block_batches: list[tasks.Batch], work: "_Work") -> Scores:
    facts = loaded.facts
    sketch = sketch.fold(0)  # the other fold stays unseen, to forecast what is chosen here
    heads = sketch.single().reshape(facts.layers, facts.heads)
    joined = sketch.scores.reshape(-1, facts.layers * facts.kv_heads, facts.group).sum(-1)
    groups = LossSketch(joined, sketch.tokens, sketch.sequence).single().reshape(facts.layers, facts.kv_heads)
    blocks, count = np.zeros(facts.layers), 0
    for batch in block_batches:
        count += int(batch.predicted.sum())
        for layer, nats in block_costs(loaded, batch):
            blocks[layer] += nats
            work.advance(_block_cost(facts.layers, layer) * batch.ids.numel(), "Taking out each block")
    return {"head": heads, "group": groups, "block": blocks / count}


class _Work:
    """Turns token-forwards done into progress."""

    def __init__(self, progress: Progress, total: float) -> None:
        self.progress, self.total, self.done = progress, total, 0.0
        progress(0, total, "Starting")

    def advance(self, amount: float, message: str) -> None:
        self.done += amount
        self.progress(min(self.done, self.total), self.total, message)


def _sketch_cost(settings: Settings) -> float:
    return 1.2 + 1.9 * settings.draws


def _block_cost(layers: int, start: int) -> float:
    return 0.3 + 0.8 * (layers - start) / layers


def _estimate(batched: list[tasks.Batch], block_batches: list[tasks.Batch], settings: Settings, layers: int) -> float:
    """The whole work in token-forwards, with the costs measured on the bundled model."""
    tokens = sum(batch.ids.numel() for batch in batched)
    if settings.kl == "none":
        return 1.4 * tokens
    blocks = sum(_block_cost(layers, start) for start in range(layers)) * sum(b.ids.numel() for b in block_batches)
    return (1.4 + _sketch_cost(settings)) * tokens + blocks


def versions() -> dict[str, str]:
    """What a record needs to be understood later."""
    return {
        "slim": slim.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def save(calibration: Calibration, output: Path) -> Calibration:
    """Writes the record to the new folder `output` and makes it known to the workspace."""
    arrays = {
        f"{name}.{level}": values for name, scores in calibration.metrics.items() for level, values in scores.items()
    }
    if calibration.sketch is not None:
        sketch = calibration.sketch
        arrays |= {"sketch.scores": sketch.scores, "sketch.tokens": sketch.tokens, "sketch.sequence": sketch.sequence}
    with workspace.new_folder(output, sum(array.nbytes for array in arrays.values())) as folder:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "tensors.safetensors")
        (folder / "record.json").write_text(calibration.facts.model_dump_json(indent=1), encoding="utf-8")
    workspace.remember(output, "calibration")
    return Calibration(calibration.facts, calibration.metrics, calibration.sketch, output)


def load(folder: Path) -> Calibration:
    """A saved calibration. Raises InputError when `folder` does not hold one."""
    record = folder / "record.json"
    if not record.is_file():
        raise InputError(f"calibration {str(folder)!r} was not found: run `slim calibrate --output {folder}` first.")
    try:
        facts = CalibrationFacts.model_validate_json(record.read_text(encoding="utf-8"))
        arrays = load_file(folder / "tensors.safetensors")
        metrics: dict[str, Scores] = {name: {} for name in facts.metrics}
        for key, values in arrays.items():
            name, level = key.split(".")
            if name != "sketch":
                metrics[name][level] = values  # type: ignore[index]
        sketch = None
        if "sketch.scores" in arrays:
            sketch = LossSketch(*(arrays[f"sketch.{part}"] for part in ("scores", "tokens", "sequence")))
        _check_shapes(facts, metrics, sketch)
    except (ValidationError, SafetensorError, KeyError, ValueError, OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"calibration {str(folder)!r} cannot be read ({str(error).splitlines()[0]}): run `slim calibrate` again."
        ) from error
    return Calibration(facts, metrics, sketch, folder)


def _check_shapes(facts: CalibrationFacts, metrics: dict[str, Scores], sketch: LossSketch | None) -> None:
    model = facts.model
    expected = {"head": (model.layers, model.heads), "group": (model.layers, model.kv_heads), "block": (model.layers,)}
    for name, scores in metrics.items():
        for level, values in scores.items():
            if values.shape != expected[level]:
                raise ValueError(f"{name}.{level} has shape {values.shape}, expected {expected[level]}")
    if sketch is not None and sketch.scores.shape != (len(sketch.tokens), model.layers * model.heads):
        raise ValueError(f"sketch.scores has shape {sketch.scores.shape}")
