"""Loss of quality by pruning and its recovery, on the bundled model and GSM8K.

`python -m benchmarks.recovery --data FOLDER --work FOLDER` calibrates and trains on `gsm8k_train_1000.jsonl` of the
data folder and measures on `gsm8k_test.jsonl`. Every line of the table is measured once and kept in the work folder, so
the run may be stopped and goes on; `--only TEXT` measures the lines whose name holds it. Prints what is there as
Markdown.

For 20, 30 and 40% of the heads, valid under GQA: planned by the loss sketch and for what is left after repair, each
without and with closed-form repair; in rounds; then 200 steps of KD-LoRA. Beside them the same sizes at random, by
magnitude, by block influence (whole blocks) and by torch-pruning; whole attention blocks; and the original itself,
given the same 200 steps.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import accuracy, peer_torch_pruning
from benchmarks.measure import machine, slug, table
from slim.calibration.calibrate import calibrate
from slim.calibration.record import Calibration, load_calibration
from slim.calibration.request import CalibrateRequest
from slim.core.cache import open_cache
from slim.data import tasks
from slim.evaluation.likelihood import Passes
from slim.models import bundled
from slim.models.load import Loaded, load_model
from slim.models.units import NO_ATTENTION, Keep, LayerKeep, whole_model
from slim.planning.after_repair import after_repair_sketch
from slim.planning.after_repair_record import AfterRepairSketch
from slim.planning.budget import plan_by_budget
from slim.planning.build import build_plan
from slim.planning.files import save_plan
from slim.planning.record import ByBudget, Pins, Plan
from slim.planning.shapes import valid_heads
from slim.pruning import checkpoint
from slim.recovery.context import quality
from slim.recovery.finetune import finetune
from slim.recovery.prune import prune
from slim.recovery.repair import repair
from slim.recovery.request import FinetuneRequest, PruneRequest, RepairRequest

SHARES = (0.2, 0.3, 0.4)
ROUNDS = {0.2: 2, 0.3: 3, 0.4: 4}
"""Of a tenth of the heads each."""
BLOCKS = (6, 9)
PARTS = 2**40
"""Of the range of a rule's scores, which are planned by as whole numbers."""
LENGTH = 256
REPAIR = {"samples": 160, "max_length": LENGTH}
TRAINING = {"steps": 200, "batch_size": 4, "max_length": LENGTH, "positions": "all", "evaluations": 4}


@dataclass(frozen=True)
class Line:
    """A line of the table: what it is, and how to make a checkpoint of it; torch-pruning's stay in memory."""

    name: str
    make: Callable[[Path], Path] | None
    peer: float = 0.0


class Bench:
    """Models and rows, made when they are needed."""

    def __init__(self, data: Path, work: Path, rows: int) -> None:
        self.data, self.work, self.rows = data, work, rows
        self.train = str(data / "gsm8k_train_1000.jsonl")

    @cached_property
    def calibration(self) -> Calibration:
        folder = self.work / "calibration"
        if not folder.is_dir():
            calibrate(CalibrateRequest.asked(dataset=self.train, samples=96, max_length=LENGTH, output=folder))
        return load_calibration(folder)

    @cached_property
    def left(self) -> AfterRepairSketch:
        """The forecast after repair of each layer candidate."""
        return after_repair_sketch(self.calibration)

    @cached_property
    def original(self) -> Loaded:
        return load_model(bundled.NAME)

    @cached_property
    def told(self) -> tasks.Encoded:
        task = tasks.load_task(str(self.data / "gsm8k_test.jsonl"))
        return tasks.encode(tasks.choose(task, self.rows, 0), self.original.tokenizer, LENGTH)

    def plan(self, keep: Keep) -> Plan:
        reason = ByBudget(limits={"heads": sum(len(kept.heads) for kept in keep) / 270})
        return build_plan(self.calibration, keep, "head", reason, Pins(), False)

    def by_scores(self, scores: NDArray[np.float64], share: float) -> Plan:
        """The plan of a valid shape that removes at least a share of the heads, the highest scores first."""
        facts, low, high = self.calibration.facts.model, 0.0, 2.0 * PARTS
        costs = np.round((scores - scores.min()) / np.ptp(scores) * PARTS).astype(np.int64)  # (L, H)
        counts, kept = range(1, facts.group + 1), list[tuple[int, ...]]()
        for _ in range(40):
            threshold = (low + high) / 2
            tried = [valid_heads(row, threshold, facts.kv_heads, counts) for row in costs]
            if sum(map(len, tried)) <= (1 - share) * scores.size:
                low, kept = threshold, tried
            else:
                high = threshold
        return self.plan(tuple(LayerKeep(heads=heads) for heads in kept))

    def without_blocks(self, order: NDArray[np.int64], count: int) -> Plan:
        whole, gone = whole_model(self.calibration.facts.model), set(order[:count].tolist())
        return self.plan(tuple(NO_ATTENTION if layer in gone else kept for layer, kept in enumerate(whole)))

    def model(self, name: str) -> Path:
        return self.work / "models" / slug(name)

    def repaired(self, name: str) -> Callable[[Path], Path]:
        return lambda output: repair(RepairRequest.asked(folder=self.model(name), output=output, **REPAIR))

    def trained(self, source: str | Path, method: str) -> Callable[[Path], Path]:
        return lambda output: finetune(
            FinetuneRequest.asked(folder=source, dataset=self.train, method=method, output=output, **TRAINING)
        )

    def in_rounds(self, share: float) -> Callable[[Path], Path]:
        def make(output: Path) -> Path:
            plan = plan_by_budget(self.calibration, {"heads": 1 - share}, absorbed=self.left)
            file = save_plan(plan, self.work / "plans" / f"{slug(output.name)}.json")
            return prune(PruneRequest.asked(plan=file, rounds=ROUNDS[share], output=output, **REPAIR))

        return make

    def lines(self) -> Iterator[Line]:
        """In the order in which they are measured."""
        level, blocks = (self.calibration.level(unit) for unit in ("head", "block"))
        layers = len(blocks["kl_output"])
        for share in SHARES:
            limits, size = {"heads": 1 - share}, f"{share:.0%}"
            first, planned = f"{size}: sketch", f"{size}: sketch after repair"
            yield Line(first, lambda at, limits=limits: checkpoint.prune(plan_by_budget(self.calibration, limits), at))
            yield Line(f"{first}, repaired", self.repaired(first))
            yield Line(
                planned,
                lambda at, limits=limits: checkpoint.prune(
                    plan_by_budget(self.calibration, limits, absorbed=self.left), at
                ),
            )
            yield Line(f"{planned}, repaired", self.repaired(planned))
            yield Line(f"{size}: in {ROUNDS[share]} rounds", self.in_rounds(share))
            chance = np.random.default_rng(0).random(level["kl_output"].shape)
            for name, plan in (
                ("random heads", self.by_scores(chance, share)),
                ("magnitude", self.by_scores(-level["magnitude"], share)),
                (
                    "block influence, whole blocks",
                    self.without_blocks(np.argsort(blocks["block_influence"]), round(share * layers)),
                ),
            ):
                yield Line(f"{size}: {name}", lambda at, plan=plan: checkpoint.prune(plan, at))
                yield Line(f"{size}: {name}, repaired", self.repaired(f"{size}: {name}"))
            yield Line(f"{size}: torch-pruning", None, share)
        for count in BLOCKS:
            name = f"{count} blocks: left out one by one"
            order = np.argsort(blocks["kl_output"])
            yield Line(
                name, lambda at, count=count, order=order: checkpoint.prune(self.without_blocks(order, count), at)
            )
            yield Line(f"{name}, repaired", self.repaired(name))
            name = f"{count} blocks: sketch after repair"
            limits = {"heads": 1 - count / layers}
            yield Line(
                name,
                lambda at, limits=limits: checkpoint.prune(
                    plan_by_budget(self.calibration, limits, "block", absorbed=self.left), at
                ),
            )
            yield Line(f"{name}, repaired", self.repaired(name))
        for share in SHARES:
            best = f"{share:.0%}: in {ROUNDS[share]} rounds"
            yield Line(f"{best}, then 200 steps of KD-LoRA", self.trained(self.model(best), "kd"))
        yield Line("original, 200 steps on the task", self.trained(bundled.NAME, "lora"))

    def measure(self, line: Line) -> None:
        """Makes the model of a line and keeps its figures."""
        place = self.model(line.name)
        if line.make is None:
            loaded, gone = peer_torch_pruning.pruned(line.peer)
        else:
            if not place.is_dir():
                place.parent.mkdir(exist_ok=True)
                line.make(place)
            loaded, gone = load_model(str(place)), removed(place)
        with open_cache() as cache:
            found = quality(self.original, loaded, self.told, Passes(8, cache))
        kept = {"gone": gone, **found.model_dump(), "machine": machine()}
        (self.work / f"{slug(line.name)}.json").write_text(json.dumps({"name": line.name, **kept}, indent=1))


def removed(folder: Path) -> int:
    """Query heads that a checkpoint lacks."""
    return checkpoint.recipe(folder).removed_heads if (folder / checkpoint.PLAN_FILE).is_file() else 0


def report(bench: Bench) -> str:
    found = [json.loads(file.read_text()) for file in bench.work.glob("*.json")]
    order = [line.name for line in bench.lines()]
    found = sorted((one for one in found if one["name"] in order), key=lambda one: order.index(one["name"]))
    rows = [
        [
            one["name"],
            f"{one.get('gone', 270 - one.get('heads', 270))}",
            f"{one['kl']:.3f}",
            f"{one['perplexity']:.2f}",
            f"{one['perplexity'] / one['original']:.3f}×",
        ]
        for one in found
    ]
    head = ("removed: chosen by", "heads gone", "KL, nats/token", "perplexity", "÷ original")
    told = f"{found[0]['rows']} rows of gsm8k_test, {found[0]['predicted']:,} predicted tokens; " if found else ""
    return f"{told}{machine()}\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k_train_1000 and gsm8k_test")
    parser.add_argument("--work", type=Path, required=True, help="folder for models and figures, some GB")
    parser.add_argument("--rows", type=int, default=64, help="test rows that are measured on")
    parser.add_argument("--only", default="", help="measure the lines whose name holds this")
    parser.add_argument("--accuracy", action="store_true", help="how often answers are right, too")
    options = parser.parse_args()
    os.environ["SLIM_HOME"] = str(options.work.absolute() / "workspace")
    bench = Bench(options.data.absolute(), options.work.absolute(), options.rows)
    for line in bench.lines():
        if options.only in line.name and not (bench.work / f"{slug(line.name)}.json").is_file():
            bench.measure(line)
            print(json.loads((bench.work / f"{slug(line.name)}.json").read_text()), flush=True)
    print(report(bench))
    if options.accuracy:
        best = [f"{share:.0%}: sketch after repair, repaired" for share in SHARES]
        folders = {name: bench.model(name) for name in best}
        there = {name: folder for name, folder in folders.items() if folder.is_dir()}
        print(f"\n{accuracy.table_of(there, bench.data, bench.work)}")


if __name__ == "__main__":
    main()
