"""Head ablation with TransformerLens, for benchmarks/speed.py: runs where TransformerLens is, and needs no Slim.

Reads {"model": FOLDER, "ids": [[…]]} from its first line of standard input and answers with its versions. Every further
line [[layer, head], …] is answered with the mean KL of ablating those heads one at a time.
"""

import json
import sys
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def ablate(bridge: Any, ids: Tensor, full: Tensor, layer: int, head: int) -> float:
    """Mean KL(full ‖ without the head) in nats over the predicted positions; `full` are log-probabilities."""

    def silence(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()  # (B, T, H, D)
        value[:, :, head] = 0
        return value

    hooks = [(f"blocks.{layer}.attn.hook_z", silence)]
    other = bridge.run_with_hooks(ids, return_type="logits", fwd_hooks=hooks)[:, :-1].log_softmax(-1)
    return float((full.exp() * (full - other)).sum(-1).mean())


def main() -> None:
    from transformer_lens import TransformerBridge  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not be read as an answer
    given = json.loads(sys.stdin.readline())
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    bridge = TransformerBridge.boot_transformers(given["model"], hf_model=model, tokenizer=tokenizer)
    ids = torch.tensor(given["ids"])
    with torch.no_grad():
        full = bridge(ids, return_type="logits")[:, :-1].log_softmax(-1)
    names = ("transformer_lens", "transformers", "torch")
    print(json.dumps({name: version(name) for name in names}), file=answers, flush=True)
    for line in sys.stdin:
        costs = [ablate(bridge, ids, full, layer, head) for layer, head in json.loads(line)]
        print(json.dumps(costs), file=answers, flush=True)


if __name__ == "__main__":
    main()
