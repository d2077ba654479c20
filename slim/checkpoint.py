"""Writing a pruned model as a Hugging Face folder: stock where its layers are alike, else with one modeling file."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

import slim
from slim import modeling, workspace
from slim.architectures import Architecture, architecture_of
from slim.cuts import shape_of
from slim.models import Loaded, pruned_class
from slim.records import Plan

PLAN_FILE = "slim_plan.json"
MODELING_FILE = "modeling_slim.py"


def is_stock(plan: Plan) -> bool:
    """Whether every layer keeps the same shape, and one that transformers' own class accepts.

    Some families' configs refuse a number of heads that does not divide the model's width, or know no other.
    """
    if not plan.removed_heads:
        return True
    architecture = architecture_of(plan.model.model_type)
    shapes = {shape_of(heads, plan.model.group) for heads in plan.keep}
    width = plan.model.shapes[f"{architecture.layers}.0.{architecture.output}.weight"][0]  # (E, H·D)
    return architecture.sets_head_size and len(shapes) == 1 and width % len(plan.keep[0]) == 0


def pruned_config(config: PreTrainedConfig, plan: Plan) -> PreTrainedConfig:
    """The config of the pruned model: per layer where shapes differ, plain where they do not."""
    pruned = copy.deepcopy(config)
    if not plan.removed_heads:
        return pruned
    if is_stock(plan):
        pruned.head_dim = plan.model.head_dim
        pruned.num_attention_heads, pruned.num_key_value_heads = shape_of(plan.keep[0], plan.model.group)
        return pruned
    overrides: dict[int | str, dict[str, Any]] = {}
    for layer, heads in enumerate(plan.keep):
        if not heads:
            overrides[layer] = {"skip": ["attention"]}
        elif len(heads) < plan.model.heads:
            queries, keys = shape_of(heads, plan.model.group)
            overrides[layer] = {"num_attention_heads": queries}
            if hasattr(config, "num_key_value_heads"):
                overrides[layer]["num_key_value_heads"] = keys
    pruned.allow_global_per_layer_attribute_access = True
    pruned.per_layer_config = overrides
    return pruned


def write(output: Path, loaded: Loaded, state: dict[str, Tensor], plan: Plan) -> None:
    """Saves the pruned model to the new folder `output` and makes it known to the workspace."""
    config = pruned_config(loaded.model.config, plan)
    stock = type(loaded.model) if is_stock(plan) else None
    model_class = stock or pruned_class(config)
    with torch.device("meta"):
        model = model_class(config)
    empty = {name: torch.empty(0, dtype=p.dtype) for name, p in model.named_parameters() if not p.numel()}
    model.load_state_dict(state | empty, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise RuntimeError(f"pruning left {missing[0]} without weights")
    model.generation_config = copy.deepcopy(loaded.model.generation_config)
    with workspace.new_folder(output, plan.after.bytes) as folder:
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        if stock is None:
            _name_the_class(folder, type(loaded.model).__name__, loaded.architecture)
        (folder / PLAN_FILE).write_text(plan.model_dump_json(indent=1), encoding="utf-8")
        (folder / "README.md").write_text(model_card(plan), encoding="utf-8")
    workspace.remember(output, "checkpoint")


def _name_the_class(folder: Path, stock: str, architecture: Architecture) -> None:
    """Ships the class that reads `per_layer_config` and points `auto_map` at it."""
    source = Path(modeling.__file__).read_text(encoding="utf-8")
    family = json.dumps(architecture.for_modeling(), indent=4).replace("\n", "\n    ")
    subclass = (
        f"\n\nfrom transformers import {stock}  # noqa: E402\n\n\n"
        f"class Slim{stock}(PerLayerAttentionMixin, {stock}):\n"
        f'    """{stock} with an attention of its own shape in each layer."""\n\n'
        f"    slim_family = {family}\n"
    )
    (folder / MODELING_FILE).write_text(source + subclass, encoding="utf-8")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = [stock]
    config["auto_map"] = {"AutoModelForCausalLM": f"{MODELING_FILE.removesuffix('.py')}.Slim{stock}"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_card(plan: Plan) -> str:
    """The README of a checkpoint: what was done, what it gives, how to load it."""
    stock = is_stock(plan)
    trust = "" if stock else ", trust_remote_code=True"
    total = plan.model.layers * plan.model.heads
    rows = [
        ("Parameters", f"{plan.before.parameters:,}", f"{plan.after.parameters:,}"),
        ("Weights", f"{plan.before.bytes / 1e6:,.1f} MB", f"{plan.after.bytes / 1e6:,.1f} MB"),
        ("KV cache per token", f"{plan.before.kv_bytes_per_token:,} B", f"{plan.after.kv_bytes_per_token:,} B"),
    ]
    table = "\n".join(f"| {name} | {before} | {after} |" for name, before, after in rows)
    loss = ""
    if plan.forecast:
        f = plan.forecast
        loss = (
            f"\nForecast loss when it was planned: {f} "
            f"(KL to the original, on {f.sequences} rows that did not choose the plan).\n"
        )
    weights = ", ".join(f"{name} × {weight:g}" for name, weight in plan.weights.items())
    how = (
        "This is a stock checkpoint: any runtime for the family loads it."
        if stock
        else f"Its layers differ, so the folder carries `{MODELING_FILE}`, a small class on top of transformers' own;\n"
        "without `trust_remote_code=True` the stock class refuses it."
    )
    return f"""---
base_model: {plan.model.source}
library_name: transformers
tags: [pruned, slim]
---
# {plan.model.source}, pruned

{plan.removed_heads} of {total} attention heads were removed,
{len(plan.removed_blocks)} of {plan.model.layers} attention blocks with all of theirs:
everything per {plan.unit} that scores {plan.threshold:g} or more by {weights}.

| | original | this model |
|---|---|---|
{table}
{loss}
## Load it

{how}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH"{trust})
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

The exact recipe is in `{PLAN_FILE}`. Made with Slim {slim.__version__}.
"""
