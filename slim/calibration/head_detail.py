"""One head close up: its figures with intervals, what removing it would cost, and where it looks on a real row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slim.calibration.criteria import CRITERIA
from slim.calibration.forecast import forecast
from slim.calibration.record import Calibration
from slim.calibration.scores import composite
from slim.core.statistics import Estimate
from slim.models.architectures import decoder_layers
from slim.models.load import Loaded
from slim.models.probe import Probe
from slim.models.units import UNITS, LayerKeep, whole_model

LONGEST = 1024
"""Tokens of a row that are looked at. The model is causal: what comes later changes nothing before it."""
DECADES = ("kl_output", "variance", "sketch", "damage")
"""Figures whose size says more than their difference."""


@dataclass(frozen=True)
class HeadScore:
    """A figure of every head (L, H) as it is shown: NaN where it was not measured."""

    name: str
    title: str
    unit: str
    estimate: Estimate
    high_is_prunable: bool

    @property
    def values(self) -> NDArray[np.float64]:
        return self.estimate.value

    @property
    def log(self) -> bool:
        """Whether it spans decades."""
        return self.name in DECADES

    def place(self, layer: int, head: int) -> tuple[int, int] | None:
        """The head's place among those measured, 1 = first to go, ties sharing the best; None where it was not."""
        known = np.isfinite(self.values)
        if not known[layer, head]:
            return None
        signed = -self.values if self.high_is_prunable else self.values
        return 1 + int((signed[known] < signed[layer, head]).sum()), int(known.sum())


def head_scores(calibration: Calibration, weights: Mapping[str, float]) -> dict[str, HeadScore]:
    """Every per-head figure there is, by name: the composite by `weights`, the metrics, and what is known of the cost.

    `sketch` is the forecast of leaving a head out alone on the held-out fold, `damage` what it really cost
    where the calibration was checked.
    """
    score = Estimate.unsure(composite(calibration, weights, "head"))
    found = [HeadScore("composite", "Composite score", "1 = first to go", score, True)]
    for name, levels in calibration.estimates.items():
        if "head" in levels:
            criterion = CRITERIA[name]
            found.append(HeadScore(name, criterion.title, criterion.unit, levels["head"], criterion.high_is_prunable))
    if calibration.sketch is not None:
        heads = calibration.sketch.fold(1).of_unit(
            UNITS["head"], calibration.facts.model, calibration.facts.settings.seed
        )
        found.append(HeadScore("sketch", "Forecast cost on other rows", "nats/token", heads, False))
    if calibration.check is not None:
        damage = np.full(score.value.shape, np.nan)
        for place, cost in zip(calibration.check.heads, calibration.check.damage, strict=True):
            damage[place] = cost
        found.append(HeadScore("damage", "Measured damage", "nats/token", Estimate.unsure(damage), False))
    return {measure.name: measure for measure in found}


@dataclass(frozen=True)
class Cost:
    """The loss of leaving something out, in nats/token, with its 95% interval where there is one."""

    what: str
    value: float
    low: float | None
    high: float | None
    measured: bool
    factor: float = 1.0
    """Correction that is in a forecast."""


def costs(calibration: Calibration, layer: int, head: int) -> list[Cost]:
    """The cost of leaving out the head alone, all heads that share its keys, and its whole attention block.

    Heads are forecast on the held-out fold, corrected where the calibration was checked; the head is
    measured too where it was among those left out alone, and a block always is. Nothing where KL was not measured.
    """
    if calibration.sketch is None:
        return []
    facts = calibration.facts.model
    first = head // facts.group * facts.group
    group = range(first, first + facts.group)
    found = [_forecast(calibration, "The head alone", layer, [head])]
    if calibration.check is not None and (layer, head) in calibration.check.heads:
        damage = calibration.check.damage[calibration.check.heads.index((layer, head))]
        found.append(Cost("The head alone", damage, None, None, measured=True))
    if 1 < facts.group < facts.heads:
        found.append(_forecast(calibration, f"Its KV group, heads {first} to {group[-1]}", layer, group))
    block = calibration.estimates["kl_output"]["block"]
    value, low, high = (float(part[layer]) for part in (block.value, block.low, block.high))
    known = np.isfinite((low, high)).all()
    found.append(Cost("Its attention block", value, low if known else None, high if known else None, measured=True))
    return found


def _forecast(calibration: Calibration, what: str, layer: int, gone: Sequence[int]) -> Cost:
    keep = list(whole_model(calibration.facts.model))
    keep[layer] = LayerKeep(heads=tuple(head for head in keep[layer].heads if head not in gone))
    found = forecast(calibration, tuple(keep))
    if found is None:
        raise ValueError("the calibration holds no loss sketch")
    return Cost(what, found.nats_per_token, found.low, found.high, measured=False, factor=found.factor)


def pieces(loaded: Loaded, ids: Tensor) -> list[str]:
    """Each token of a row (T,) as text."""
    return [
        str(loaded.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for token in ids.tolist()
    ]


@torch.no_grad()
def attention(loaded: Loaded, ids: Tensor, layer: int, head: int) -> NDArray[np.float32]:
    """Where a head looks on the first tokens of a row: weight of each key (column) for each query, in one forward.

    `ids` (T,) is a row, of which at most `LONGEST` tokens are read. Each query's weights sum to 1, or to less where the
    family has a sink; NaN where it cannot see a key.  # (T, T)
    """
    watch = _Watch(loaded, layer, head)
    with watch:
        loaded.model(ids[None, :LONGEST].to(loaded.model.device), use_cache=False, logits_to_keep=1)
    return watch.weights


class _Watch(Probe):
    """Writes out the softmax of one head."""

    def __init__(self, loaded: Loaded, layer: int, head: int) -> None:
        super().__init__(loaded.model, loaded.architecture)
        self.head = head
        block = decoder_layers(loaded.model, loaded.architecture)[layer]
        self.watched = block.get_submodule(loaded.architecture.attention)
        self.weights: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        if module is self.watched:
            self.weights = self._softmax(q, k, mask, options).cpu().numpy()
        return super().attend(module, q, k, v, mask, **options)

    def _softmax(self, q: Tensor, k: Tensor, mask: Tensor | None, options: Mapping[str, Any]) -> Tensor:
        query, keys = q[0, self.head].double(), k[0, self.head // (q.shape[1] // k.shape[1])].double()  # (T, D)
        scores = options["scaling"] * query @ keys.T
        if (softcap := options.get("softcap")) is not None:
            scores = softcap * (scores / softcap).tanh()
        length = len(query)
        seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril() if mask is None else mask[0, 0]
        scores = scores.masked_fill(~seen, -torch.inf)
        if (sinks := options.get("s_aux")) is not None:
            sink = sinks[self.head].double().expand(length, 1)
            scores = torch.cat([scores, sink], -1)
        return scores.softmax(-1)[:, :length].masked_fill(~seen, torch.nan).float()


def received(weights: NDArray[np.float32], query: int | None = None) -> NDArray[np.float64]:
    """The weight each key gets from one query, or on average over the queries that can see it.  # (T,)"""
    if query is not None:
        return np.nan_to_num(weights[query].astype(np.float64))
    seen = np.isfinite(weights)
    return np.nansum(weights, axis=0, dtype=np.float64) / np.maximum(1, seen.sum(0))


def coarse(weights: NDArray[np.float32], most: int = 160) -> tuple[NDArray[np.float64], int]:
    """The map in at most `most` × `most` cells, and the tokens to a side of a cell.

    A cell holds the weight its keys get together, on average over its queries; NaN where none of them is seen.
    """
    side = -(-len(weights) // most)
    count = -(-len(weights) // side)
    room = count * side - len(weights)
    padded = np.pad(weights.astype(np.float64), ((0, room), (0, room)), constant_values=np.nan)
    cells = padded.reshape(count, side, count, side)
    seen = np.isfinite(cells)
    queries = np.maximum(1, seen.any(3).sum(1))  # (count, count): the queries of a cell that see a key of it
    total = np.where(seen, cells, 0).sum((1, 3)) / queries
    return np.where(seen.any((1, 3)), total, np.nan), side
