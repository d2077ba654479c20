"""The passes of a calibration over its rows: watched forwards, the loss sketch, and what is really left out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diskcache import Cache
from torch import Tensor

from slim.calibration import ablation
from slim.calibration.criteria import CRITERIA, kl_output
from slim.calibration.facts import CalibrationSettings
from slim.calibration.loss_sketch import LossSketch
from slim.calibration.resources import WATCH, ablation_cost, levels_ablated, rows_ablated, sketch_cost
from slim.calibration.sketch import VERSION, score_rows
from slim.core.cache import Arrays
from slim.core.errors import SlimError
from slim.core.reporter import Work
from slim.core.statistics import Estimate, ratio_of_sums
from slim.data import tasks
from slim.data.batch_runner import no_numbers, run_batches, stacked
from slim.models.identity import row_cache
from slim.models.load import Loaded
from slim.models.probe import LayerView, Probe
from slim.models.units import UNITS, UnitName


class Passes:
    """The passes of one calibration over its rows. Sums of a row are read from the cache where it has them."""

    def __init__(
        self,
        loaded: Loaded,
        encoded: tasks.Encoded,
        settings: CalibrationSettings,
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
        return run_batches(
            self.encoded,
            chosen,
            compute,
            row_cache(self.cache, self.loaded, **basis),
            self.settings.batch_size,
            self.padding_side,
            self.work.step(message, cost),
        )

    def watched(self) -> tuple[dict[str, dict[UnitName, Estimate]], dict[str, int]]:
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
            sketch=VERSION,
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

    def costs(self, sketch: LossSketch) -> tuple[dict[UnitName, Estimate], int, int]:
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
            {name: seen.of_unit(UNITS[name], facts, seed) for name in ("head", "group")} | measured,
            positions,
            len(seen.tokens),
        )

    def _ablated(self) -> tuple[dict[UnitName, Estimate], int, int]:
        facts, levels = self.loaded.facts, levels_ablated(self.settings)
        variants = ablation.ablations(facts, levels)

        def compute(batch: tasks.Batch) -> list[Arrays]:
            costs = np.stack(
                list(ablation.ablate(self.loaded, batch, [variants] * facts.layers)), axis=1
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
            "Ablating units one at a time",
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
    """Notices the first block that adds, or the first residual that holds, values that are not finite."""

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
