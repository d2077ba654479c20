"""What plans of several sizes are forecast to cost, and what they cost when measured on rows of another split.

`python -m benchmarks.forecast` calibrates the bundled model on `briefs` with the default settings (unless
`--calibration DIR` names a calibration), silences each plan's heads, and prints a Markdown table: by the default score,
by attention entropy alone, and at random. Measured on `--rows` rows of the validation split.
"""

import argparse
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn.functional import cross_entropy

from slim import bundled, calibrate, models, plan, tasks
from slim.metrics.kl_output import kl_divergence
from slim.probe import Probe
from slim.prune import gates_of
from slim.records import Keep

THRESHOLDS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6)


def logits_of(loaded: models.Loaded, batch: tasks.Batch, keep: Keep | None = None) -> torch.Tensor:
    """Logits at the predicted positions (N, V), with the heads that `keep` leaves out silenced."""
    with torch.no_grad(), Probe(loaded.model, loaded.architecture) as probe:
        probe.gates = None if keep is None else gates_of(keep, loaded, len(batch.rows))
        return loaded.model(**batch.inputs(), use_cache=False).logits[:, :-1][batch.predicted]


def loss_and_perplexity(
    full: list[torch.Tensor], cut: list[torch.Tensor], targets: list[torch.Tensor]
) -> tuple[float, float]:
    """KL in nats/token of `cut` to `full`, and the perplexity of `cut` on the rows' own tokens."""
    count = sum(map(len, targets))
    kl = sum(float(kl_divergence(f, c).double().sum()) for f, c in zip(full, cut, strict=True))
    nll = sum(float(cross_entropy(c, t, reduction="sum")) for c, t in zip(cut, targets, strict=True))
    return kl / count, float(np.exp(nll / count))


def plans(calibration: calibrate.Calibration) -> list[tuple[str, plan.Plan]]:
    """The plans to measure, by what chose them."""
    chosen = [("default score", plan.make_plan(calibration, t)) for t in THRESHOLDS]
    chosen += [("entropy alone", plan.make_plan(calibration, t, weights={"entropy": 1.0})) for t in (0.95, 0.9, 0.8)]
    chosen += [("variance alone", plan.make_plan(calibration, t, weights={"variance": 1.0})) for t in (0.95, 0.9, 0.8)]
    chosen += [("default score, blocks", plan.make_plan(calibration, t, "block")) for t in (0.97, 0.9, 0.8)]
    rng = np.random.default_rng(0)
    for share in (0.95, 0.9, 0.8):
        scores = rng.permutation(calibration.facts.model.layers * calibration.facts.model.heads)
        ranks = plan.prunability(scores.reshape(calibration.level("head")["entropy"].shape).astype(float), True)
        keep = tuple(plan.legal_heads(row, share, calibration.facts.model.kv_heads) for row in ranks)
        base = plan.make_plan(calibration, share)
        changed = base.model_copy(update={"keep": keep, "forecast": plan.forecast(calibration, keep)})
        chosen.append(("random", changed))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    options = parser.parse_args()
    if options.calibration:
        calibration = calibrate.load(options.calibration)
    else:
        with tempfile.TemporaryDirectory() as folder:
            calibration = calibrate.calibrate(output=Path(folder) / "calibration")
    loaded = models.load(bundled.NAME)
    task = tasks.load_task("bundled:briefs", split="validation")
    encoded = tasks.encode(tasks.choose(task, options.rows, 0), loaded.tokenizer, 320)
    batched = list(tasks.batches(encoded, 4))
    targets = [batch.ids[:, 1:][batch.predicted] for batch in batched]
    full = [logits_of(loaded, batch) for batch in batched]
    _, base = loss_and_perplexity(full, full, targets)

    print(f"\nCalibrated on {calibration.facts.dataset.rows} rows of briefs/train,")
    print(f"measured on {len(encoded.rows)} rows of briefs/validation ({encoded.tokens:,} tokens).")
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {platform.python_version()}.\n")
    print("| chosen by | heads removed | forecast KL [95%] | measured KL | measured / forecast | perplexity |")
    print("|---|---|---|---|---|---|")
    forecasts, truths = [], []
    for name, made in plans(calibration):
        kl, perplexity = loss_and_perplexity(full, [logits_of(loaded, b, made.keep) for b in batched], targets)
        f = made.forecast
        if f is None:
            raise SystemExit("the calibration has no loss sketch: make it with --kl fisher")
        forecasts.append(f.nats_per_token)
        truths.append(kl)
        share = made.removed_heads / (made.model.layers * made.model.heads)
        print(
            f"| {name} | {made.removed_heads} ({share:.0%}) | {f.nats_per_token:.3f} [{f.low:.3f}, {f.high:.3f}] "
            f"| {kl:.3f} | {kl / f.nats_per_token:.2f} | {base:.1f} → {perplexity:.1f} |",
            flush=True,
        )
    print(f"\nSpearman of forecast and measured KL over {len(truths)} plans: {spearmanr(forecasts, truths)[0]:.3f}")


if __name__ == "__main__":
    main()
