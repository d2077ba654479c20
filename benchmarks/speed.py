"""Time and memory of the attention statistics and the ablation of heads, beside other ways to get them.

`python -m benchmarks.speed` prints two Markdown tables for the bundled model. With `--peer-python PATH`, an interpreter
that has TransformerLens (`pip install transformer_lens`), its loop over heads is measured too.
"""

import argparse
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.measure import machine, table
from slim.calibration.ablation import kl_divergence
from slim.calibration.criteria import CRITERIA
from slim.evaluation.speed import tokens
from slim.evaluation.timing import in_fresh_process, interleaved, peak_growth
from slim.models import bundled
from slim.models.load import Loaded, load_model, locate
from slim.models.probe import Probe

STATISTICS = ("entropy", "kl_uniform", "variance", "block_influence")
TIMED = (512, 1024)
WEIGHED = (512, 1024, 2048, 4096)
HEADS = ((0, 0), (6, 4), (12, 8), (18, 2), (24, 6), (29, 5))
"""(layer, head) spread over the bundled model."""
ROWS, LENGTH = 2, 128
"""Rows and tokens per row that heads are ablated on."""
Pass = Callable[[Loaded, Tensor], object]


# How the attention statistics can be had: each goes over all heads of one batch of tokens (B, T).


@torch.no_grad()
def plain(loaded: Loaded, ids: Tensor) -> None:
    """Run the model's own forward, with the logits of every position: the baseline of all comparisons."""
    loaded.model(ids, use_cache=False)


@torch.no_grad()
def without_logits(loaded: Loaded, ids: Tensor) -> None:
    """The same with the logits of the last position alone."""
    loaded.model(ids, use_cache=False, logits_to_keep=1)


@torch.no_grad()
def statistics(loaded: Loaded, ids: Tensor) -> None:
    """Slim's meters as a calibration runs them: such figures need no logits."""
    meters = [meter(loaded) for name in STATISTICS if (meter := CRITERIA[name].meter)]
    with Probe(loaded.model, loaded.architecture, meters) as probe:
        probe.valid = torch.ones_like(ids, dtype=torch.bool)
        loaded.model(ids, use_cache=False, logits_to_keep=1)
    for meter in meters:
        meter.take()


@torch.no_grad()
def attention_maps(loaded: Loaded, ids: Tensor) -> list[Tensor]:
    """The entropy alone, from the attention maps that eager attention hands out."""
    loaded.model.set_attn_implementation("eager")
    maps = loaded.model(ids, use_cache=False, output_attentions=True, logits_to_keep=1).attentions
    loaded.model.set_attn_implementation(loaded.architecture.implementation)
    return [-torch.xlogy(weights, weights).sum(-1).mean((0, 2)) for weights in maps]


PASSES: dict[str, Pass] = {
    "plain forward": plain,
    "plain forward without logits": without_logits,
    "Slim: entropy, KL to uniform, variance, block influence": statistics,
    "entropy from `output_attentions=True`": attention_maps,
}


def memory_needed(loaded: Loaded, name: str, length: int) -> int:
    """Bytes that a pass needs at least, where that may be more than there is."""
    maps = 4 * loaded.facts.layers * loaded.facts.heads * length**2
    return maps if PASSES[name] is attention_maps else 0


def memory(loaded: Loaded, name: str, length: int) -> int:
    """Peak growth in bytes of this process over the loaded model; `plain` at 16 tokens has touched every weight."""
    plain(loaded, tokens(loaded, 1, 16))
    ids = tokens(loaded, 1, length)
    return peak_growth(partial(PASSES[name], loaded, ids))


def compare_passes(loaded: Loaded, model: str, repeats: int) -> str:
    """Time and memory of every pass at every length."""
    rows = []
    for length in WEIGHED:
        ids = tokens(loaded, 1, length)
        names = [name for name in PASSES if memory_needed(loaded, name, length) < psutil.virtual_memory().available / 2]
        seconds: dict[str, float] = {}
        if length in TIMED:
            seconds = interleaved({name: partial(PASSES[name], loaded, ids) for name in names}, repeats)
        grown = {
            name: in_fresh_process("benchmarks.speed", ["--model", model, "--weigh", name, "--tokens", str(length)])
            for name in names
        }
        first = next(iter(PASSES))
        for name in PASSES:
            time = [f"{seconds[name]:.2f}", f"{seconds[name] / seconds[first]:.2f}"] if name in seconds else ["", ""]
            if name in grown:
                space = [f"{grown[name] / 1e6:,.0f}", f"{grown[name] / grown[first]:.2f}"]
            else:
                space = [f"> {memory_needed(loaded, name, length) / 1e6:,.0f}: left out", ""]
            rows.append([f"{length:,}", name, *time, *space])
    return table(["tokens", "pass", "seconds", "÷ plain", "peak memory, MB", "÷ plain"], rows)


# How the cost of leaving out a head can be had: each gives the mean KL in nats of every head that it is asked about.


@dataclass(frozen=True)
class Way:
    """`costs()` leaves out `heads` in turn and gives the mean KL of each, in their order."""

    name: str
    heads: Sequence[tuple[int, int]]
    costs: Callable[[], Sequence[float]]


def gated_loop(loaded: Loaded, ids: Tensor) -> Way:
    """One whole forward per head, its gate at 0."""
    with torch.no_grad():
        full = loaded.model(ids, use_cache=False).logits[:, :-1]

    def costs() -> list[float]:
        found = []
        with torch.no_grad(), Probe(loaded.model, loaded.architecture) as probe:
            for layer, head in HEADS:
                probe.gates = torch.ones(1, loaded.facts.layers, loaded.facts.heads + 2)
                probe.gates[:, layer, head] = 0
                cut = loaded.model(ids, use_cache=False).logits[:, :-1]
                found.append(float(kl_divergence(full, cut).mean()))
        return found

    return Way("Slim, one whole forward per head, gate at 0", HEADS, costs)


@contextmanager
def transformer_lens(python: Path, folder: str, ids: Tensor) -> Iterator[Way]:
    """The loop over hooks of TransformerLens, in a process of its own that waits between its turns."""
    script = Path(__file__).with_name("peer_transformer_lens.py")
    with subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:

        def ask(question: object) -> Any:
            assert peer.stdin is not None
            assert peer.stdout is not None
            print(json.dumps(question), file=peer.stdin, flush=True)
            return json.loads(peer.stdout.readline())

        versions = ask({"model": folder, "ids": ids.tolist()})
        name = ", ".join(f"{package} {version}" for package, version in versions.items())
        yield Way(f"one hook per head ({name})", HEADS, lambda: ask(HEADS))


def compare_ways(ways: Sequence[Way], repeats: int) -> str:
    """Seconds per head of every way, and how far its figures are from the first one's."""
    seconds = interleaved({way.name: way.costs for way in ways}, repeats)
    per_head = {way.name: seconds[way.name] / len(way.heads) for way in ways}
    truth = dict(zip(ways[0].heads, ways[0].costs(), strict=True))
    rows = []
    for way in ways:
        found = dict(zip(way.heads, way.costs(), strict=True))
        off = max(abs(found[head] / truth[head] - 1) for head in truth)
        ratio = per_head[ways[0].name] / per_head[way.name]
        rows.append([way.name, f"{per_head[way.name]:.3f}", f"{ratio:.2f}×", f"{off:.1e}"])
    return table(["way", "seconds per head", "speed", "largest relative difference"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=bundled.NAME)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, in turn, of which the median counts")
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has TransformerLens")
    parser.add_argument("--weigh", choices=PASSES, help="print the peak memory of one pass and nothing else")
    parser.add_argument("--tokens", type=int, default=TIMED[0], help="for --weigh")
    options = parser.parse_args()
    folder = locate(options.model)
    loaded = load_model(folder)
    if options.weigh:
        print(json.dumps(memory(loaded, options.weigh, options.tokens)))
        return

    print(f"\n{machine()}.")
    print(f"Medians of {options.repeats} interleaved runs. {options.model}, {loaded.model.dtype}.\n")
    print("## Attention statistics\n\nOne row. Peak memory is what a fresh process needs beyond the loaded model.\n")
    print(compare_passes(loaded, folder, options.repeats), flush=True)

    ids = tokens(loaded, ROWS, LENGTH)
    print(f"\n## Leaving out heads\n\nMean KL in nats of each of {len(HEADS)} heads on {ROWS} × {LENGTH} tokens.\n")
    with ExitStack() as stack:
        ways = [gated_loop(loaded, ids)]
        if options.peer_python:
            ways.append(stack.enter_context(transformer_lens(options.peer_python, folder, ids)))
        print(compare_ways(ways, options.repeats))
    if not options.peer_python:
        print("\nTransformerLens was left out: `--peer-python` names no interpreter that has it.")


if __name__ == "__main__":
    main()
