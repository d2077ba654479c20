"""Calibration: model + task rows → every head's and block's figures and the loss sketch, saved as one record."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from diskcache import Cache
from pydantic import ValidationError
from torch import Tensor

import slim
from slim import bundled, models, results, tasks, workspace
from slim import sketch as loss_sketch
from slim.calibration import Calibration, save
from slim.errors import InputError, SlimError
from slim.estimate import Estimate, ratio_of_sums
from slim.metrics import CRITERIA, kl_output
from slim.metrics.base import Level
from slim.models import Loaded
from slim.probe import LayerView, Probe
from slim.progress import Progress, silent
from slim.records import CalibrationFacts, DatasetFacts, MetricFacts, Settings
from slim.results import Arrays, Results
from slim.rowwise import Work, no_numbers, rowwise, stacked
from slim.sketch import LossSketch, score_rows
from slim.workload import (
    WATCH,
    Workload,
    ablation_cost,
    forwards,
    levels_ablated,
    rows_ablated,
    sketch_cost,
    workload,
)

NOT_COMPUTED = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""Settings of a config that say nothing of what the model computes."""
Tell = Callable[[Workload], None]
"""Hears what a calibration will take before it starts."""


def calibrate(
    model: str = bundled.NAME,
    dataset: str = "bundled:briefs",
    *,
    settings: Settings | None = None,
    output: Path | None = None,
    progress: Progress = silent,
    tell: Tell | None = None,
    **data: Any,
) -> Calibration:
    """Measures `model` on rows of `dataset` and saves the record to `output` (default: a new run in the workspace).

    `data` goes to `tasks.load_task`: config, split, revision, template, columns, prompt. What earlier runs measured of
    the same rows is used again. Raises InputError for anything given that cannot be used, before the model runs.
    """
    settings = settings or Settings()
    task = tasks.load_task(dataset, **data)
    names = (Path(source.removeprefix("bundled:")).stem for source in (model, dataset))
    output = output or workspace.fresh_path("calibration", "-".join(names))
    workspace.check_output(output)
    loaded = models.load(model, device=settings.device, dtype=settings.dtype, progress=progress)
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
    with results.kept() as cache:
        calibration = measure(loaded, encoded, task, settings, progress, cache=cache)
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
    cache: Cache | None = None,
) -> Calibration:
    """Every metric of `loaded` on the rows `encoded`; changes nothing in the model."""
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    work = Work(progress, forwards(loaded.facts, encoded.lengths, settings))
    run = _Run(loaded, encoded, settings, padding_side, cache, work)
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
    layout = task.layout
    facts = CalibrationFacts(
        model=loaded.facts,
        dataset=DatasetFacts(
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
        ),
        settings=settings,
        metrics={
            name: MetricFacts(
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


class _Run:
    """The passes of one calibration over its rows. What depends on a row alone is looked up before it is computed."""

    def __init__(
        self,
        loaded: Loaded,
        encoded: tasks.Encoded,
        settings: Settings,
        padding_side: str,
        cache: Cache | None,
        work: Work,
    ) -> None:
        self.loaded, self.encoded, self.settings, self.work = loaded, encoded, settings, work
        self.padding_side, self.cache = padding_side, cache
        self.method = ""

    def _rowwise(
        self,
        chosen: Sequence[int],
        compute: Callable[[tasks.Batch], list[Arrays]],
        cost: float,
        message: str,
        **basis: Any,
    ) -> list[Arrays]:
        facts = self.loaded.facts
        kept = Results(
            self.cache,
            model=facts.fingerprint,
            config=_config_of(self.loaded),
            dtype=str(self.loaded.model.dtype),
            device=self.loaded.model.device.type,
            **basis,
        )

        def advance(tokens: int, known: bool) -> None:
            self.work.advance(cost * tokens, message, known)

        return rowwise(
            self.encoded,
            chosen,
            compute,
            kept,
            self.settings.batch_size,
            self.padding_side,
            advance,
            self.work.note,
        )

    def watched(self) -> tuple[dict[str, dict[Level, Estimate]], dict[str, int]]:
        """The figures of every metric that comes from watching plain forwards, and their positions."""
        loaded, device = self.loaded, self.loaded.model.device
        watching = {name: criterion for name, criterion in CRITERIA.items() if criterion.meter}
        meters = {name: criterion.meter(loaded) for name, criterion in watching.items() if criterion.meter}
        finite = _Finite()

        def compute(batch: tasks.Batch) -> list[Arrays]:
            with torch.no_grad(), Probe(loaded.model, loaded.architecture, [finite, *meters.values()]) as probe:
                probe.valid = batch.valid.to(device)
                loaded.model(**batch.inputs(device), use_cache=False, logits_to_keep=1)  # the figures need no logits
            finite.check(batch)
            taken = {name: meter.take() for name, meter in meters.items()}
            return [
                {f"{name}.{key}": sums[key][place] for name, sums in taken.items() for key in sums}
                for place in range(len(batch.rows))
            ]

        rows = self._rowwise(
            range(len(self.encoded.rows)),
            compute,
            WATCH,
            "Watching every head",
            watch={name: criterion.version for name, criterion in watching.items()},
        )
        together = stacked(rows)
        estimates, positions = {}, {}
        for name, criterion in watching.items():
            sums = {key.removeprefix(f"{name}."): a for key, a in together.items() if key.startswith(f"{name}.")}
            if criterion.shares is None:
                raise RuntimeError(f"criterion {name} watches and says nothing")
            shares = criterion.shares(sums, loaded)
            estimates[name] = {level: self._estimate(*share) for level, share in shares.items()}
            positions[name] = int(sums["count"][:, 0].sum())
        return estimates, positions

    def sketched(self) -> LossSketch:
        """The loss sketch of every row."""
        draws, seed = self.settings.draws, self.settings.seed

        def compute(batch: tasks.Batch) -> list[Arrays]:
            counts = batch.predicted.sum(1).tolist()
            scores = score_rows(self.loaded, batch, draws, seed)
            return [
                {"scores": rows, "tokens": np.array(count * draws)} for rows, count in zip(scores, counts, strict=True)
            ]

        rows = self._rowwise(
            range(len(self.encoded.rows)),
            compute,
            sketch_cost(draws),
            "Sketching the loss",
            sketch=loss_sketch.VERSION,
            draws=draws,
            seed=seed,
        )
        scores = np.concatenate([row["scores"] for row in rows])
        if not np.isfinite(scores).all():
            raise SlimError("the gradients of the gates are NaN or infinite: try dtype float32.")
        return LossSketch(
            scores=scores,
            sequence=np.repeat(np.arange(len(rows)), [len(row["scores"]) for row in rows]),
            tokens=np.array([row["tokens"] for row in rows]),
        )

    def costs(self, sketch: LossSketch) -> tuple[dict[Level, Estimate], int, int]:
        """`kl_output` at every level, the positions and the rows it comes from.

        Only every other row takes part: the rest stays unseen, to forecast what is chosen by it.
        """
        facts, seed = self.loaded.facts, self.settings.seed
        measured, positions, rows = self._ablated()
        if self.settings.kl == "exact":
            self.method = f"{kl_output.CRITERION.method}; measured by leaving it out"
            return measured, positions, rows
        self.method = (
            f"{kl_output.CRITERION.method}; heads and groups by the loss sketch, "
            f"blocks by leaving them out on {rows} of the rows"
        )
        seen = sketch.fold(0)
        positions = int(seen.tokens.sum()) // self.settings.draws
        return (
            {"head": seen.heads(seed), "group": seen.groups(facts.group, seed), **measured},
            positions,
            len(seen.tokens),
        )

    def _ablated(self) -> tuple[dict[Level, Estimate], int, int]:
        facts, levels = self.loaded.facts, levels_ablated(self.settings)
        variants = kl_output.ablations(facts, levels)

        def compute(batch: tasks.Batch) -> list[Arrays]:
            costs = np.stack(
                list(kl_output.ablate(self.loaded, batch, [variants] * facts.layers)), axis=1
            )  # (B, L, variants)
            counts = batch.predicted.sum(1).tolist()
            return [
                {"tokens": np.array(counts[place])}
                | {f"cost.{level}": row[:, [v.level == level for v in variants]] for level in levels}
                for place, row in enumerate(costs)
            ]

        rows = self._rowwise(
            rows_ablated(self.encoded.lengths, self.settings),
            compute,
            ablation_cost(facts.layers, len(variants)),
            "Leaving out each in turn",
            ablate=kl_output.CRITERION.version,
            levels=levels,
        )
        sums = stacked(rows)
        found = kl_output.shares(sums, facts)
        return {k: self._estimate(*share) for k, share in found.items()}, int(sums["tokens"].sum()), len(rows)

    def _estimate(self, parts: Any, weights: Any) -> Estimate:
        """A metric's figure is never negative; rounding may be."""
        found = ratio_of_sums(parts, weights, self.settings.seed)
        return Estimate(*(np.maximum(part, 0) for part in (found.value, found.low, found.high)))


class _Finite:
    """Notices the first block that adds, or the first residual that holds, what is no number."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, view: LayerView) -> None:
        residual, delta = (part.sum(-1).where(view.valid, 0).sum(-1) for part in (view.residual, view.delta))
        self.found[view.layer] = residual.isfinite(), delta.isfinite()  # (B,) twice

    def check(self, batch: tasks.Batch) -> None:
        """Raises SlimError naming the place and the row, and forgets what it saw."""
        found, self.found = self.found, {}
        for layer, (residual, delta) in found.items():
            if not bool(residual.all()):
                raise no_numbers(f"the MLP of layer {layer - 1}" if layer else "the embeddings", batch, residual)
            if not bool(delta.all()):
                raise no_numbers(f"the attention of layer {layer}", batch, delta)


def _config_of(loaded: Loaded) -> str:
    """What a model computes besides its weights: the same file of weights may stand beside another config."""
    config = json.loads(loaded.model.config.to_json_string(use_diff=False))
    return json.dumps({k: v for k, v in config.items() if k not in NOT_COMPUTED}, sort_keys=True)


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
