"""Attention heads removed by torch-pruning, for benchmarks/recovery.py: its graph, its importance, its global ranking.

Set up as its example for language models is: whole heads, by the norm of all weights that go with them, key and value
heads left alone under grouped queries. Unlike there, MLPs and the model's width stay as they are, and all layers are
ranked together: in each layer alone it takes 3, 6 or no heads of this model's 9, the same everywhere.

Two things of version 1.6.1 are mended here, else it takes no head of this model by a global ranking. It counts key
heads where it means query heads, so that any ratio removes two thirds at least. And where a layer would be left with as
many query heads as key heads, it no longer knows that these are shared, cuts keys and values too, and gives up.
"""

import copy
import warnings
from dataclasses import replace
from typing import Any

import torch
import torch_pruning
from torch import nn

from slim.models import bundled
from slim.models.architectures import decoder_layers
from slim.models.load import Loaded, load_model

TRIES = 7
"""Halvings of the interval in which the ratio for torch-pruning is looked for."""


def pruned(share: float) -> tuple[Loaded, int]:
    """The bundled model without about a `share` of its query heads, 0..1, and how many are gone.

    torch-pruning takes equally many heads from every KV group of a layer, rounded up, so it removes more than the ratio
    it is asked for: the ratio is chosen so that what is removed is nearest to the share.
    """
    original = load_model(bundled.NAME)
    total = original.facts.layers * original.facts.heads
    low, high = 0.0, share
    best = (share * total, original, 0)
    for _ in range(TRIES):
        ratio = (low + high) / 2
        found, gone = at_ratio(original, ratio)
        if abs(gone - share * total) < best[0]:
            best = (abs(gone - share * total), found, gone)
        if gone == share * total:
            break
        if gone < share * total:
            low = ratio
        else:
            high = ratio
    return best[1], best[2]


def at_ratio(original: Loaded, ratio: float) -> tuple[Loaded, int]:
    """A copy of the model that torch-pruning pruned to that ratio of heads, and how many heads it removed."""
    model = copy.deepcopy(original.model)
    layers: Any = decoder_layers(model, original.architecture)
    heads: dict[nn.Module, int] = {}
    for layer in layers:
        heads[layer.self_attn.q_proj] = original.facts.heads
        heads[layer.self_attn.k_proj] = heads[layer.self_attn.v_proj] = original.facts.kv_heads
    model.requires_grad_(True)  # its graph is read off autograd
    model.set_attn_implementation("eager")  # a fused kernel hides from it which key head a query head reads
    warnings.filterwarnings("ignore", "Unwrapped parameters", UserWarning)  # the norms', whose width stays
    pruner = torch_pruning.pruner.BasePruner(
        model,
        torch.arange(8)[None],
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        global_pruning=True,
        pruning_ratio=0.5,  # of head dimensions, which are excluded below: with 0 it would not look at heads
        ignored_layers=[model.get_input_embeddings(), model.lm_head, *(layer.mlp for layer in layers)],
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
        forward_fn=lambda model, ids: model(ids, use_cache=False).logits,
    )
    pruner.initial_total_heads = original.facts.layers * original.facts.heads
    pruner.DG.check_pruning_group = lambda group: True  # it looks at keys and values, which are left out below
    shared = {module for module, count in heads.items() if count == original.facts.kv_heads}
    width = original.facts.heads * original.facts.head_dim
    groups: Any = pruner.step(interactive=True)
    for group in groups:
        if len(group[0].idxs) < width:
            for place, (dependency, _) in enumerate(group):
                if dependency.target.module in shared:
                    group[place] = (dependency, [])
            group.prune()
    stay = 0
    for layer in layers:
        attention = layer.self_attn
        queries, keys = (
            projection.out_features // original.facts.head_dim for projection in (attention.q_proj, attention.k_proj)
        )
        attention.num_key_value_groups = queries // keys
        stay += queries
    model.requires_grad_(False).eval()
    model.set_attn_implementation(original.architecture.implementation)
    facts = original.facts.model_copy(update={"fingerprint": ""})
    return replace(original, model=model, facts=facts), original.facts.layers * original.facts.heads - stay
