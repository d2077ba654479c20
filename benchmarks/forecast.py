"""Forecasts of joint removals beside their measured loss increase on rows of another split.

`python -m benchmarks.forecast` calibrates the bundled model on `briefs` with the default settings and checks it (unless
`--calibration DIR` names a calibration), then leaves out many sets together: by the default score in valid shapes, by
every criterion, at random, whole attention blocks and whole layers, 1 to 40% of the heads. Prints Markdown tables, the
last one of what several weights of the composite would cost. The forecasts come from the held-out fold, the costs
from `--rows` rows of the validation split.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.measure import machine
from slim.calibration import scores
from slim.calibration.ablation import without
from slim.calibration.calibrate import calibrate
from slim.calibration.check import check
from slim.calibration.check_record import first_heads
from slim.calibration.record import Calibration, load_calibration
from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.calibration.scores import criteria
from slim.data import tasks
from slim.models import bundled
from slim.models.columns import head_columns, removed_columns
from slim.models.load import Loaded, load_model
from slim.planning.threshold import plan_by_threshold

THRESHOLDS = (0.97, 0.95, 0.92, 0.9, 0.87, 0.85, 0.8, 0.75, 0.7, 0.6)
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
MIXES: tuple[dict[str, float], ...] = (
    {"kl_output": 1},
    {"kl_output": 1, "variance": 0.25},
    {"kl_output": 1, "variance": 0.5},
    {"kl_output": 1, "variance": 1},
    {"kl_output": 1, "kl_uniform": 0.25},
    {"kl_output": 1, "entropy_norm": 0.25},
    {"variance": 1},
)
"""Weights that are tried for the composite."""
SMALL = 0.151
"""Up to 15% of the heads, whichever way a share is rounded."""


@dataclass(frozen=True)
class Removal:
    by: str
    removed: NDArray[np.bool_]  # (L, H+2)

    @property
    def share(self) -> float:
        """Of all heads, those of removed blocks included."""
        heads = self.removed[:, :-2] | self.removed[:, -2:-1]
        return float(heads.mean())


def removals(calibration: Calibration) -> Iterator[Removal]:
    """The sets to leave out, by what chose them."""
    facts = calibration.facts.model
    for threshold in THRESHOLDS:
        keep = plan_by_threshold(calibration, threshold).keep
        yield Removal("default score, valid", removed_columns(keep, facts.heads))
    for name, order in criteria(calibration, scores.default_weights(calibration)).items():
        if name in ("random", "composite"):
            continue
        for share in SHARES[1::2] if name != "kl_output" else SHARES:
            yield Removal(name, head_columns(first_heads(order, share)))
    chance = np.random.default_rng(0)
    for share in SHARES:
        for _ in range(2):
            order = chance.random((facts.layers, facts.heads))
            yield Removal("random heads", head_columns(first_heads(order, share)))
    blocks = np.argsort(calibration.level("block")["kl_output"])
    for count in (1, 2, 3, 4, 6, 9):
        yield Removal("cheapest blocks", whole(facts.layers, facts.heads, blocks[:count], (-2,)))
    for count in (1, 2, 3, 5):
        picked = chance.choice(facts.layers, count, replace=False)
        yield Removal("random blocks", whole(facts.layers, facts.heads, picked, (-2,)))
    for count in (1, 1, 2, 3):
        picked = chance.choice(facts.layers, count, replace=False)
        yield Removal("random layers", whole(facts.layers, facts.heads, picked, (-2, -1)))
    if calibration.sketch is not None:
        single = calibration.sketch.fold(0).scores[..., -2:].sum(-1, dtype=np.float64)  # attention and MLP together
        layers = np.argsort(np.square(single).sum(0))
        for count in (1, 2, 3, 5):
            yield Removal("cheapest layers", whole(facts.layers, facts.heads, layers[:count], (-2, -1)))


def whole(layers: int, heads: int, picked: NDArray[np.int64], columns: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whole attention blocks (−2) or MLPs (−1) of some layers.  # (L, H+2)"""
    removed = np.zeros((layers, heads + 2), dtype=bool)
    for column in columns:
        removed[picked, column] = True
    return removed


def measured(
    loaded: Loaded, encoded: tasks.Encoded, masks: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float, int]:
    """KL in nats/token and perplexity of each of `masks` (S, L, H+2), the whole model's perplexity, the positions."""
    costs, surprise, base, count = np.zeros(len(masks)), np.zeros(len(masks)), 0.0, 0
    for batch in tasks.batches(encoded, 4):
        nats, negative, full = without(loaded, batch, masks)
        costs, surprise, base = costs + nats.sum(0), surprise + negative.sum(0), base + full.sum()
        count += int(batch.predicted.sum())
    return costs / count, np.exp(surprise / count), float(np.exp(base / count)), count


def mixes(calibration: Calibration, loaded: Loaded, encoded: tasks.Encoded) -> None:
    """Prints what following the composite costs at several weights."""
    shares = (0.05, 0.1, 0.2, 0.3)
    orders = [scores.composite(calibration, weights, "head") for weights in MIXES]
    sets = [head_columns(first_heads(order, share)) for order in orders for share in shares]
    costs = measured(loaded, encoded, np.stack(sets))[0].reshape(len(MIXES), len(shares))
    print("\n| weights of the composite | " + " | ".join(f"KL without {share:.0%}" for share in shares) + " |")
    print("|---|" + "---|" * len(shares))
    for weights, row in zip(MIXES, costs, strict=True):
        name = ", ".join(f"{metric} × {weight:g}" for metric, weight in weights.items())
        print(f"| {name} | " + " | ".join(f"{cost:.3f}" for cost in row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.calibration:
            calibration = load_calibration(options.calibration)
        else:
            calibration = calibrate(CalibrateRequest.asked(output=Path(folder) / "calibration"))
        if calibration.check is None:
            calibration = check(CheckRequest.asked(calibration=calibration.path))
    report(calibration, options.rows)


def report(calibration: Calibration, rows: int) -> None:
    loaded = load_model(bundled.NAME)
    task = tasks.load_task("bundled:briefs", split="validation")
    encoded = tasks.encode(tasks.choose(task, rows, 0), loaded.tokenizer, calibration.facts.settings.max_length)
    found = [removal for removal in removals(calibration) if removal.removed.any()]
    masks = np.stack([removal.removed for removal in found])
    costs, perplexity, base, count = measured(loaded, encoded, masks)
    if calibration.sketch is None or calibration.check is None:
        raise SystemExit("the calibration has no loss sketch or was not checked: make it with --kl fisher --check")
    unseen, correction = calibration.sketch.fold(1), calibration.check.correction
    raw = unseen.costs(masks).sum(0) / unseen.tokens.sum()
    corrected = np.array([value * (correction.factor(value) if correction else 1) for value in raw])
    facts, data = calibration.facts.settings, calibration.facts.dataset
    print(f"\nCalibrated on {data.rows} rows of briefs/train ({facts.draws} draw a row), checked on")
    print(f"{calibration.check.rows} others, measured on {len(encoded.rows)} rows of briefs/validation")
    print(f"({count:,} tokens). {machine()}\n")
    print("| chosen by | heads removed | forecast KL | corrected | measured KL | measured / corrected | perplexity |")
    print("|---|---|---|---|---|---|---|")
    order = sorted(range(len(found)), key=lambda index: (found[index].by, found[index].share))
    for i in order:
        print(
            f"| {found[i].by} | {found[i].share:.0%} | {raw[i]:.3f} | {corrected[i]:.3f} | {costs[i]:.3f} "
            f"| {costs[i] / corrected[i]:.2f} | {base:.1f} → {perplexity[i]:,.1f} |"
        )
    shares = np.array([removal.share for removal in found])
    chosen = np.array([removal.by in ("default score, valid", "kl_output") for removal in found])
    print(f"\nSpearman of forecast and measured KL over all {len(found)}: {spearmanr(raw, costs)[0]:.3f}\n")
    print("| removals | how many | measured / forecast: median [5%, 95%] | within 25% | corrected | within 25% |")
    print("|---|---|---|---|---|---|")
    for name, which in (
        ("up to 15% of the heads", shares <= SMALL),
        ("… chosen by the sketch", (shares <= SMALL) & chosen),
        ("more than 15%", shares > SMALL),
        ("… chosen by the sketch", (shares > SMALL) & chosen),
    ):
        cells = []
        for forecast in (raw, corrected):
            ratio = costs[which] / forecast[which]
            low, middle, high = np.quantile(ratio, (0.05, 0.5, 0.95))
            cells += [f"{middle:.2f} [{low:.2f}, {high:.2f}]", f"{np.mean(np.abs(ratio - 1) <= 0.25):.0%}"]
        print(f"| {name} | {which.sum()} | {' | '.join(cells)} |")
    if correction:
        print(
            f"\nThe correction, fitted on {correction.removals} removals of the check: measured ≈ forecast × "
            f"exp({correction.intercept:.3f} + {correction.slope:.3f} x + {correction.curvature:.3f} x²) with "
            f"x = ln forecast, from {correction.smallest:.3f} to "
            f"{correction.largest:.2f} nats/token, ± {correction.spread:.0%}."
        )
    mixes(calibration, loaded, encoded)


if __name__ == "__main__":
    main()
