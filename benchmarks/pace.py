"""How much faster pruned models are, beside what their removed work and reading promise.

`python -m benchmarks.pace` prints a Markdown table for the bundled model: prefill of 512 tokens with the logits of all
of them, and decoding after a prompt of 64, one row and eight rows at a time. With `--plan FILE` that plan is timed too.
Which heads go changes no cost, so the plans here take them evenly.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measure import machine, table
from slim.core.records import ModelFacts
from slim.evaluation.speed import Decoding, prefill, tokens
from slim.evaluation.timing import interleaved
from slim.models import bundled
from slim.models.load import Loaded, load_model
from slim.models.units import NO_ATTENTION, NO_LAYER, Keep, LayerKeep, whole_layer, whole_model
from slim.planning.files import load_plan
from slim.planning.record import ByThreshold, Plan
from slim.planning.sizes import CONTEXT, Speedup, original_size, size_of, speedup
from slim.pruning.checkpoint import prune

ROWS = (1, 8)
PROMPT = 64
"""Tokens that decoding starts after."""
STEPS = 32
"""Tokens that are decoded."""


def fewer_layers(facts: ModelFacts) -> Keep:
    """Every fifth layer is gone."""
    return tuple(NO_LAYER if layer % 5 == 2 else kept for layer, kept in enumerate(whole_model(facts)))


def uniform(facts: ModelFacts) -> Keep:
    """The same third of the KV groups, with all of their heads, in every layer."""
    return (LayerKeep(heads=tuple(range(max(1, facts.kv_heads // 3) * facts.group))),) * facts.layers


def layer_by_layer(facts: ModelFacts) -> Keep:
    """Of three layers one is whole, one has its first KV group alone, and one has no attention but every other time."""
    whole, first = whole_layer(facts), LayerKeep(heads=tuple(range(facts.group)))
    return tuple(
        (whole, first, NO_ATTENTION if layer % 2 else whole)[layer % 3] if layer else whole
        for layer in range(facts.layers)
    )


PLANS: dict[str, Callable[[ModelFacts], Keep]] = {
    "layers, one in five": fewer_layers,
    "heads, the same in all layers": uniform,
    "heads and blocks, layer by layer": layer_by_layer,
}


def plan_of(facts: ModelFacts, keep: Keep) -> Plan:
    """A plan that keeps `keep`."""
    return Plan(
        model=facts,
        calibration="",
        unit="head",
        reason=ByThreshold(threshold=1, weights={}, scores=()),
        keep=keep,
        before=original_size(facts),
        after=size_of(facts, keep),
    )


def figures(seconds: dict[str, float], promised: dict[str, float], what: str) -> list[list[str]]:
    """The table's lines for one thing that was timed; the first name is the original's."""
    original, *pruned = seconds
    lines = []
    for name in pruned:
        measured = seconds[original] / seconds[name]
        share = f"{(measured - 1) / (promised[name] - 1):.0%}" if promised[name] > 1 else ""
        pair = f"{seconds[original]:.3f} → {seconds[name]:.3f}"
        lines.append([what, name, pair, f"{measured:.2f}×", f"{promised[name]:.2f}×", share])
    return lines


def compare(loaded: dict[str, Loaded], plans: dict[str, Plan], repeats: int, length: int, steps: int) -> str:
    """Every model at every number of rows."""
    original = next(iter(loaded.values()))
    lines = []
    for rows in ROWS:
        ids = tokens(original, rows, length)
        after = min(PROMPT, length)
        promised: dict[str, Speedup] = {
            name: speedup(plan.before, plan.after, rows, after + steps // 2) for name, plan in plans.items()
        }
        words = f"{rows} row{'s' if rows > 1 else ''}"
        seconds = interleaved({name: partial(prefill, model, ids) for name, model in loaded.items()}, repeats)
        lines += figures(seconds, {name: of.prefill for name, of in promised.items()}, f"prefill, {words}")
        decoding = {name: Decoding(model, ids[:, :after], steps) for name, model in loaded.items()}
        seconds = interleaved(decoding, repeats)
        lines += figures(seconds, {name: of.decode for name, of in promised.items()}, f"decoding, {words}")
    return table(["what", "removed", "seconds", "speed-up", "promised", "share reached"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=bundled.NAME)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, in turn, of which the median counts")
    parser.add_argument("--tokens", type=int, default=CONTEXT, help="of the prompt that is prefilled")
    parser.add_argument("--steps", type=int, default=STEPS, help="tokens that are decoded")
    parser.add_argument("--plan", type=Path, action="append", default=[], help="a saved plan of the model")
    options = parser.parse_args()
    original = load_model(options.model)
    plans = {name: plan_of(original.facts, keep(original.facts)) for name, keep in PLANS.items()}
    plans |= {path.stem: load_plan(path) for path in options.plan}
    loaded = {"original": original}
    with tempfile.TemporaryDirectory() as place:
        for number, (name, plan) in enumerate(plans.items()):
            folder = prune(plan, Path(place) / str(number))
            loaded[name] = load_model(str(folder))
        print(f"\n{machine()}.")
        print(f"Medians of {options.repeats} interleaved runs. {options.model}, {original.model.dtype}.\n")
        print("| removed | parameters | KV cache per token |\n| --- | --- | --- |")
        for name, plan in plans.items():
            pairs = [
                (plan.before.parameters, plan.after.parameters),
                (plan.before.kv_bytes_per_token, plan.after.kv_bytes_per_token),
            ]
            print(f"| {name} | {' | '.join(f'{after / before - 1:+.1%}' for before, after in pairs)} |")
        print()
        print(compare(loaded, plans, options.repeats, options.tokens, options.steps))


if __name__ == "__main__":
    main()
