"""How long the long stages take beside those of an earlier commit, without the start of a process, and whether their
figures are equal.

`python -m benchmarks.stages df0f425 [--only NAME] [--pairs 5] [--dataset SOURCE]` runs each stage of both builds in
turn on the bundled model, each in a fresh process with an empty cache, and prints the median of the ratios.

calibrate        seconds that the record says (the model is loaded by then); Spearman of the heads' and blocks' figures
repair           seconds that the step's record says; KL after it
rounds           the whole command, four rounds; KL after the last
after-repair     the whole command; share of the heads on which the two plans agree
KD-LoRA          seconds of 16 steps less those of 4, on rows that ask nothing, whose answers are not tried; KL after 16
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file
from scipy.stats import spearmanr

from benchmarks.beside import Build, builds
from benchmarks.measure import machine, table
from slim.planning.files import load_plan

LENGTH = ["--max-length", "192"]
STEPS = (4, 16)
"""Of two trainings, whose difference is free of what surrounds the steps."""


@dataclass(frozen=True)
class Result:
    """The seconds of one build, and what is compared with the other's."""

    seconds: float
    made: Path


def _calibrated(samples: int) -> Callable[[Build, Path, str], Result]:
    def run(build: Build, fresh: Path, dataset: str) -> Result:
        words = ["calibrate", "--dataset", dataset, "--samples", str(samples), *LENGTH, "--output", str(fresh)]
        build.run(words)
        return Result(json.loads((fresh / "record.json").read_bytes())["seconds"], fresh)

    return run


def _repaired(build: Build, fresh: Path, dataset: str) -> Result:
    build.run(["prune", str(build.home / "plan.json"), "--rows", "128", "--output", str(fresh)])
    return Result(_step(fresh)["seconds"], fresh)


def _in_rounds(build: Build, fresh: Path, dataset: str) -> Result:
    seconds, _ = build.run(["prune", str(build.home / "plan.json"), "--rounds", "4", "--output", str(fresh)])
    return Result(seconds, fresh)


def _planned(build: Build, fresh: Path, dataset: str) -> Result:
    shutil.copytree(build.home / "cal", fresh)  # the forecast is saved there
    plan = fresh / "made.json"
    seconds, _ = build.run(["plan", str(fresh), "--budget", "heads=0.8", "--after-repair", "--output", str(plan)])
    return Result(seconds, plan)


def _trained(build: Build, fresh: Path, dataset: str) -> Result:
    short, long = (fresh.with_name(f"{fresh.name}-{steps}") for steps in STEPS)
    for folder, steps in zip((short, long), STEPS, strict=True):
        words = ["--method", "kd", "--steps", str(steps), "--evaluations", "1", "--rows", "128", "--restart"]
        words += ["--dataset", dataset, *LENGTH]
        build.run(["finetune", str(build.home / "cut"), *words, "--output", str(folder)])
    return Result(_step(long)["seconds"] - _step(short)["seconds"], long)


def _step(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "slim_recovery.json").read_bytes())["steps"][-1]


def _ranks(old: Result, new: Result) -> str:
    before, after = (load_file(one.made / "tensors.safetensors") for one in (old, new))
    found = {
        level: spearmanr(before[f"kl_output.{level}.value"].ravel(), after[f"kl_output.{level}.value"].ravel())[0]
        for level in ("head", "block")
    }
    return ", ".join(f"Spearman of {level}s {value:.4f}" for level, value in found.items())


def _kl(old: Result, new: Result) -> str:
    values = [_step(one.made)["after"]["kl"] for one in (old, new)]
    return f"KL {values[0]:.5f} → {values[1]:.5f} ({values[1] / values[0] - 1:+.1%})"


def _same_plan(old: Result, new: Result) -> str:
    kept = [
        {(layer, head) for layer, kept in enumerate(load_plan(one.made).keep) for head in kept.heads}
        for one in (old, new)
    ]
    return f"of {len(kept[0])} heads kept, {len(kept[0] & kept[1])} are the same"


STAGES: Mapping[str, tuple[Callable[[Build, Path, str], Result], Callable[[Result, Result], str]]] = {
    "calibrate, 16 rows": (_calibrated(16), _ranks),
    "calibrate, 48 rows": (_calibrated(48), _ranks),
    "repair": (_repaired, _kl),
    "rounds": (_in_rounds, _kl),
    "after-repair": (_planned, _same_plan),
    "KD-LoRA": (_trained, _kl),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--only", action="append", choices=STAGES)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dataset", default="bundled:general")
    chosen = parser.parse_args()
    rows = []
    with builds(chosen.commit) as pair:
        for name in chosen.only or STAGES:
            run, compare = STAGES[name]
            ratios, before, after, said = [], [], [], ""
            for _ in range(chosen.pairs):
                with tempfile.TemporaryDirectory() as folder:
                    old, new = (run(build, Path(folder) / build.home.name, chosen.dataset) for build in pair)
                    said = compare(old, new)
                before.append(old.seconds)
                after.append(new.seconds)
                ratios.append(new.seconds / old.seconds)
                print(
                    f"{name}: {before[-1]:.4g} → {after[-1]:.4g}, {ratios[-1]:.3f}; {said}", file=sys.stderr, flush=True
                )
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rows.append((name, f"{statistics.median(before):.4g} s", f"{statistics.median(after):.4g} s", spread, said))
    print(machine(), table(("stage", chosen.commit, "now", "ratio", "figures"), rows), sep="\n\n")


if __name__ == "__main__":
    main()
