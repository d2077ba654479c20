"""Records the statistics of every attention block of a model, and gates heads and blocks, while it is open.

transformers hands the attention function queries, keys and values after their rotation, so ONE function registered
with its `AttentionInterface` serves every family; what flows around a block is read and scaled by hooks.
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

from slim.core.errors import InputError
from slim.models.architectures import Architecture, decoder_layers, residual_multiplier
from slim.models.attention import attention_with_entropy
from slim.models.modeling import RemovedAttention
from slim.models.stored_layers import runs_again
from slim.models.units import BLOCK, MLP

NAME = "slim"
_open: ContextVar["Probe | None"] = ContextVar("open_probe", default=None)


@dataclass
class LayerView:
    """Tensors of one attention block in one batch. Axes: B rows, T tokens, H query heads, D head dim, E model dim."""

    layer: int
    valid: Tensor  # (B, T) real tokens that can see at least one key
    residual: Tensor  # (B, T, E) what the block reads and is added to
    heads: Tensor  # (B, T, H, D) each head's output, before the output projection
    entropy: Tensor  # (B, T, H) nats, float32
    visible: Tensor  # (B, T) keys each position can see
    delta: Tensor  # (B, T, E) what the block adds to the residual, after its post-norm and multiplier


class Observer(Protocol):
    def update(self, view: LayerView) -> None:
        """Takes one block's view into account."""
        ...


class Probe:
    """Context manager. `gates` (B, L, H+2), one for each column of a layer (slim.models.units), multiply the heads'
    outputs, and what the attention block and the MLP really add to the residual stream, so 0 adds nothing at all.

    They are differentiable and may differ from token to token, as (B, T, L, H+2); one row serves every row of a batch.
    With observers, `valid` (B, T) must be set before each forward. Views have no gradient; the forward itself may have.

    A forward raises InputError when the model computes attention without asking transformers' attention interface.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture, observers: Sequence[Observer] = ()) -> None:
        self.model, self.architecture, self.observers = model, architecture, tuple(observers)
        self.gates: Tensor | None = None
        self.valid: Tensor | None = None
        self._multiplier = residual_multiplier(model, architecture)
        self._asked = False
        self._rows = 0
        self._half: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self.attentions: set[nn.Module] = set()

    def __enter__(self) -> "Probe":
        self._implementation = self.model.config._attn_implementation or self.architecture.implementation
        self.model.set_attn_implementation(NAME)
        self._token = _open.set(self)
        for index, layer in enumerate(decoder_layers(self.model, self.architecture)):
            attention, attention_adds, mlp_adds = (
                attrgetter(path)(layer)
                for path in (self.architecture.attention, self.architecture.attention_adds, self.architecture.mlp_adds)
            )
            if not isinstance(attention, RemovedAttention):
                self.attentions.add(attention)
                self._handles.append(attention.register_forward_hook(self._check_asked))
            self._handles += [
                layer.register_forward_pre_hook(self._keep_residual, with_kwargs=True),
                attention_adds.register_forward_hook(partial(self._after_attention, index)),
                mlp_adds.register_forward_hook(partial(self._scaled, index, MLP)),
            ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.attentions.clear()
        self._half.clear()
        _open.reset(self._token)
        self.model.set_attn_implementation(self._implementation)

    @property
    def _watching(self) -> bool:
        return bool(self.observers) and not runs_again()

    def _keep_residual(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        residual = args[0] if args else kwargs["hidden_states"]
        self._rows, self._asked, self._half = len(residual), False, {}
        if self._watching:
            self._half["residual"] = residual

    def _check_asked(self, attention: nn.Module, args: Any, output: Any) -> None:
        if not self._asked:
            raise InputError(
                f"model type {self.model.config.model_type!r} cannot be measured: its {type(attention).__name__} does "
                "not go through transformers' attention interface. Choose a model of another family."
            )

    def _after_attention(self, index: int, module: nn.Module, args: Any, output: Any) -> Any:
        added = output[0] if isinstance(output, tuple) else output
        if self._watching and "entropy" in self._half:
            if self.valid is None:
                raise RuntimeError("Probe.valid must be set before a forward that is observed")
            valid = self.valid.to(added.device) & (self._half["visible"] > 0)
            view = LayerView(layer=index, delta=added * self._multiplier, valid=valid, **self._half)
            self._half = {}
            with torch.no_grad(), _as_they_are(added):
                for observer in self.observers:
                    observer.update(view)
        return self._scaled(index, BLOCK, module, args, output)

    def _scaled(self, index: int, column: int, module: nn.Module, args: Any, output: Any) -> Any:
        if self.gates is None:
            return None
        added = output[0] if isinstance(output, tuple) else output
        factor = _over_tokens(self.gates, index)[..., column, None].to(added)
        by_row = added.reshape(self._rows, -1, added.shape[-1])  # some MLPs see all rows as one
        return _replaced(output, (by_row * factor).reshape(added.shape))

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        """The attention of one block, heads gated.  # (B, T, H, D)"""
        self._asked = True
        learning = torch.is_grad_enabled()
        if self._watching:
            out, entropy, visible = _with_entropy(q, k, k if learning else v, mask, options)
            out = _unseen(module, q, k, v, mask, **options) if learning else out
            self._half |= {"heads": out.detach(), "entropy": entropy.transpose(1, 2), "visible": visible}
        else:
            out = _unseen(module, q, k, v, mask, **options)
        if self.gates is not None:
            out = out * _over_tokens(self.gates, module.layer_idx)[..., :BLOCK, None].to(out)
        return out


def _as_they_are(tensor: Tensor) -> torch.autocast:
    """Return a context in which operations keep the number format of their inputs."""
    return torch.autocast(tensor.device.type, enabled=False)


@torch.no_grad()
def _with_entropy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Attention (B, T, H, D), its entropy (B, H, T) and the visible keys (B, T), without gradient."""
    with _as_they_are(q):
        out, entropy, visible = attention_with_entropy(
            q, k, v, mask, options["scaling"], softcap=options.get("softcap"), sinks=options.get("s_aux")
        )
    return out.transpose(1, 2).contiguous(), entropy, visible


def _unseen(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    """Attention and nothing else, differentiable, in full precision where no fused kernel knows it.  # (B, T, H, D)"""
    softcap, sinks = options.get("softcap"), options.get("s_aux")
    if softcap is None and sinks is None:
        return sdpa_attention_forward(module, q, k, v, mask, **options)[0]
    if mask is None and q.shape[2] > 1:  # a cache of fixed size may hold room for more keys than there are
        k, v = k[:, :, : q.shape[2]], v[:, :, : q.shape[2]]
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    dtype = torch.promote_types(q.dtype, torch.float32)
    k, v = (tensor.to(dtype).repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    with _as_they_are(q):
        scores = options["scaling"] * q.to(dtype) @ k.transpose(-1, -2)  # (B, H, T, N)
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(dtype).min)
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(dtype)[:, None, None].expand(*scores.shape[:3], 1)], -1)
        weights = scores.softmax(-1)[..., : k.shape[2]]
        return (weights @ v).to(q.dtype).transpose(1, 2).contiguous()


def _over_tokens(factors: Tensor, layer: int) -> Tensor:
    """One layer's share of what may differ from token to token.  # (B, T or 1, ·)"""
    return factors[:, None, layer] if factors.dim() == 3 else factors[:, :, layer]


def _replaced(output: Any, added: Tensor) -> Any:
    return (added, *output[1:]) if isinstance(output, tuple) else added


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    probe = _open.get()
    attend = probe.attend if probe and module in probe.attentions else _unseen
    return attend(module, query, key, value, attention_mask, **options), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
