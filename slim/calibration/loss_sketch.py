"""The loss sketch as a record: what removing ANY heads, blocks or MLPs will cost, from measured scores."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slim.core.records import ModelFacts
from slim.core.statistics import Estimate, ratio_of_sums
from slim.models.columns import unit_columns
from slim.models.units import Unit, figure_shape


@dataclass(frozen=True)
class LossSketch:
    """Score rows, each of one segment of one draw of one of N sequences, over every layer's H heads, block and MLP."""

    scores: NDArray[np.float32]  # (R, L, H+2)
    sequence: NDArray[np.int64]  # (R,) 0..N-1
    tokens: NDArray[np.int64]  # (N,) predicted positions times draws

    def single(self, seed: int = 0) -> Estimate:
        """Forecast the KL in nats/token of ablating columns one at a time.  # (L, H+2)"""
        return ratio_of_sums(self.energies(np.square(self.scores, dtype=np.float64)), self.tokens, seed)

    def of_unit(self, unit: Unit, facts: ModelFacts, seed: int = 0) -> Estimate:
        """Forecast KL in nats/token of ablating each of a unit alone.  # (L, count), or (L,) of a single one"""
        joined = self.scores.astype(np.float64) @ unit_columns(unit, facts).T.astype(np.float64)  # (R, L, count)
        found = ratio_of_sums(self.energies(np.square(joined)), self.tokens, seed)
        shape = figure_shape(unit, facts)
        return Estimate(*(part.reshape(shape) for part in (found.value, found.low, found.high)))

    def costs(self, removed: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Σ over positions of the forecast KL of each sequence without `removed` (…, L, H+2), times draws.  # (N, …)"""
        chosen = removed.reshape(-1, self.scores[0].size).astype(np.float32)
        energy = np.square(self.scores.reshape(len(self.scores), -1) @ chosen.T, dtype=np.float64)  # (R, sets)
        return self.energies(energy).reshape(-1, *removed.shape[:-2])

    def energies(self, squares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Half the sum of `squares` (R, …) over the rows of each sequence.  # (N, …)"""
        total = np.zeros((len(self.tokens), *squares.shape[1:]))
        np.add.at(total, self.sequence, squares)
        return 0.5 * total

    def fold(self, which: int) -> "LossSketch":
        """Every other sequence: choose on one fold, forecast on the other, or the forecast flatters the choice."""
        if len(self.tokens) < 2:
            return self
        rows = self.sequence % 2 == which
        return LossSketch(self.scores[rows], self.sequence[rows] // 2, self.tokens[which::2])
