"""The payload of the board in the browser: ranks, size models and loss sketch, as plain numbers."""

import hashlib
import json
import struct
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim.calibration.criteria import CRITERIA
from slim.calibration.forecast import RUINOUS
from slim.calibration.loss_sketch import LossSketch
from slim.calibration.record import Calibration
from slim.calibration.scores import WEIGHT_STEPS, highest_rank, unit_ranks
from slim.core.records import ModelFacts
from slim.core.statistics import ENDS, resample_counts
from slim.models.units import UNITS, Shape, UnitName
from slim.planning.board_choice import first_state, metrics_of, why_not, why_not_uniform
from slim.planning.build import uniform_shapes
from slim.planning.quantities import SIZES, SPEEDS
from slim.planning.record import Plan, Size
from slim.planning.sizes import CONTEXT, original_size, size_models
from slim.planning.threshold import MOST, PINNED

LIVE_BYTES = 64_000_000
"""Of the score rows that go to the browser; of more, every so many sequences do, and figures are rough mid-drag."""
START = struct.Struct("<16sI")
ALIGNED = 8
"""Bytes whose multiples typed arrays may begin at."""


def payload(calibration: Calibration) -> tuple[str, bytes]:
    """Pack everything that stays the same while the board is used, under an id of its content.

    The id in 16 letters, a little-endian length, that many bytes of JSON, and the arrays which it names.
    """
    facts, arrays = calibration.facts.model, dict[str, NDArray[Any]]()
    models = size_models(facts)
    header: dict[str, Any] = {
        "layers": facts.layers,
        "heads": facts.heads,
        "kv_heads": facts.kv_heads,
        "units": {unit: _unit(calibration, unit, arrays) for unit in UNITS},
        "weight_steps": WEIGHT_STEPS,
        "threshold": MOST,
        "pinned": PINNED * facts.heads,
        "sizes": {name: _plain(asdict(models[name])) for name in Size.model_fields},
        "quantities": [asdict(one) for one in (*SIZES, *SPEEDS)],
        "before": original_size(facts).model_dump(),
        "context": CONTEXT,
        "ruinous": RUINOUS,
        "sketch": None if calibration.sketch is None else _sketch(calibration, calibration.sketch.fold(1), arrays),
    }
    chunks, start = [], 0
    header["arrays"] = {}
    for name, array in arrays.items():
        header["arrays"][name] = {"type": array.dtype.name, "at": start, "length": array.size}
        chunks.append(array.tobytes() + bytes(-array.nbytes % ALIGNED))
        start += len(chunks[-1])
    body = b"".join(chunks)
    text = json.dumps(header).encode()
    text += b" " * (-(START.size + len(text)) % ALIGNED)
    name = hashlib.blake2b(text + body, digest_size=8).hexdigest()
    return name, START.pack(name.encode(), len(text)) + text + body


def outcome(made: Plan) -> dict[str, Any]:
    """Return the parts of a plan that the board shows; the browser computes the same during a drag."""
    return made.model_dump(mode="json", include={"keep", "changes", "after", "forecast"})


def _unit(calibration: Calibration, unit: UnitName, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    facts, row = calibration.facts.model, UNITS[unit]
    found: dict[str, Any] = {
        "title": row.title,
        "noun": row.noun,
        "per_layer": row.count(facts),
        "single": row.single,
        "whole_layers": row.whole_layers,
        "why_not": why_not(calibration, unit),
    }
    if found["why_not"]:
        return found
    for name, ranks in unit_ranks(calibration, unit).items():
        arrays[f"{unit}.{name}"] = ranks.astype(np.int32).ravel()
    return found | {
        "highest": highest_rank(facts.layers * row.count(facts)),
        "first": first_state(calibration, unit).model_dump(mode="json"),
        "metrics": [{"name": name, "title": CRITERIA[name].title} for name in metrics_of(calibration, unit)],
        "per_group": sorted({count for _, count in row.shapes(facts)}),
        "shapes": _shapes(facts, unit),
        "why_not_uniform": why_not_uniform(facts, unit),
    }


def _shapes(facts: ModelFacts, unit: UnitName) -> list[Shape] | None:
    """Return the shapes that a uniform plan chooses from; None where it has no choice."""
    return None if UNITS[unit].whole_layers or why_not_uniform(facts, unit) else uniform_shapes(facts, unit)


def _sketch(calibration: Calibration, unseen: LossSketch, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Pack the held-out fold, column after column, and the resamples that its interval comes from."""
    step = -(-unseen.scores.nbytes // LIVE_BYTES) if unseen.scores.size else 1
    rows = unseen.sequence % step == 0
    sequences, tokens = unseen.sequence[rows] // step, unseen.tokens[::step]
    correction = calibration.check.correction if calibration.check else None
    arrays["sketch"] = unseen.scores[rows].reshape(int(rows.sum()), -1).T.astype(np.float32)  # (L·(H+2), R)
    arrays["sequences"] = sequences.astype(np.uint32)
    arrays["tokens"] = tokens.astype(np.float64)
    drawn = resample_counts(len(tokens), np.random.default_rng(calibration.facts.settings.seed))
    arrays["picks"] = drawn.astype(np.uint16)
    return {
        "rows": len(sequences),
        "sequences": len(tokens),
        "of": len(unseen.tokens),
        "ends": ENDS,
        "correction": correction.model_dump() if correction else None,
    }


def _plain(price: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(part).tolist() for name, part in price.items()}
