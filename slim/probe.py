"""Looks into every attention block of a model, and turns heads down or blocks off, while it is open.

transformers hands the attention function queries, keys and values after their rotation, so ONE function registered
with its `AttentionInterface` serves every family; the residual stream around a block is read by two hooks a layer.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from slim.architectures import Architecture, decoder_layers
from slim.attention import attention_with_entropy

NAME = "slim_probe"
_open: ContextVar["Probe | None"] = ContextVar("open_probe", default=None)


@dataclass
class LayerView:
    """What one attention block did with one batch. Axes: B rows, T tokens, H query heads, D head dim, E model dim."""

    layer: int
    valid: Tensor  # (B, T) real tokens that can see at least one key
    residual: Tensor  # (B, T, E) what the block reads and is added to
    heads: Tensor  # (B, T, H, D) each head's output, before the output projection
    entropy: Tensor  # (B, T, H) nats, float32
    visible: Tensor  # (B, T) keys each position can see
    delta: Tensor  # (B, T, E) what the block adds to the residual


class Observer(Protocol):
    def update(self, view: LayerView) -> None:
        """Takes one block's view into account."""
        ...


class Probe:
    """Context manager. `gates` (B, L, H) multiply the heads' outputs; blocks in `removed` add nothing at all.

    With observers, `valid` (B, T) must be set before each forward; views are made without gradient.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture, observers: Sequence[Observer] = ()) -> None:
        self.model, self.architecture, self.observers = model, architecture, tuple(observers)
        self.gates: Tensor | None = None
        self.valid: Tensor | None = None
        self.removed: frozenset[int] = frozenset()
        self._half: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "Probe":
        self._implementation = self.model.config._attn_implementation or "sdpa"
        self.model.set_attn_implementation(NAME)
        self._token = _open.set(self)
        for index, layer in enumerate(decoder_layers(self.model, self.architecture)):
            attention = attrgetter(self.architecture.attention)(layer)
            self._handles.append(layer.register_forward_pre_hook(self._keep_residual, with_kwargs=True))
            self._handles.append(attention.register_forward_hook(partial(self._after_block, index)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._half.clear()
        _open.reset(self._token)
        self.model.set_attn_implementation(self._implementation)

    def _keep_residual(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.observers:
            self._half["residual"] = args[0] if args else kwargs["hidden_states"]

    def _after_block(self, index: int, block: nn.Module, args: Any, output: Any) -> Any:
        if index in self.removed:
            return (torch.zeros_like(output[0]), *output[1:])
        if self.observers and "entropy" in self._half:
            if self.valid is None:
                raise RuntimeError("Probe.valid must be set before a forward that is observed")
            visible = self._half["visible"]
            view = LayerView(layer=index, delta=output[0], valid=self.valid & (visible > 0), **self._half)
            self._half = {}
            for observer in self.observers:
                observer.update(view)
        return None

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        """The attention of one block, heads gated.  # (B, T, H, D)"""
        if self.observers and not torch.is_grad_enabled():
            out, entropy, visible = attention_with_entropy(q, k, v, mask, options["scaling"])
            out = out.transpose(1, 2).contiguous()  # (B, T, H, D)
            self._half |= {"heads": out, "entropy": entropy.transpose(1, 2), "visible": visible}
        else:
            out, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
        if self.gates is not None:
            out = out * self.gates[:, module.layer_idx, None, :, None].to(out.dtype)
        return out


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    probe = _open.get()
    if probe is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return probe.attend(module, query, key, value, attention_mask, **options), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
