"""Task against general text: which heads this task does not need, though general text does."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slim.calibration.loss_sketch import LossSketch
from slim.calibration.record import Calibration, load_calibration_facts
from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.core.statistics import Estimate, bootstrap, interval
from slim.models.units import BLOCK


@dataclass(frozen=True)
class TaskDifference:
    """ln(cost on general text / cost on the task) per head (L, H) with its interval; high = the task needs it less.

    Where `shared` is not 0 it was taken out: the median over all heads, which all of them have in common.
    """

    ratio: Estimate
    task: NDArray[np.float64]  # (L, H) nats/token
    general: NDArray[np.float64]  # (L, H) nats/token
    shared: float = 0.0

    @property
    def sure(self) -> NDArray[np.bool_]:
        """Where the interval leaves out 0. Of heads that do not differ at all, one in twenty is marked by chance."""
        return (self.ratio.low > 0) | (self.ratio.high < 0)

    def least_needed(self, count: int) -> list[tuple[int, int]]:
        """At most `count` heads (layer, head) that the task surely needs less, the most different first."""
        values = np.where(self.ratio.low > 0, self.ratio.value, -np.inf).ravel()
        first = np.argsort(-values, kind="stable")[:count]
        heads = self.task.shape[1]
        return [(int(place) // heads, int(place) % heads) for place in first if np.isfinite(values[place])]


def task_difference(task: Calibration, general: Calibration, *, centred: bool = False, seed: int = 0) -> TaskDifference:
    """Compare the forecast loss of ablating heads one at a time on general text with that on the task.

    The costs are those of the loss sketches over all of their rows; the interval is that of 95% of the pairs of
    resampled rows, drawn from both. `centred` takes out what all heads share: general text may simply be harder.

    Raises InputError for calibrations of two models, or one without a loss sketch.
    """
    if task.facts.model.fingerprint != general.facts.model.fingerprint:
        raise InputError("general: this calibration is of another model: choose one of the same model.")
    sketches = _sketch("task", task), _sketch("general", general)
    generator = np.random.default_rng(seed)
    (one, others), (two, other_others) = (_costs(sketch, generator) for sketch in sketches)
    value, drawn = _log_ratio(two, one), _log_ratio(other_others, others)
    shared = 0.0
    if centred and np.isfinite(value).any():
        shared = float(np.nanmedian(value))
        value = value - shared
        drawn = drawn - np.nanmedian(drawn, axis=(1, 2), keepdims=True)
    if min(len(sketch.tokens) for sketch in sketches) < 2:
        return TaskDifference(Estimate.unsure(value), one, two, shared)
    # a resample in which a head costs nothing at all has no ratio, and then neither has the head an interval
    return TaskDifference(Estimate(value, *interval(drawn)), one, two, shared)


def of_same_model(model: ModelFacts, folders: list[Path], but: Path | None = None) -> list[tuple[Path, str]]:
    """Those of the calibration folders that are of this very model and hold a loss sketch, with their data's name."""
    found = []
    for folder in folders:
        try:
            facts = load_calibration_facts(folder)
        except InputError:
            continue
        if folder != but and facts.model.fingerprint == model.fingerprint and facts.settings.kl != "none":
            found.append((folder, facts.dataset.source))
    return found


def unlike(task: Calibration, general: Calibration) -> list[str]:
    """The settings that the two do not share and that make their costs harder to compare, in words."""
    one, two = task.facts.settings, general.facts.settings
    names = {"max_length": "longest row, tokens", "positions": "counted positions", "dtype": "number format"}
    return [
        f"{title}: {getattr(one, name)} and {getattr(two, name)}"
        for name, title in names.items()
        if getattr(one, name) != getattr(two, name)
    ]


def _sketch(name: str, calibration: Calibration) -> LossSketch:
    if calibration.sketch is None:
        raise InputError(
            f"{name}: the calibration on {calibration.facts.dataset.source!r} was made without KL, "
            "so nothing is known of what a head costs: calibrate with KL."
        )
    return calibration.sketch


def _costs(sketch: LossSketch, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nats/token of ablating heads one at a time (L, H), and of each resample of the rows (RESAMPLES, L, H)."""
    energies = sketch.energies(np.square(sketch.scores[..., :BLOCK], dtype=np.float64))  # (N, L, H)
    return bootstrap(energies, sketch.tokens, generator)


def _log_ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where either is 0."""
    fine = (above > 0) & (below > 0)
    return np.log(np.divide(above, below, out=np.full_like(above, np.nan), where=fine))
