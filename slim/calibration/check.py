"""Checking a calibration: leaves heads out on rows of their own and holds every criterion against what it cost."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from slim.calibration import scores
from slim.calibration.ablation import Ablation, Full, ablate
from slim.calibration.check_record import (
    SHARES,
    SMALL_SHARES,
    CriterionCheck,
    Removal,
    Verdict,
    first_heads,
    fit_correction,
    rank_correlation,
)
from slim.calibration.record import Calibration, load_calibration, save_check
from slim.calibration.reload import ended, same_model, task_of
from slim.calibration.request import CheckRequest
from slim.core.errors import SlimError
from slim.core.reporter import SILENT, Reporter
from slim.data import tasks
from slim.data.batch_runner import out_of_memory
from slim.models.columns import head_columns
from slim.models.load import Loaded

FINE = {"composite", "kl_output", "variance", "sketch"}
"""Criteria that order heads well enough for their small removals to show the error of small forecasts."""
FITTED_BELOW = 2.0
"""Nats/token; a larger forecast means ruin, and shows nothing of the error of useful forecasts."""


def check(request: CheckRequest, reporter: Reporter = SILENT) -> Calibration:
    """Return the calibration with what ablations measured, saved beside its record.

    Raises InputError where the model or the data are not those of the calibration any more.
    """
    calibration = load_calibration(Path(request.calibration))
    loaded = same_model(calibration, reporter)
    encoded, unseen = rows_to_check(calibration, loaded, request.samples, reporter)
    found = measure_check(calibration, loaded, encoded, unseen, request.weights, request.heads, reporter)
    return save_check(calibration, found)


def rows_to_check(
    calibration: Calibration, loaded: Loaded, rows: int, reporter: Reporter = SILENT
) -> tuple[tasks.Encoded, bool]:
    """Rows of the calibration's data that it did not see, and True; those it did see where there are no others."""
    task, settings = task_of(calibration.facts.dataset), calibration.facts.settings
    seen = tasks.choose(task, settings.samples, settings.seed)
    drawn = tasks.choose(task, settings.samples + 4 * rows, settings.seed + 1)
    others = [example for example in drawn if example not in set(seen)][:rows]
    chosen = others or (seen[1::2] or seen)[:rows]
    encoded = tasks.encode(chosen, loaded.tokenizer, settings.max_length, settings.positions, ended(calibration))
    reporter.rows(tasks.reading_of(task, encoded.omissions))
    return encoded, bool(others)


def measure_check(
    calibration: Calibration,
    loaded: Loaded,
    encoded: tasks.Encoded,
    unseen: bool = True,
    weights: Mapping[str, float] | None = None,
    heads: int = 60,
    reporter: Reporter = SILENT,
) -> CriterionCheck:
    """Compare the prediction of each criterion with measurements on the rows `encoded`."""
    begun, facts, settings = time.monotonic(), loaded.facts, calibration.facts.settings
    weights = dict(weights or scores.default_weights(calibration))
    orders = scores.criteria(calibration, weights)
    alone = some_heads(facts.layers, facts.heads, heads, settings.seed)
    sets = {(name, share): first_heads(order, share) for name, order in orders.items() for share in SHARES}
    for name in FINE & orders.keys():
        sets |= {(name, share): first_heads(orders[name], share) for share in SMALL_SHARES}
    distinct = {removed.tobytes(): removed for removed in sets.values()}
    masks = np.stack(list(distinct.values()))  # (S, L, H)
    removed = np.concatenate((masks, np.zeros((*masks.shape[:2], 2), dtype=bool)), -1)  # (S, L, H+2)

    single, costs, surprise = np.zeros(len(alone)), np.zeros(len(masks)), np.zeros(len(masks))
    full, count, done = 0.0, 0, 0.0
    total = encoded.tokens * (0.6 * len(alone) + len(masks))
    places = {head: index for index, head in enumerate(alone)}
    for batch in tasks.batches(encoded, min(settings.batch_size, 4)):
        tokens = batch.ids.numel()
        chosen = [[Ablation("head", (head,)) for at, head in alone if at == layer] for layer in range(facts.layers)]
        try:
            for layer, found in enumerate(ablate(loaded, batch, chosen)):
                for ablation, cost in zip(chosen[layer], found.sum(0), strict=True):
                    single[places[layer, ablation.columns[0]]] += cost
                done += 0.6 * len(chosen[layer]) * tokens
                reporter.progress(min(done, total), total, "Ablating single heads")
            with torch.no_grad(), Full(loaded, batch) as whole:
                for part in whole.parts(removed):
                    nats, negative = whole.compare(removed[part])
                    costs[part] += nats.sum(0)
                    surprise[part] += negative.sum(0)
                    done += len(masks[part]) * tokens
                    reporter.progress(min(done, total), total, "Following each criterion")
                full += whole.surprise().sum()
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise SlimError("out of memory while checking: calibrate with a smaller max_length.") from error
            raise
        count += int(batch.predicted.sum())
    costs, surprise, damage = costs / count, surprise / count, single / count
    at = {key: index for index, key in enumerate(distinct)}
    forecasts = _forecasts(calibration, masks)
    verdicts = []
    for name, order in orders.items():
        value, low, high = rank_correlation(np.array([order[head] for head in alone]), damage, settings.seed)
        removals = [
            Removal(
                share=share,
                heads=int(sets[name, share].sum()),
                forecast=None if forecasts is None else forecasts[index],
                kl=costs[index],
                perplexity=float(np.exp(min(surprise[index], 300))),
            )
            for share in SHARES
            for index in [at[sets[name, share].tobytes()]]
        ]
        verdicts.append(
            Verdict(
                criterion=name,
                correlation=_known(value),
                low=_known(low),
                high=_known(high),
                removals=tuple(removals),
            )
        )
    correction = None
    if forecasts is not None:
        useful = forecasts < FITTED_BELOW
        correction = fit_correction(forecasts[useful], costs[useful])
    return CriterionCheck(
        rows=len(encoded.rows),
        tokens=count,
        unseen=unseen,
        perplexity=float(np.exp(full / count)),
        weights=weights,
        heads=alone,
        damage=tuple(damage),
        verdicts=tuple(verdicts),
        correction=correction,
        seconds=time.monotonic() - begun,
    )


def some_heads(layers: int, heads: int, count: int, seed: int) -> tuple[tuple[int, int], ...]:
    """`count` heads spread evenly over the layers, or all of them where there are fewer."""
    if count >= layers * heads:
        return tuple((layer, head) for layer in range(layers) for head in range(heads))
    generator = np.random.default_rng(seed)
    per_layer = np.full(layers, count // layers)
    per_layer[generator.choice(layers, count % layers, replace=False)] += 1
    return tuple(
        (layer, int(head))
        for layer in range(layers)
        for head in sorted(generator.choice(heads, min(heads, per_layer[layer]), replace=False))
    )


def _forecasts(calibration: Calibration, masks: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Return the uncorrected forecast of each set of heads on the held-out fold."""
    if calibration.sketch is None:
        return None
    unseen = calibration.sketch.fold(1)
    removed = np.stack([head_columns(mask) for mask in masks])
    return unseen.costs(removed).sum(0) / unseen.tokens.sum()


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
