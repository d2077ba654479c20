"""How long plans by budget take, by the size of the model.

`python -m benchmarks.planner` makes up loss sketches of random numbers with the tails that real ones have and plans
with them; what they say matters for nothing but time. Prints a Markdown table.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import AutoConfig

from benchmarks.measure import machine, table
from slim.calibration.facts import CalibrationFacts, CalibrationSettings
from slim.calibration.loss_sketch import LossSketch
from slim.calibration.record import Calibration
from slim.core.records import DatasetFacts
from slim.models.load import facts_from_config
from slim.planning.budget import curve, plan_by_budget

SEQUENCES, SEGMENTS = 32, 20


@dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    kv_heads: int


SHAPES = (Shape(30, 9, 3), Shape(32, 32, 8), Shape(32, 32, 32), Shape(80, 64, 8))


def made_up(shape: Shape) -> Calibration:
    """A calibration of a llama of this shape that was never loaded."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=32000,
        hidden_size=64 * shape.heads,
        intermediate_size=4 * 64 * shape.heads,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=64,
    )
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(0, 1.5, (shape.layers, shape.heads + 2)))
    scale[:, -2:] *= shape.heads**0.5
    rows = SEQUENCES * SEGMENTS
    scores = (rng.standard_t(4, (rows, *scale.shape)) * scale * 0.02).astype(np.float32)
    sketch = LossSketch(scores, np.repeat(np.arange(SEQUENCES), SEGMENTS), np.full(SEQUENCES, 16 * SEGMENTS))
    facts = CalibrationFacts(
        model=facts_from_config("made up", config),
        dataset=DatasetFacts(source="made up", split="", kind="", rows=1, tokens=1, truncated_rows=0),
        settings=CalibrationSettings(),
        metrics={},
        versions={},
        device="cpu",
        started="",
        seconds=0,
    )
    return Calibration(facts, {}, sketch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for shape in SHAPES:
        calibration = made_up(shape)
        ways: dict[str, Callable[[], object]] = {
            "heads, bytes ≤ 95%": lambda c=calibration: plan_by_budget(c, {"bytes": 0.95}),
            "heads, four limits": lambda c=calibration: plan_by_budget(
                c, {"params": 0.96, "kv": 0.8, "decode": 1.03, "flops": 0.97}
            ),
            "heads, loss ≤ 0.2": lambda c=calibration: plan_by_budget(c, {"loss": 0.2}),
            "one shape, bytes ≤ 90%": lambda c=calibration: plan_by_budget(c, {"bytes": 0.9}, uniform=True),
            "layers, bytes ≤ 80%": lambda c=calibration: plan_by_budget(c, {"bytes": 0.8}, "layer"),
            "curve of 50 budgets": lambda c=calibration: [*curve(c)],
        }
        for name, way in ways.items():
            seconds = []
            for _ in range(options.repeats):
                begun = time.perf_counter()
                way()
                seconds.append(time.perf_counter() - begun)
            size = f"{shape.layers} × {shape.heads}, {shape.kv_heads} KV"
            rows.append([size, name, f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"])
    print(f"\nMedian of {options.repeats}. {machine()}\n")
    print(table(["layers × heads", "plan", "seconds", "slowest"], rows))


if __name__ == "__main__":
    main()
