"""How likely models find rows they have not seen: surprise, KL to the original, and which choice is ranked first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from diskcache import Cache

from slim.calibration.criteria.kl_output import Full
from slim.core.cache import Arrays, RowCache
from slim.core.errors import SlimError
from slim.data import tasks
from slim.data.batch_runner import run_batches
from slim.evaluation.metrics import Columns
from slim.models.load import Loaded

VERSION = 1
"""Goes up when the code gives other figures than before: kept results of older code are not used then."""
ANY_LENGTH = 2**30


@dataclass
class Passes:
    """Forwards over rows: `advance` hears of every row's tokens, what was measured before comes from `cache`."""

    batch_size: int = 4
    cache: Cache | None = None
    advance: Callable[[int, bool], None] = lambda tokens, known: None
    note: Callable[[str], None] = lambda text: None
    padding_side: str = "right"

    def rows(
        self, encoded: tasks.Encoded, models: Sequence[Loaded], compute: Callable[[tasks.Batch], list[Arrays]]
    ) -> Columns:
        """What `compute` gives of each row, which depends on the row and the `models` alone.  # (R,) each"""
        kept = RowCache(
            self.cache if all(one.facts.fingerprint for one in models) else None,
            likelihood=VERSION,
            models=[
                (one.facts.fingerprint, one.model.config.to_json_string(use_diff=False), str(one.model.dtype))
                for one in models
            ],
            device=models[0].model.device.type,
        )
        everything = range(len(encoded.rows))
        found = run_batches(
            encoded, everything, compute, kept, self.batch_size, self.padding_side, self.advance, self.note
        )
        return {name: np.array([float(row[name]) for row in found]) for name in found[0]}


def against(original: Loaded, other: Loaded, encoded: tasks.Encoded, passes: Passes) -> tuple[Columns, Columns]:
    """Columns of both models: `surprise`, the summed negative log likelihood of each row's counted tokens in nats,
    `predicted`, how many these are, and of the other `kl`, Σ KL(original ‖ other) over them.  # (R,) each

    Raises SlimError where a model gives no numbers.
    """

    @torch.inference_mode()
    def compute(batch: tasks.Batch) -> list[Arrays]:
        full = Full(original, batch)
        logits = other.model(**batch.inputs(other.model.device), use_cache=False).logits
        pairs = [
            full.baselines[row].compare(logits[row, place].to(full.baselines[row].logits.device))
            for row, place in enumerate(full.places)
        ]
        kl, surprise = (np.array(found) for found in zip(*pairs, strict=True))
        return _arrays(batch, original=full.surprise(), surprise=surprise, kl=kl)

    found = passes.rows(encoded, (original, other), compute)
    for loaded, name in ((original, "original"), (other, "surprise"), (other, "kl")):
        _check(loaded, found[name])
    mine = {name: found[name] for name in ("surprise", "predicted", "kl")}
    return {"surprise": found["original"], "predicted": found["predicted"]}, mine


def ranked(loaded: Loaded, examples: Sequence[tasks.Example], max_length: int, passes: Passes) -> Columns:
    """Whether the right choice of each example is the likeliest, per character (`ranked`) and as a whole
    (`ranked_whole`), and its place among the choices, by which a tie is decided.  # (R,) each

    NaN where a choice does not fit into `max_length` tokens.
    """
    sets = [_encoded(example, loaded, max_length) for example in examples]
    rows = [row for one in sets if one for row in one.rows]
    starts = [start for one in sets if one for start in one.starts]
    result = {name: np.full(len(examples), np.nan) for name in ("ranked", "ranked_whole", "said")}
    if not rows:
        return result

    @torch.inference_mode()
    def compute(batch: tasks.Batch) -> list[Arrays]:
        return _arrays(batch, surprise=Full(loaded, batch).surprise())

    surprise = passes.rows(tasks.Encoded(tuple(rows), 0, tuple(starts)), (loaded,), compute)["surprise"]
    _check(loaded, surprise)
    done = 0
    for place, (example, one) in enumerate(zip(examples, sets, strict=True)):
        if one is None:
            continue
        whole = -surprise[done : done + len(example.choices)]
        done += len(example.choices)
        said = int((whole / [len(choice) for choice in example.choices]).argmax())
        result["said"][place] = said
        result["ranked"][place] = example.choices[said] == example.answer
        result["ranked_whole"][place] = example.choices[int(whole.argmax())] == example.answer
    return result


def _encoded(example: tasks.Example, loaded: Loaded, max_length: int) -> tasks.Encoded | None:
    """A row for each choice; None where not all of them can be compared."""
    if len(example.choices) < 2 or not all(choice.strip() for choice in example.choices):
        return None
    asked = [replace(example, answer=choice) for choice in example.choices]
    encoded = tasks.encode(asked, loaded.tokenizer, ANY_LENGTH, "answer")
    return encoded if not encoded.left_out and max(encoded.lengths) <= max_length else None


def _arrays(batch: tasks.Batch, **columns: np.ndarray) -> list[Arrays]:
    columns["predicted"] = batch.predicted.sum(1).numpy().astype(np.float64)
    return [{name: column[row] for name, column in columns.items()} for row in range(len(batch.rows))]


def _check(loaded: Loaded, values: np.ndarray) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise SlimError(
            f"model {loaded.facts.source!r} gives NaN or infinite numbers on row {int(wrong.argmax())}: "
            "its weights are damaged, or its dtype is too narrow; try dtype float32."
        )
