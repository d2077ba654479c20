"""The record of a forecast after repair: the effects that were measured, and the file that keeps them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slim.calibration.facts import Forecast
from slim.core import workspace
from slim.core.errors import InputError
from slim.core.statistics import ratio_of_sums
from slim.models.units import Keep, LayerKeep

FILE = "absorbed.safetensors"


@dataclass(frozen=True)
class AfterRepairSketch:
    """Effects of what each layer may keep, on segments of N sequences that the regressions did not see."""

    kept: list[list[LayerKeep]]
    effects: list[NDArray[np.float32]]  # per layer (options, R)
    sequence: NDArray[np.int64]  # (R,) 0..N-1
    tokens: NDArray[np.int64]  # (N,) predicted positions

    @cached_property
    def _places(self) -> list[dict[LayerKeep, int]]:
        """Where each candidate of a layer stands."""
        return [{option: place for place, option in enumerate(kept)} for kept in self.kept]

    def fold(self, which: int) -> "AfterRepairSketch":
        """Every other sequence: choose on one fold, forecast on the other."""
        rows = self.sequence % 2 == which
        return AfterRepairSketch(
            self.kept, [effect[:, rows] for effect in self.effects], self.sequence[rows] // 2, self.tokens[which::2]
        )

    def forecast(self, keep: Keep, seed: int) -> Forecast | None:
        """Forecast a plan after repair, on the held-out fold; None for sets that were not measured."""
        unseen = self.fold(1)
        total = np.zeros(len(unseen.sequence))
        for layer, kept in enumerate(keep):
            if kept not in self._places[layer]:
                return None
            total += unseen.effects[layer][self._places[layer][kept]]
        nats = np.zeros(len(unseen.tokens))
        np.add.at(nats, unseen.sequence, 0.5 * np.square(total))
        found = ratio_of_sums(nats, unseen.tokens, seed)
        if len(nats) < 2:
            return Forecast(nats_per_token=float(found.value), sequences=len(nats))
        return Forecast(
            nats_per_token=float(found.value), low=float(found.low), high=float(found.high), sequences=len(nats)
        )


def save_after_repair(sketch: AfterRepairSketch, folder: Path) -> None:
    """Puts it beside the calibration in `folder`."""
    arrays: dict[str, np.ndarray] = {"sequence": sketch.sequence, "tokens": sketch.tokens}
    for layer, (kept, effects) in enumerate(zip(sketch.kept, sketch.effects, strict=True)):
        heads = max((option.heads[-1] + 1 for option in kept if option.heads), default=1)
        mask = np.zeros((len(kept), heads), dtype=np.uint8)
        for place, option in enumerate(kept):
            mask[place, list(option.heads)] = 1
        arrays |= {f"{layer}.kept": mask, f"{layer}.effects": effects}
    with workspace.new_file(folder / FILE, sum(array.nbytes for array in arrays.values())) as file:
        save_file(arrays, file)


def _check(sketch: AfterRepairSketch) -> None:
    """Raises ValueError for arrays that are not what `save` writes."""
    counted = (sketch.sequence, sketch.tokens)
    if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in counted) or not sketch.tokens.sum() > 0:
        raise ValueError("its sequences are not whole numbers")
    if not all(
        effect.ndim == 2 and effect.dtype.kind == "f" and np.isfinite(effect).all() for effect in sketch.effects
    ):
        raise ValueError("its effects are not finite numbers")
    if len(sketch.sequence) and not 0 <= sketch.sequence.min() <= sketch.sequence.max() < len(sketch.tokens):
        raise ValueError("it names a sequence that is not there")


def load_after_repair(folder: Path) -> AfterRepairSketch:
    """The sketch beside a calibration. Raises InputError where it is damaged."""
    try:
        arrays = load_file(folder / FILE)
        layers = range((len(arrays) - 2) // 2)
        kept: list[list[LayerKeep]] = [
            [LayerKeep(heads=tuple(map(int, np.flatnonzero(row)))) for row in arrays[f"{layer}.kept"]]
            for layer in layers
        ]
        effects = [arrays[f"{layer}.effects"] for layer in layers]
        sketch = AfterRepairSketch(kept, effects, arrays["sequence"], arrays["tokens"])
        _check(sketch)
        if any(len(k) != len(e) or e.shape[1] != len(sketch.sequence) for k, e in zip(kept, effects, strict=True)):
            raise ValueError("its arrays do not fit together")
    except (SafetensorError, OSError, LookupError, ValueError, TypeError) as error:
        raise InputError(
            f"calibration {str(folder)!r}: its {FILE} is damaged: delete it, it is measured again."
        ) from error
    return sketch
