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
from slim import bundled, models, sketch, tasks
from slim.metrics.kl_output import Ablation, Full, ablate, without
from slim.models import Loaded

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


def naive(loaded: Loaded, batches: Sequence[tasks.Batch], layer: int, head: int) -> tuple[float, float]:
    """Summed KL without one head by whole forwards, and the seconds of what the naive loop repeats for each head."""
    nats, seconds = 0.0, 0.0
    for batch in batches:
        nats += float(without(loaded, batch, one_head(loaded, layer, head))[0].sum())
        seconds += _repeated(loaded, batch, layer, head)
    return nats, seconds


def _repeated(loaded: Loaded, batch: tasks.Batch, layer: int, head: int) -> float:
    with torch.no_grad(), Full(loaded, batch) as full:
        return timed(lambda: full.compare(one_head(loaded, layer, head)))


def exact(loaded: Loaded, batches: Sequence[tasks.Batch]) -> None:
    """Prints how the shared prefix compares, and what the sketch makes of the same rows."""
    facts = loaded.facts
    tokens = sum(int(batch.predicted.sum()) for batch in batches)
    costs = np.zeros((facts.layers, facts.heads))
    per_layer = np.zeros(facts.layers)
    every = [Ablation("head", (head,)) for head in range(facts.heads)]
    for batch in batches:
        steps = ablate(loaded, batch, [every] * facts.layers)
        for layer in range(facts.layers):
            begun = time.perf_counter()
            costs[layer] += next(steps).sum(0)
            per_layer[layer] += time.perf_counter() - begun
    heads = [(layer, layer % facts.heads) for layer in range(0, facts.layers, 5)]
    tried = [naive(loaded, batches, *head) for head in heads]
    seconds = statistics.median(seconds for _, seconds in tried)
    off = max(abs(costs[head] - nats) / tokens for head, (nats, _) in zip(heads, tried, strict=True))
    loop = seconds * facts.layers * facts.heads
    body = sum(np.prod(s) for name, s in facts.shapes.items() if facts.layers and ".layers." in name)
    head = max(np.prod(s) for s in facts.shapes.values())
    limit = (body + head) / (body * (facts.layers + 1) / (2 * facts.layers) + head)
    print(f"Naive loop: {seconds:.2f} s a head, {loop:,.0f} s for all {costs.size} (median of {len(heads)}).  ")
    print(
        f"Exact with the prefix shared: {per_layer.sum():,.0f} s, **{loop / per_layer.sum():.2f}× faster** (the "
        f"arithmetic limit is {limit:.2f}×); largest difference to the naive loop {off:.1e} nats/token over "
        f"{len(heads)} heads.\n"
    )
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
                    for scores in sketch.score_rows(loaded, batch, draws, seed):
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
    tokenizer = models.load(bundled.NAME).tokenizer
    return Loaded(model, tokenizer, models.facts_of(model, "random llama", "random"))


def speed(loaded: Loaded, batches: Sequence[tasks.Batch]) -> None:
    """Prints one row: what the naive loop over all heads and the sketch with one draw take."""
    loops, sketches = [], []
    for repeat in range(REPEATS):
        loops.append(sum(_repeated(loaded, batch, repeat, 0) for batch in batches))
        sketches.append(timed(lambda: [sketch.score_rows(loaded, batch, 1, 0) for batch in batches]))
    heads = loaded.facts.layers * loaded.facts.heads
    naive_all, built = heads * statistics.median(loops), statistics.median(sketches)
    shape = f"{loaded.facts.layers} × {loaded.facts.heads}"
    print(
        f"| {loaded.facts.source} | {shape} = {heads} | {naive_all:,.0f} s | {built:.1f} s | {naive_all / built:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    loaded = models.load(bundled.NAME)
    task = tasks.load_task("bundled:briefs")
    encoded = tasks.encode(tasks.choose(task, options.rows, 0), loaded.tokenizer, LENGTH)
    batches = list(tasks.batches(encoded, 4))
    print(f"\n{len(encoded.rows)} rows of briefs/train, {encoded.tokens:,} tokens, cut at {LENGTH}. {machine()}\n")
    exact(loaded, batches)
    print("\n| model | heads | naive loop | loss sketch, 1 draw | times faster |")
    print("|---|---|---|---|---|")
    speed(loaded, batches[:1])
    speed(wide_model(int(loaded.model.config.vocab_size)), batches[:1])


if __name__ == "__main__":
    main()
