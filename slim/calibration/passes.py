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
from slim.core.cache import Arrays, JointCache, RowCache, part_of
from slim.core.errors import SlimError
from slim.core.reporter import Work
from slim.core.statistics import Estimate, ratio_of_sums
from slim.data import tasks
from slim.data.batch_runner import no_numbers, run_batches, stacked
from slim.models.architectures import decoder_layers
from slim.models.identity import row_cache
from slim.models.load import Loaded
from slim.models.precision import precision_of, rounded
from slim.models.probe import LayerView, Observer, Probe
from slim.models.units import UNITS, UnitName

Watched = tuple[dict[str, dict[UnitName, Estimate]], dict[str, int]]
"""Figures by criterion and level, and the positions that each criterion's come from."""
WATCHING = {name: criterion for name, criterion in CRITERIA.items() if criterion.meter}
"""The criteria that watch forwards."""


def rounding(loaded: Loaded, settings: CalibrationSettings) -> str:
    """Return the number format of the sketch's backward pass and of ablated blocks; an exact calibration is exact."""
    return "float32" if settings.kl == "exact" else precision_of("auto", loaded.model)


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
        self.precision = rounding(loaded, settings)

    def _rowwise(
        self,
        chosen: Sequence[int],
        compute: Callable[[tasks.Batch], list[Arrays]],
        cost: float,
        message: str,
        kept: RowCache | JointCache,
    ) -> list[Arrays]:
        return run_batches(
            self.encoded,
            chosen,
            compute,
            kept,
            self.settings.batch_size,
            self.padding_side,
            self.work.step(message, cost),
        )

    def _cached(self, **basis: Any) -> RowCache:
        return row_cache(self.cache, self.loaded, **basis)

    def _cached_watch(self) -> RowCache:
        return self._cached(watch={name: CRITERIA[name].version for name in WATCHING})

    def _cached_sketch(self) -> RowCache:
        settings = self.settings
        return self._cached(sketch=VERSION, draws=settings.draws, seed=settings.seed, backward=self.precision)

    def watched(self) -> Watched:
        """Return the figures of every criterion that comes from watching plain forwards, and their positions."""
        watch = _Watch(self.loaded)

        def compute(batch: tasks.Batch) -> list[Arrays]:
            device = self.loaded.model.device
            with torch.no_grad(), Probe(self.loaded.model, self.loaded.architecture, watch.observers) as probe:
                probe.valid = batch.valid.to(device)
                self.loaded.model(**batch.inputs(device), use_cache=False, logits_to_keep=1)  # they need no logits
            return watch.taken(batch)

        every = range(len(self.encoded.rows))
        return self._figures(self._rowwise(every, compute, WATCH, "Watching every head", self._cached_watch()))

    def sketched(self, forward: str = "float32") -> LossSketch:
        """Return the loss sketch of every row. It is cached only where the forward's products are in float32."""
        kept = self._cached_sketch() if forward == "float32" else RowCache(None)
        with rounded(forward, decoder_layers(self.loaded.model, self.loaded.architecture)):
            rows = self._rowwise(
                range(len(self.encoded.rows)),
                lambda batch: self._scored(batch, forward=forward),
                sketch_cost(self.settings.draws, self.precision),
                "Sketching the loss",
                kept,
            )
        return self._sketch(rows)

    def observed(self) -> tuple[Watched, LossSketch]:
        """Return what `watched` and `sketched` do, from the same forwards."""
        watch = _Watch(self.loaded)

        def compute(batch: tasks.Batch) -> list[Arrays]:
            try:
                scored = self._scored(batch, watch.observers)
            except SlimError:
                watch.finite.check(batch)  # which names the layer
                raise
            return [
                {f"watch.{key}": array for key, array in seen.items()}
                | {f"sketch.{key}": array for key, array in scores.items()}
                for seen, scores in zip(watch.taken(batch), scored, strict=True)
            ]

        rows = self._rowwise(
            range(len(self.encoded.rows)),
            compute,
            WATCH - 1 + sketch_cost(self.settings.draws, self.precision),
            "Watching every head and sketching the loss",
            JointCache({"watch": self._cached_watch(), "sketch": self._cached_sketch()}),
        )
        seen, scores = ([part_of(row, name) for row in rows] for name in ("watch", "sketch"))
        return self._figures(seen), self._sketch(scores)

    def _scored(self, batch: tasks.Batch, observers: Sequence[Observer] = (), forward: str = "float32") -> list[Arrays]:
        draws = self.settings.draws
        scores = score_rows(self.loaded, batch, draws, self.settings.seed, observers, forward, self.precision)
        counts = batch.predicted.sum(1).tolist()
        return [{"scores": rows, "tokens": np.array(count * draws)} for rows, count in zip(scores, counts, strict=True)]

    def _figures(self, rows: list[Arrays]) -> Watched:
        together = stacked(rows)
        estimates, positions = {}, {}
        for name, criterion in WATCHING.items():
            sums = part_of(together, name)
            if criterion.shares is None:
                raise RuntimeError(f"criterion {name} watches and says nothing")
            shares = criterion.shares(sums, self.loaded)
            estimates[name] = {level: self._estimate(*share) for level, share in shares.items()}
            positions[name] = int(sums["count"][:, 0].sum())
        return estimates, positions

    def _sketch(self, rows: list[Arrays]) -> LossSketch:
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
            + (", both with matrix products in bfloat16" if self.precision == "bfloat16" else "")
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
            found = ablation.ablate(self.loaded, batch, [variants] * facts.layers, self.precision)
            costs = np.stack(list(found), axis=1)  # (B, L, variants)
            counts = batch.predicted.sum(1).tolist()
            return [
                {"tokens": np.array(counts[place])}
                | {f"cost.{level}": row[:, [v.level == level for v in variants]] for level in levels}
                for place, row in enumerate(costs)
            ]

        rows = self._rowwise(
            rows_ablated(self.encoded.lengths, self.settings),
            compute,
            ablation_cost(facts.layers, len(variants), self.precision),
            "Ablating units one at a time",
            self._cached(ablate=kl_output.CRITERION.version, levels=levels, precision=self.precision),
        )
        sums = stacked(rows)
        found = kl_output.shares(sums, facts)
        return {k: self._estimate(*share) for k, share in found.items()}, int(sums["tokens"].sum()), len(rows)

    def _estimate(self, parts: Any, weights: Any) -> Estimate:
        """A metric's figure is never negative; rounding may be."""
        found = ratio_of_sums(parts, weights, self.settings.seed)
        return Estimate(*(np.maximum(part, 0) for part in (found.value, found.low, found.high)))


class _Watch:
    """The meters of every criterion that watches, and a look at whether the forward's numbers are finite."""

    def __init__(self, loaded: Loaded) -> None:
        self.meters = {name: criterion.meter(loaded) for name, criterion in WATCHING.items() if criterion.meter}
        self.finite = _Finite()
        self.observers: list[Observer] = [self.finite, *self.meters.values()]

    def taken(self, batch: tasks.Batch) -> list[Arrays]:
        """Return the sums of each row of the last forward. Raises SlimError for numbers that are not finite."""
        self.finite.check(batch)
        taken = {name: meter.take() for name, meter in self.meters.items()}
        return [
            {f"{name}.{key}": sums[key][place] for name, sums in taken.items() for key in sums}
            for place in range(len(batch.rows))
        ]


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
