"""Surgery: remove weights of a model in memory. The pruned model shares whole tensors with its original."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import dispatch_model
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.models.architectures import Architecture
from slim.models.load import Loaded, model_facts, pruned_class, resolve_dtype
from slim.models.units import ALL, Keep, head_counts
from slim.planning.record import Plan
from slim.planning.slicing import Slice, is_stock, renumbered, slice_of

PER_LAYER_LISTS = ("layer_types", "no_rope_layers")
"""Entries of a config that hold a list with one item per layer."""


def cut(original: Loaded, plan: Plan) -> Loaded:
    """Return the pruned model, ready to run, on the devices of `original`, which stays as it is.

    Raises InputError for a plan that was made for another model, or that removes MLP channels.
    """
    check_same(plan, original)
    check_channels(plan.keep)
    architecture, facts, model = original.architecture, original.facts, original.model
    config = pruned_config(model.config, plan)
    pruned = assembled(
        type(model) if is_stock(plan.model, plan.keep) else pruned_class(config),
        config,
        pruned_state(model, architecture, facts, plan.keep),
        {renumbered(name, architecture, plan.keep): buffer for name, buffer in model.named_buffers()},
    )
    pruned.generation_config = copy.deepcopy(model.generation_config)
    _spread_like(original, pruned, plan.keep)
    formats = {
        renumbered(name, architecture, plan.keep): resolve_dtype(own)
        for name, own in facts.formats.items()
        if slice_of(name, architecture, facts, plan.keep) != "none"
    }
    stored = model_facts(pruned, facts.source, "", resolve_dtype(facts.dtype), formats)
    return Loaded(pruned, original.tokenizer, stored)


def assembled(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
) -> Any:
    """Return a model made of these very tensors, which are not copied."""
    with torch.device("meta"):
        model: Any = model_class(config)
    like = next(iter(state.values()))
    empty = {name: like.new_empty(0) for name, parameter in model.named_parameters() if not parameter.numel()}
    model.load_state_dict({**state, **empty}, strict=False, assign=True)
    model.tie_weights()
    for name, _ in list(model.named_buffers()):
        put(model, name, buffers[name])
    if missing := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise RuntimeError(f"pruning left {missing[0]} without weights")
    return model.requires_grad_(False).eval()


def put(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    """Let a parameter or buffer of a model be this very tensor; models that share the one it was keep that."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, tensor)


def pruned_config(config: PreTrainedConfig, plan: Plan) -> PreTrainedConfig:
    """Return the config of the pruned model: per layer where shapes differ, plain where they do not.

    Removed layers are no longer counted.
    """
    pruned = copy.deepcopy(config)
    stay = [layer for layer, kept in enumerate(plan.keep) if kept.layer]
    if len(stay) < plan.model.layers:
        pruned.num_hidden_layers = len(stay)
        for name in PER_LAYER_LISTS:
            if listed := getattr(config, name, None):
                setattr(pruned, name, [listed[layer] for layer in stay])
        if (first := getattr(config, "max_window_layers", None)) is not None:
            pruned.max_window_layers = sum(layer < first for layer in stay)
    shapes = [head_counts(plan.keep[layer], plan.model.group) for layer in stay]
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


def _spread_like(original: Loaded, pruned: PreTrainedModel, keep: Keep) -> None:
    """Run each layer where its weights are, where the original is spread over several devices."""
    places = getattr(original.model, "hf_device_map", {})
    if len(set(places.values())) < 2:
        return
    layers = f"{original.architecture.layers}."
    gone = {f"{layers}{layer}" for layer, kept in enumerate(keep) if not kept.layer}
    moved = {
        renumbered(f"{name}.", original.architecture, keep).removesuffix("."): device
        for name, device in places.items()
        if ".".join(name.split(".")[: layers.count(".") + 1]) not in gone
    }
    dispatch_model(pruned, moved)


def check_channels(keep: Keep) -> None:
    """Raise InputError for a plan that removes MLP channels, which surgery cannot do yet."""
    for layer, kept in enumerate(keep):
        if kept.channels != ALL:
            raise InputError(
                f"keep[{layer}].channels=…: MLP channels cannot be removed yet; plan heads, groups, blocks or layers."
            )


def check_same(plan: Plan, loaded: Loaded) -> None:
    """Raise InputError where the plan was not made for `loaded`."""
    planned, found = plan.model, loaded.facts
    if found.fingerprint != planned.fingerprint:
        raise InputError(
            f"plan: it was made for {planned.source!r} with fingerprint {planned.fingerprint[:12]}, "
            f"and that model is now {found.fingerprint[:12]}; calibrate and plan again."
        )
    if loaded.model.config.is_heterogeneous:
        raise InputError(f"plan: {planned.source!r} is pruned already, its layers differ; plan for its original.")
    for name in ("model_type", "layers", "heads", "kv_heads", "head_dim", "dtype", "itemsize", "shapes"):
        if getattr(found, name) != getattr(planned, name):
            said = "" if name == "shapes" else f"={getattr(planned, name)!r}, where it is {getattr(found, name)!r}"
            raise InputError(
                f"plan: it does not describe {planned.source!r}: {name}{said}; make it again with `slim plan`."
            )


def pruned_state(
    model: PreTrainedModel, architecture: Architecture, facts: ModelFacts, keep: Keep
) -> dict[str, Tensor]:
    """Return the parameters that remain, by their names in the pruned model; those that stay whole are not copied."""
    state = {}
    for name, parameter in model.named_parameters():
        cut, new = slice_of(name, architecture, facts, keep), renumbered(name, architecture, keep)
        if isinstance(cut, Slice):
            entries = torch.tensor(cut.entries, device=parameter.device)
            state[new] = parameter.detach().index_select(cut.dim, entries)
        elif cut == "all":
            state[new] = parameter.detach()
    if architecture.divided_by_layer and getattr(model.config, architecture.divided_by_layer):
        _keep_scores(state, architecture, facts, keep)
    return state


def _keep_scores(state: dict[str, Tensor], architecture: Architecture, facts: ModelFacts, keep: Keep) -> None:
    """Scale queries by the new number of their layer, where a family divides attention scores by that number."""
    stay = [(layer, kept.heads) for layer, kept in enumerate(keep) if kept.layer]
    for new, (layer, heads) in enumerate(stay):
        for module, parts in architecture.projections.items():
            for kind, dim in (("weight", -1 if architecture.transposed else 0), ("bias", 0)):
                name = f"{architecture.layers}.{new}.{module}.{kind}"
                if new != layer and name in state and parts[0] == "q":
                    state[name] = state[name].clone()
                    queries = state[name].narrow(dim, 0, len(heads) * facts.head_dim)
                    scaled = queries * ((new + 1) / (layer + 1))
                    stored = resolve_dtype(facts.format_of(f"{architecture.layers}.{layer}.{module}.{kind}"))
                    queries.copy_(scaled.to(stored))  # rounded as saved, so that figures are those of the checkpoint
