"""How right and how fast the loss sketch and the exact ablation are, against the naive loop over the same rows.

`python -m benchmarks.sketch` takes the bundled model and `--rows` rows of briefs cut at 192 tokens, leaves out every
head for real with the prefix shared, and now and then a head the naive way: a whole forward with that head at 0. Prints
Markdown tables: agreement and speed of the shared prefix, and for several settings of the sketch its rank correlation
with the exact costs of all heads and how many times faster it is than the naive loop would be. A second, larger shape
with random weights shows how the ratio grows with the number of heads.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.measure import machine
from slim.calibration import sketch
from slim.calibration.ablation import Ablation, Full, ablate
from slim.data import tasks
from slim.models import bundled
from slim.models.load import Loaded, load_model, model_facts
from slim.models.precision import precision_of

LENGTH = 192
WIDE = {"layers": 40, "heads": 32, "kv_heads": 8, "width": 512, "head_dim": 16}
REPEATS = 5


def timed(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def one_head(loaded: Loaded, layer: int, head: int) -> np.ndarray:
    """A removal of one head.  # (1, L, H+2)"""
    removed = np.zeros((1, loaded.facts.layers, loaded.facts.heads + 2), dtype=bool)
    removed[0, layer, head] = True
    return removed


def naive(loaded: Loaded, batch: tasks.Batch, layer: int, head: int) -> tuple[float, float]:
    """Summed KL without one head by a whole forward, and the seconds of what the naive loop repeats for each head."""
    with torch.no_grad(), Full(loaded, batch) as full:
        begun = time.perf_counter()
        costs, _ = full.compare(one_head(loaded, layer, head))
        return float(costs.sum()), time.perf_counter() - begun


def shared_prefix(loaded: Loaded, batches: Sequence[tasks.Batch]) -> float:
    """Prints how the shared prefix compares, on a layer in five, timed in turn; gives the naive seconds of all."""
    facts = loaded.facts
    every = [Ablation("head", (head,)) for head in range(facts.heads)]
    layers = range(2, facts.layers, 5)
    shared, loop, off = 0.0, 0.0, 0.0
    for batch in batches:
        for layer in layers:
            chosen = [every if at == layer else [] for at in range(facts.layers)]
            begun, seconds, found = time.perf_counter(), 0.0, np.zeros((len(batch.rows), facts.heads))
            for at, costs in enumerate(ablate(loaded, batch, chosen)):
                if at == layer:
                    seconds = time.perf_counter() - begun
                    found = costs
                begun = time.perf_counter()
            shared += seconds
            tried = [naive(loaded, batch, layer, head) for head in (0, facts.heads // 2, facts.heads - 1)]
            loop += facts.heads * statistics.median(seconds for _, seconds in tried)
            for (nats, _), head in zip(tried, (0, facts.heads // 2, facts.heads - 1), strict=True):
                off = max(off, abs(float(found[:, head].sum()) - nats) / int(batch.predicted.sum()))
    whole = loop * facts.layers / len(layers)
    body = sum(np.prod(s) for name, s in facts.shapes.items() if ".layers." in name)
    head = max(np.prod(s) for s in facts.shapes.values())
    limit = (body + head) / (body * (facts.layers + 1) / (2 * facts.layers) + head)
    print(
        f"Exact ablation with the prefix shared is **{loop / shared:.2f}× faster** than the naive loop (the arithmetic "
        f"limit is {limit:.2f}×), timed in turn on the heads of layers {', '.join(map(str, layers))}; largest "
        f"difference {off:.1e} nats/token. The naive loop over all {facts.layers * facts.heads} heads would take "
        f"{whole:,.0f} s.\n",
        flush=True,
    )
    return whole


def agreement(loaded: Loaded, batches: Sequence[tasks.Batch], loop: float) -> None:
    """Prints what the sketch makes of the rows on which every head is left out."""
    facts = loaded.facts
    tokens = sum(int(batch.predicted.sum()) for batch in batches)
    costs = np.zeros((facts.layers, facts.heads))
    every = [Ablation("head", (head,)) for head in range(facts.heads)]
    for batch in batches:
        for layer, found in enumerate(ablate(loaded, batch, [every] * facts.layers)):
            costs[layer] += found.sum(0)
    print("| loss sketch | draws | Spearman with exact, single heads | Σ sketch / Σ exact | times faster than naive |")
    print("|---|---|---|---|---|")
    truth = costs / tokens
    segment, sampled = sketch.SEGMENT, sketch.SAMPLED
    for name, length, drawn, several in (
        ("one token drawn, no segments", 10**6, 1, (1, 4)),
        ("16 tokens drawn, no segments", 10**6, sampled, (1, 4)),
        ("one token drawn, segments", segment, 1, (1,)),
        ("as built", segment, sampled, (1, 2, 4)),
    ):
        sketch.SEGMENT, sketch.SAMPLED = length, drawn
        for draws in several:
            agreement, total, times = [], [], []
            for seed in range(REPEATS):
                energy, begun = np.zeros_like(truth), time.perf_counter()
                for batch in batches:
                    for scores in scored(loaded, batch, draws, seed):
                        energy += 0.5 * np.square(scores[..., :-2], dtype=np.float64).sum(0) / draws
                times.append(time.perf_counter() - begun)
                agreement.append(spearmanr(energy.ravel(), truth.ravel())[0])
                total.append(energy.sum() / costs.sum())
            print(
                f"| {name} | {draws} | {np.mean(agreement):.3f} ({min(agreement):.3f} to {max(agreement):.3f}) "
                f"| {np.mean(total):.2f} | {loop / statistics.median(times):.0f} |",
                flush=True,
            )
    sketch.SEGMENT, sketch.SAMPLED = segment, sampled


def wide_model(vocabulary: int) -> Loaded:
    """A llama of another shape with random weights: for time alone."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=WIDE["width"],
        intermediate_size=4 * WIDE["width"],
        num_hidden_layers=WIDE["layers"],
        num_attention_heads=WIDE["heads"],
        num_key_value_heads=WIDE["kv_heads"],
        head_dim=WIDE["head_dim"],
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    tokenizer = load_model(bundled.NAME).tokenizer
    return Loaded(model, tokenizer, model_facts(model, "random llama", "random"))


def scored(loaded: Loaded, batch: tasks.Batch, draws: int, seed: int) -> list[np.ndarray]:
    """The score vectors of a batch as a calibration makes them: the way back in the processor's fastest format."""
    return sketch.score_rows(loaded, batch, draws, seed, backward=precision_of("auto", loaded.model))


def speed(loaded: Loaded, batches: Sequence[tasks.Batch]) -> None:
    """Prints one row: what the naive loop over all heads and the sketch with one draw take."""
    loops, sketches = [], []
    for repeat in range(REPEATS):
        loops.append(sum(naive(loaded, batch, repeat, 0)[1] for batch in batches))
        sketches.append(timed(lambda: [scored(loaded, batch, 1, 0) for batch in batches]))
    heads = loaded.facts.layers * loaded.facts.heads
    naive_all, built = heads * statistics.median(loops), statistics.median(sketches)
    shape = f"{loaded.facts.layers} × {loaded.facts.heads}"
    print(
        f"| {loaded.facts.source} | {shape} = {heads} | {naive_all:,.0f} s | {built:.1f} s | {naive_all / built:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="the shared prefix alone")
    options = parser.parse_args()
    loaded = load_model(bundled.NAME)
    task = tasks.load_task("bundled:briefs")
    encoded = tasks.encode(tasks.choose(task, options.rows, 0), loaded.tokenizer, LENGTH)
    batches = list(tasks.batches(encoded, 4))
    print(f"\n{len(encoded.rows)} rows of briefs/train, {encoded.tokens:,} tokens, cut at {LENGTH}. {machine()}\n")
    print(f"The sketch's way back is in {precision_of('auto', loaded.model)}.\n")
    loop = shared_prefix(loaded, batches)
    if options.quick:
        return
    agreement(loaded, batches, loop)
    print("\n| model | heads | naive loop | loss sketch, 1 draw | times faster |")
    print("|---|---|---|---|---|")
    speed(loaded, batches[:1])
    speed(wide_model(int(loaded.model.config.vocab_size)), batches[:1])


if __name__ == "__main__":
    main()
