"""What the measurements should be, the long way: explicit softmax, every write, every ablation, no batching."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from slim.calibrate import Calibration, measure
from slim.models import Loaded
from slim.records import Settings
from slim.tasks import Encoded, Example, Task

TASK = Task("rows made here", None, "train", "text", (Example("", "unused"),))


def measured(loaded: Loaded, rows: Sequence[Tensor], padding_side: str = "right", **settings: Any) -> Calibration:
    """`slim.calibrate.measure` on ready rows."""
    chosen = Settings.model_validate({"batch_size": 2, "draws": 1} | settings)
    return measure(loaded, Encoded(tuple(rows), 0), TASK, chosen, padding_side=padding_side)


def layers_of(model: PreTrainedModel) -> Any:
    """The decoder layers."""
    return model.base_model.layers


@contextmanager
def without_blocks(model: PreTrainedModel, blocks: Sequence[int]) -> Iterator[None]:
    """These layers hand their input on past the attention block as if it wrote nothing."""
    with ExitStack() as stack:
        for block in blocks:
            hook = layers_of(model)[block].self_attn.register_forward_hook(_write_nothing)
            stack.callback(hook.remove)
        yield


def _write_nothing(block: Any, args: Any, output: Any) -> Any:
    return (output[0] * 0, *output[1:])


@contextmanager
def gated(model: PreTrainedModel, gates: Tensor, head_dim: int) -> Iterator[None]:
    """Every head's slice of the output projection's input times its gate (L, H)."""
    with ExitStack() as stack:
        for layer, row in zip(layers_of(model), gates, strict=True):

            def scale(module: Any, args: tuple[Tensor], row: Tensor = row) -> tuple[Tensor]:
                return (args[0] * row.repeat_interleave(head_dim).to(args[0].dtype),)

            stack.callback(layer.self_attn.o_proj.register_forward_pre_hook(scale).remove)
        yield


@dataclass
class Seen:
    """One row as the model sees it, per layer, in float64."""

    attention: list[Tensor]  # (H, T, T)
    heads: list[Tensor]  # (T, H, D)
    residual: list[Tensor]  # (T, E)
    delta: list[Tensor]  # (T, E)


@torch.no_grad()
def see(loaded: Loaded, row: Tensor) -> Seen:
    """A plain eager forward of one row without padding, watched from outside."""
    model, seen = loaded.model, Seen([], [], [], [])
    with ExitStack() as stack:
        for layer in layers_of(model):

            def before(module: Any, args: Any, kwargs: Any) -> None:
                seen.residual.append((args[0] if args else kwargs["hidden_states"])[0].double())

            def projected(module: Any, args: Any) -> None:
                seen.heads.append(args[0][0].double().unflatten(-1, (-1, loaded.facts.head_dim)))

            def after(module: Any, args: Any, output: Any) -> None:
                seen.delta.append(output[0][0].double())

            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.self_attn.o_proj.register_forward_pre_hook(projected).remove)
            stack.callback(layer.self_attn.register_forward_hook(after).remove)
        model.set_attn_implementation("eager")
        stack.callback(model.set_attn_implementation, "sdpa")
        attentions = model(row[None], use_cache=False, output_attentions=True).attentions
    seen.attention = [attention[0].double() for attention in attentions]
    return seen


def attention_figures(loaded: Loaded, rows: Sequence[Tensor], window: int | None = None) -> dict[str, NDArray[Any]]:
    """entropy, entropy_norm and kl_uniform per head (L, H), from the attention maps."""
    sums: dict[str, list[Tensor]] = {"entropy": [], "entropy_norm": [], "kl_uniform": []}
    for row in rows:
        maps = torch.stack(see(loaded, row).attention)  # (L, H, T, T)
        entropy = -torch.xlogy(maps, maps).sum(-1)  # (L, H, T)
        seen = torch.arange(1, len(row) + 1, dtype=torch.float64).clamp_max(window or len(row))
        sums["entropy"].append(entropy)
        sums["kl_uniform"].append(seen.log() - entropy)
        sums["entropy_norm"].append(entropy[..., seen >= 2] / seen[seen >= 2].log())
    return {name: torch.cat(parts, -1).mean(-1).numpy() for name, parts in sums.items()}


def variance(loaded: Loaded, rows: Sequence[Tensor], size: int) -> NDArray[Any]:
    """Variance of the write of `size` neighbouring heads over the residual's median squared norm.  # (L, H / size)"""
    seen = [see(loaded, row) for row in rows]
    figures = []
    for index, layer in enumerate(layers_of(loaded.model)):
        heads = torch.cat([row.heads[index] for row in seen])  # (N, H, D)
        slices = layer.self_attn.o_proj.weight.double().unflatten(1, heads.shape[1:])  # (E, H, D)
        writes = torch.einsum("nhd,ehd->nhe", heads, slices)  # (N, H, E)
        joint = writes.unflatten(1, (-1, size)).sum(2)  # (N, units, E)
        spread = joint.var(0, unbiased=False).sum(-1)
        norms = torch.cat([row.residual[index] for row in seen]).square().sum(-1)
        figures.append(spread.numpy() / np.median(norms.numpy()))
    return np.stack(figures)


def block_influence(loaded: Loaded, rows: Sequence[Tensor]) -> NDArray[Any]:
    """1 − cos between the residual before and after each attention block.  # (L,)"""
    seen = [see(loaded, row) for row in rows]
    figures = []
    for index in range(loaded.facts.layers):
        before = torch.cat([row.residual[index] for row in seen])
        after = before + torch.cat([row.delta[index] for row in seen])
        cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        figures.append(float((1 - cosine).mean()))
    return np.array(figures)


@torch.no_grad()
def log_probabilities(loaded: Loaded, row: Tensor) -> Tensor:
    """ln p at every position that predicts a token of the row.  # (T-1, V)"""
    return loaded.model(row[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)


def kl_sum(full: Tensor, other: Tensor) -> float:
    """Σ over positions of KL(full ‖ other) from log-probabilities."""
    return float((full.exp() * (full - other)).sum())


def block_kl(loaded: Loaded, rows: Sequence[Tensor]) -> NDArray[Any]:
    """KL in nats/token of the whole model without each block in turn.  # (L,)"""
    costs = np.zeros(loaded.facts.layers)
    for row in rows:
        full = log_probabilities(loaded, row)
        for block in range(loaded.facts.layers):
            with without_blocks(loaded.model, [block]):
                costs[block] += kl_sum(full, log_probabilities(loaded, row))
    return costs / sum(len(row) - 1 for row in rows)


def exact_fisher(loaded: Loaded, row: Tensor) -> NDArray[Any]:
    """Σ_t Σ_v p(v) ∇ln p(v) ∇ln p(v)ᵀ with respect to the heads' gates, from the full Jacobian.  # (L·H, L·H)"""
    facts = loaded.facts
    gates = torch.ones(facts.layers, facts.heads, dtype=torch.float64)

    def predict(gates: Tensor) -> Tensor:
        with gated(loaded.model, gates, facts.head_dim):
            return loaded.model(row[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)

    jacobian = torch.autograd.functional.jacobian(predict, gates).flatten(2)  # (T-1, V, L·H)
    p = log_probabilities(loaded, row).exp()
    return torch.einsum("tv,tva,tvb->ab", p, jacobian, jacobian).numpy()
