"""Attention and its entropy in one go, without ever holding a T×T matrix of scores."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention
from torch.nn.functional import logsigmoid, pad, scaled_dot_product_attention

ROWS = 256
"""Query rows at a time under a mask: few enough to leave out the many keys that none of them sees."""
SCORES = 2**22
"""Scores at a time where no fused kernel gives what is needed."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor, Tensor]]
"""(q, k, v, mask, scale) -> attention output (B, H, T, D), its entropy and logsumexp_j s_ij (B, H, T).

Without a mask the last query sees every key, the one before it one key less, and so on.
"""


def attention_with_entropy(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention output (B, H, T, D), its entropy in nats (B, H, T) and the number of visible keys (B, T).

    `q` is (B, H, T, D), `k` and `v` (B, K, N, D). `mask` is boolean (B or 1, 1, T, N), true where a query may look;
    without one the attention is causal and N = T. With `v` the same tensor as `k` the output is the mean key, which the
    entropy is made of, on a CPU at half the cost. The scores are s_ij = scale q_i·k_j, or c tanh(s_ij / c) with
    softcap c. `sinks` (H,) is one more logit per head in the softmax's denominator that belongs to no key.

    The entropy is −Σ_j a_ij ln a_ij over the keys: with a sink their weights a_ij sum to less than 1. It is float64
    where the model is, else float32 whatever the model's dtype: bfloat16's rounding alone costs up to 0.07 nats at a
    position. Positions that see no key give 0. Raises ValueError where N ≠ T without a mask.
    """
    batch, heads, length, _ = q.shape
    attend = _kernel(q)
    step = ROWS if mask is not None else length
    if attend is None or softcap is not None:
        attend = partial(_explicit, softcap=softcap)
        step = max(1, SCORES // (batch * heads * k.shape[2]))
    if mask is None:
        if k.shape[2] != length:
            raise ValueError(f"{length} queries and {k.shape[2]} keys need a mask that says which keys are seen")
        visible = torch.arange(1, length + 1, device=q.device).expand(batch, length)
    else:
        visible = mask.sum(-1)[:, 0].expand(batch, length)

    if mask is None and step >= length:
        out, entropy, lse = attend(q, k, v, None, scale)
    else:
        out = v.new_zeros(batch, length, heads, v.shape[-1]).transpose(1, 2)  # as the output projection reads it
        entropy, lse = torch.zeros(2, batch, heads, length, dtype=_exact(q.dtype), device=q.device)
        for rows, keys in _parts(mask, length, step):
            seen = None if mask is None else mask[:, :, rows, keys]
            key = k[:, :, keys]
            part = attend(q[:, :, rows], key, key if v is k else v[:, :, keys], seen, scale)
            out[:, :, rows], entropy[:, :, rows], lse[:, :, rows] = part
    if sinks is not None:
        odds = lse - sinks.to(lse.dtype)[:, None]  # (B, H, T) of a key against the sink, as a logarithm
        share = odds.sigmoid()
        out, entropy = out * share[..., None].to(out.dtype), share * (entropy - logsigmoid(odds))
    if mask is not None:
        blind = (visible == 0)[:, None]  # (B, 1, T)
        out, entropy = out.masked_fill(blind[..., None], 0), entropy.masked_fill(blind, 0)
    return out, entropy.clamp_min(0), visible


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _parts(mask: Tensor | None, length: int, step: int) -> Iterator[tuple[slice, slice]]:
    """Neighbouring query rows, and the span of keys that they see; rows that see nothing are in no part."""
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        if mask is None:
            yield rows, slice(0, rows.stop)
        else:
            seen = mask[:, :, rows].flatten(0, 2).any(0).nonzero()
            if len(seen):
                yield rows, slice(int(seen[0]), int(seen[-1]) + 1)


def _kernel(q: Tensor) -> Attend | None:
    """The fused kernel for such queries, where there is one."""
    if q.device.type == "cpu":
        return _fused_cpu
    if q.device.type == "cuda" and q.dtype != torch.float64:
        one = q[:, :, :1].float()
        if can_use_efficient_attention(SDPAParams(one, one, one, None, 0.0, False, False)):
            return _fused_cuda
    return None


def _fused_cpu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Two calls of the kernel that torch itself uses; it lets query heads share keys without copying them."""
    dtype, given, same = _exact(q.dtype), q.dtype, v is k
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    attend = partial(
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
        is_causal=mask is None,
        attn_mask=None if mask is None else _bias(mask, dtype),
        scale=scale,
    )
    out, lse = attend(q, k, v)
    mean_key = out if same else attend(q, k, k)[0]
    return out.to(given), _entropy(q, mean_key, lse, scale), lse


def _fused_cuda(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The output as torch makes it in the model's dtype, and a float32 kernel that hands out its logsumexp."""
    groups = q.shape[1] // k.shape[1]
    if mask is not None and groups > 1:  # under a mask torch would fall back to a matrix of all scores
        k, v, groups = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), 1
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=groups > 1
    )
    query, key = q.float(), k.float().repeat_interleave(groups, 1)
    bias = None
    if mask is not None:  # each row of the bias must start at a multiple of 16 bytes
        bias = _bias(pad(mask, (0, -mask.shape[-1] % 16)), torch.float32)[..., : mask.shape[-1]]
        bias = bias.expand(*q.shape[:3], -1)
    mean_key, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, key, bias, compute_log_sumexp=True, is_causal=mask is None, scale=scale
    )
    lse = lse[..., : q.shape[2]]  # it comes padded to a multiple of 32
    return out, _entropy(query, mean_key, lse, scale), lse


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bias of the scores: finite, as kernels differ in their treatment of a row of −inf."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _entropy(q: Tensor, mean_key: Tensor, lse: Tensor, scale: float) -> Tensor:
    """H_i = lse_i − Σ_j a_ij s_ij = lse_i − scale q_i·Σ_j a_ij k_j: attention with k in place of v, no matrix kept."""
    return lse - scale * (q * mean_key).sum(-1)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax written out, the query heads of a group side by side so that keys are not copied."""
    length, total, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    dtype = _exact(q.dtype)
    if mask is None:
        mask = torch.ones(length, total, dtype=torch.bool, device=q.device).tril(total - length)[None, None]
    query = q.to(dtype).unflatten(1, (-1, groups)).flatten(2, 3)  # (B, K, G·T, D)
    scores = scale * query @ k.to(dtype).transpose(-1, -2)  # (B, K, G·T, N)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.unflatten(2, (groups, length)).flatten(1, 2)  # (B, H, T, N)
    scores = scores.masked_fill(~mask, torch.finfo(dtype).min)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp()
    entropy = lse - (weights * scores).sum(-1)
    weights = weights.unflatten(1, (-1, groups)).flatten(2, 3)
    out = (weights @ v.to(dtype)).unflatten(2, (groups, length)).flatten(1, 2)
    return out.to(q.dtype), entropy, lse
