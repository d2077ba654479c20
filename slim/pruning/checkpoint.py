"""Writing a pruned model as a Hugging Face folder: stock where its layers are alike, else with one modeling file."""

import copy
import json
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from slim.core import workspace
from slim.core.errors import InputError
from slim.core.hub import snapshot
from slim.core.run_index import remember
from slim.models import modeling
from slim.models.architectures import Architecture
from slim.models.folder_check import WEIGHTS, read_folder
from slim.models.load import Loaded, load_model, locate, pruned_class
from slim.planning.files import PLAN_FILE, load_plan
from slim.planning.record import Plan
from slim.planning.slicing import MODELING_FILE, is_stock, shape_of
from slim.pruning.history import RECOVERY_FILE, Recovery
from slim.pruning.model_card import model_card, with_recovery

SHARD_BYTES = 5_000_000_000
"""Of weights in one file; more are split over several."""
PER_LAYER_LISTS = ("layer_types", "no_rope_layers")
"""What a config says of each layer, one after the other."""
CARRIED = (".json", ".jinja", ".model", ".txt")
"""Kinds of files that a checkpoint written anew keeps as they are: config, tokenizer, plan. Code never comes along."""


def pruned_config(config: PreTrainedConfig, plan: Plan) -> PreTrainedConfig:
    """The config of the pruned model: per layer where shapes differ, plain where they do not.

    Layers that are gone are not counted any more.
    """
    pruned = copy.deepcopy(config)
    stay = [layer for layer, heads in enumerate(plan.keep) if heads is not None]
    if len(stay) < plan.model.layers:
        pruned.num_hidden_layers = len(stay)
        for name in PER_LAYER_LISTS:
            if listed := getattr(config, name, None):
                setattr(pruned, name, [listed[layer] for layer in stay])
        if (first := getattr(config, "max_window_layers", None)) is not None:
            pruned.max_window_layers = sum(layer < first for layer in stay)
    shapes = [shape_of(plan.keep[layer] or (), plan.model.group) for layer in stay]
    whole = (plan.model.heads, plan.model.kv_heads)
    if set(shapes) == {whole}:
        return pruned
    if is_stock(plan.model, plan.keep):
        pruned.head_dim = plan.model.head_dim
        pruned.num_attention_heads, pruned.num_key_value_heads = shapes[0]
        return pruned
    overrides: dict[int | str, dict[str, Any]] = {}
    for layer, (queries, keys) in enumerate(shapes):
        if not queries:
            overrides[layer] = {"skip": ["attention"]}
        elif (queries, keys) != whole:
            overrides[layer] = {"num_attention_heads": queries}
            if hasattr(config, "num_key_value_heads"):
                overrides[layer]["num_key_value_heads"] = keys
    pruned.allow_global_per_layer_attribute_access = True
    pruned.per_layer_config = overrides
    return pruned


def write(output: Path, loaded: Loaded, state: dict[str, Tensor], plan: Plan, shard_bytes: int = SHARD_BYTES) -> None:
    """Saves the pruned model to the new folder `output` and makes it known to the workspace."""
    config = pruned_config(loaded.model.config, plan)
    stock = type(loaded.model) if is_stock(plan.model, plan.keep) else None
    model_class = stock or pruned_class(config)
    with torch.device("meta"):
        model = model_class(config)
    dtype = next(iter(state.values())).dtype
    empty = {name: torch.empty(0, dtype=dtype) for name, p in model.named_parameters() if not p.numel()}
    model.load_state_dict(state | empty, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise RuntimeError(f"pruning left {missing[0]} without weights")
    model.generation_config = copy.deepcopy(loaded.model.generation_config)
    with workspace.new_folder(output, plan.after.bytes) as folder:
        model.save_pretrained(folder, max_shard_size=shard_bytes)
        loaded.tokenizer.save_pretrained(folder)
        if stock is None:
            _name_the_class(folder, type(loaded.model).__name__, loaded.architecture)
        (folder / PLAN_FILE).write_text(plan.model_dump_json(indent=1), encoding="utf-8")
        (folder / "README.md").write_text(model_card(plan), encoding="utf-8")
    remember(output, "checkpoint")


def rewrite(
    source: str | Path,
    output: Path,
    state: Mapping[str, Tensor],
    recovery: Recovery,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Saves the model `source` again as the new folder `output`, with other weights and what was done to them.

    `state` holds the weights that changed, by their names in the model, in any number format: they are stored in the
    one they had. Raises InputError when `source` is no model or `output` cannot be written.
    """
    place = Path(locate(str(source)))
    folder = place if place.is_dir() else snapshot(str(place))
    stored = read_folder(str(source), folder)
    loaded = load_model(str(source), device="cpu", dtype=str(stored.dtype).removeprefix("torch."))
    found = loaded.model.load_state_dict(dict(state), strict=False)
    if found.unexpected_keys:
        raise RuntimeError(f"{source} has no weights named {found.unexpected_keys[0]}")
    with workspace.new_folder(output, sum(map(prod, stored.shapes.values())) * loaded.facts.itemsize) as partial:
        loaded.model.save_pretrained(partial, max_shard_size=shard_bytes)
        for file in folder.iterdir():
            if file.suffix in CARRIED and file.name != f"{WEIGHTS}.index.json" and file.is_file():
                shutil.copyfile(file, partial / file.name)
        if loaded.model.config.is_heterogeneous:
            stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(loaded.model.config)]
            _name_the_class(partial, stock.__name__, loaded.architecture)
        (partial / RECOVERY_FILE).write_text(recovery.model_dump_json(indent=1), encoding="utf-8")
        (partial / "README.md").write_text(_card_of(folder, recovery), encoding="utf-8")
    remember(output, "checkpoint")


def _card_of(source: Path, recovery: Recovery) -> str:
    """The card of a checkpoint that was made from the one in the folder `source`."""
    if (source / PLAN_FILE).is_file():
        return model_card(load_plan(source / PLAN_FILE), recovery)
    readme = source / "README.md"
    card = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return with_recovery(card, source.name, recovery)


def recipe(folder: Path) -> Plan:
    """The plan that made a checkpoint. Raises InputError where there is none, or not the one of these weights."""
    stored = read_folder(str(folder), Path(locate(str(folder))))
    if not (folder / PLAN_FILE).is_file():
        raise InputError(f"checkpoint {str(folder)!r} has no {PLAN_FILE}: it is none that Slim made.")
    plan = load_plan(folder / PLAN_FILE)
    if sum(map(prod, stored.shapes.values())) != plan.after.parameters:
        raise InputError(f"checkpoint {str(folder)!r}: its {PLAN_FILE} is that of another model: prune again.")
    return plan


def modeling_text(stock: str, architecture: Architecture) -> str:
    """The modeling file of a checkpoint whose layers differ, on top of transformers' class `stock`."""
    source = Path(modeling.__file__).read_text(encoding="utf-8")
    family = json.dumps(architecture.for_modeling(), indent=4).replace("\n", "\n    ")
    return source + (
        f"\n\nfrom transformers import {stock}  # noqa: E402\n\n\n"
        f"class Slim{stock}(PerLayerAttentionMixin, {stock}):\n"
        f'    """{stock} with an attention of its own shape in each layer."""\n\n'
        f"    slim_family = {family}\n"
    )


def auto_map(stock: str) -> dict[str, str]:
    """What the config of such a checkpoint says of its class."""
    return {"AutoModelForCausalLM": f"{MODELING_FILE.removesuffix('.py')}.Slim{stock}"}


def _name_the_class(folder: Path, stock: str, architecture: Architecture) -> None:
    """Ships the class that reads `per_layer_config` and points `auto_map` at it."""
    (folder / MODELING_FILE).write_text(modeling_text(stock, architecture), encoding="utf-8")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = [stock]
    config["auto_map"] = auto_map(stock)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
