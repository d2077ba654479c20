"""The measurements computed the long way: explicit softmax, every write, every ablation, no batching."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from slim.calibration.calibrate import measure
from slim.calibration.facts import CalibrationSettings
from slim.calibration.record import Calibration
from slim.data.tasks import Encoded, Example, Task
from slim.models.load import Loaded

TASK = Task("rows made here", None, "train", "text", (Example("", "unused"),))


def measured(loaded: Loaded, rows: Sequence[Tensor], padding_side: str = "right", **settings: Any) -> Calibration:
    """`slim.calibration.calibrate.measure` on ready rows."""
    chosen = CalibrationSettings.model_validate({"batch_size": 2, "draws": 1} | settings)
    return measure(loaded, Encoded(tuple(rows), 0), TASK, chosen, padding_side=padding_side)


class Places(NamedTuple):
    """Where a family keeps what the reference watches; paths are relative to the base model and to a layer."""

    layers: str = "layers"
    attention: str = "self_attn"
    output: str = "self_attn.o_proj"
    after_attention: str = "self_attn"
    after_mlp: str = "mlp"


_POST_NORMS = Places(after_attention="post_attention_layernorm", after_mlp="post_feedforward_layernorm")
PLACES = {
    "gemma2": _POST_NORMS,
    "gemma3_text": _POST_NORMS,
    "olmo2": _POST_NORMS,
    "gpt2": Places("h", "attn", "attn.c_proj", "attn"),
    "gpt_neox": Places("layers", "attention", "attention.dense", "attention"),
    "opt": Places("decoder.layers", output="self_attn.out_proj", after_mlp="fc2"),
}


def places_of(model: PreTrainedModel) -> Places:
    """The family's places; most keep everything where llama does."""
    return PLACES.get(model.config.model_type, Places())


def layers_of(model: PreTrainedModel) -> Any:
    """The decoder layers."""
    return model.base_model.get_submodule(places_of(model).layers)


def output_weight(model: PreTrainedModel, layer: Any) -> Tensor:
    """The layer's output projection as what is written per head output, granite's multiplier included.  # (E, H·D)"""
    weight = layer.get_submodule(places_of(model).output).weight.double()
    if model.config.model_type == "gpt2":
        weight = weight.T
    return weight * getattr(model.config, "residual_multiplier", 1.0)


def window_of(model: PreTrainedModel, index: int) -> int | None:
    """How many keys a position of this layer can see at most."""
    config = model.config
    if config.model_type == "smollm3":
        return None if config.no_rope_layers[index] else config.sliding_window
    if config.model_type in ("gemma2", "gemma3_text"):
        return config.sliding_window if index % 2 == 0 else None
    return getattr(config, "sliding_window", None)


@contextmanager
def scaled_blocks(model: PreTrainedModel, scales: Tensor) -> Iterator[None]:
    """Scale what the attention and the MLP of each layer add to the residual stream by `scales` (L, 2)."""
    places = places_of(model)
    with ExitStack() as stack:
        for layer, row in zip(layers_of(model), scales, strict=True):
            for path, scale in zip((places.after_attention, places.after_mlp), row, strict=True):

                def scaled(module: Any, args: Any, output: Any, scale: Tensor = scale) -> Any:
                    return (output[0] * scale, *output[1:]) if isinstance(output, tuple) else output * scale

                stack.callback(layer.get_submodule(path).register_forward_hook(scaled).remove)
        yield


@contextmanager
def without_blocks(model: PreTrainedModel, blocks: Sequence[int]) -> Iterator[None]:
    """These layers hand their input on past the attention block as if it wrote nothing."""
    scales = torch.ones(len(layers_of(model)), 2, dtype=model.dtype)
    scales[list(blocks), 0] = 0
    with scaled_blocks(model, scales):
        yield


@contextmanager
def gated(model: PreTrainedModel, gates: Tensor, head_dim: int) -> Iterator[None]:
    """Every head's slice of the output projection's input times its gate (L, [T,] H)."""
    with ExitStack() as stack:
        for layer, row in zip(layers_of(model), gates, strict=True):

            def scale(module: Any, args: tuple[Tensor], row: Tensor = row) -> tuple[Tensor]:
                return (args[0] * row.repeat_interleave(head_dim, -1).to(args[0].dtype),)

            projection = layer.get_submodule(places_of(model).output)
            stack.callback(projection.register_forward_pre_hook(scale).remove)
        yield


@contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    """The model with the softmax written out, as transformers does it."""
    was: Any = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(was)


@dataclass
class Seen:
    """One row as the model sees it, per layer, in float64."""

    attention: list[Tensor]  # (H, T, T)
    heads: list[Tensor]  # (T, H, D)
    residual: list[Tensor]  # (T, E)
    delta: list[Tensor]  # (T, E)


@torch.no_grad()
def see(loaded: Loaded, row: Tensor) -> Seen:
    """A plain eager forward of one row without padding, watched from outside.

    An attention block adds what its layer adds to its input when the MLP adds nothing.
    """
    model, places, seen = loaded.model, places_of(loaded.model), Seen([], [], [], [])
    calls: list[tuple[Any, Any, Any]] = []
    with ExitStack() as stack:
        for layer in layers_of(model):

            def before(module: Any, args: Any, kwargs: Any) -> None:
                calls.append((module, args, kwargs))
                seen.residual.append((args[0] if args else kwargs["hidden_states"])[0].double())

            def projected(module: Any, args: Any) -> None:
                seen.heads.append(args[0][0].double().unflatten(-1, (-1, loaded.facts.head_dim)))

            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.get_submodule(places.output).register_forward_pre_hook(projected).remove)
        stack.enter_context(eager(model))
        attentions = model(row[None], use_cache=False, output_attentions=True).attentions
        heads, scales = list(seen.heads), torch.ones(len(calls), 2, dtype=model.dtype)
        scales[:, 1] = 0
        with scaled_blocks(model, scales):
            for (layer, args, kwargs), residual in zip(calls, seen.residual, strict=True):
                seen.delta.append(layer.forward(*args, **kwargs)[0].double() - residual)
    seen.heads, seen.attention = heads, [attention[0].double() for attention in attentions]
    return seen


def attention_figures(loaded: Loaded, rows: Sequence[Tensor]) -> dict[str, NDArray[Any]]:
    """entropy, entropy_norm and kl_uniform per head (L, H), from the attention maps and windows counted by hand."""
    sums: dict[str, list[Tensor]] = {"entropy": [], "entropy_norm": [], "kl_uniform": []}
    windows = [window_of(loaded.model, index) for index in range(loaded.facts.layers)]
    for row in rows:
        maps = torch.stack(see(loaded, row).attention)  # (L, H, T, T)
        entropy = -torch.xlogy(maps, maps).sum(-1)  # (L, H, T)
        places = torch.arange(1, len(row) + 1, dtype=torch.float64)
        seen = torch.stack([places.clamp_max(window or len(row)) for window in windows])[:, None]  # (L, 1, T)
        assert torch.equal((maps > 0).sum(-1), seen.expand_as(entropy).long())
        sums["entropy"].append(entropy)
        sums["kl_uniform"].append(seen.log() - entropy)
        sums["entropy_norm"].append((entropy / seen.log())[..., 1:])
    return {name: torch.cat(parts, -1).mean(-1).numpy() for name, parts in sums.items()}


def variance(loaded: Loaded, rows: Sequence[Tensor], size: int) -> NDArray[Any]:
    """Variance of the write of `size` neighbouring heads over the residual's median squared norm.  # (L, H / size)"""
    seen = [see(loaded, row) for row in rows]
    figures = []
    for index, layer in enumerate(layers_of(loaded.model)):
        heads = torch.cat([row.heads[index] for row in seen])  # (N, H, D)
        slices = output_weight(loaded.model, layer).unflatten(1, heads.shape[1:])  # (E, H, D)
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


def exact_fisher(loaded: Loaded, row: Tensor, blocks: bool = False) -> NDArray[Any]:
    """Σ_t Σ_v p(v) ∇ln p(v) ∇ln p(v)ᵀ with respect to the heads' gates, from the full Jacobian.  # (L·H, L·H)

    With `blocks`, each layer's heads are followed by its attention block and its MLP.  # (L·(H+2), L·(H+2))
    """
    facts = loaded.facts
    ones = torch.ones(facts.layers, facts.heads + (2 if blocks else 0), dtype=torch.float64)

    def predict(factors: Tensor) -> Tensor:
        gates, scales = factors.split([facts.heads, factors.shape[1] - facts.heads], dim=1)
        with ExitStack() as stack:
            stack.enter_context(gated(loaded.model, gates, facts.head_dim))
            if blocks:
                stack.enter_context(scaled_blocks(loaded.model, scales))
            return loaded.model(row[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)

    jacobian = torch.autograd.functional.jacobian(predict, ones).flatten(2)  # (T-1, V, columns)
    p = log_probabilities(loaded, row).exp()
    return torch.einsum("tv,tva,tvb->ab", p, jacobian, jacobian).numpy()
