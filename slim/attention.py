"""Attention and its entropy in one go, without ever holding a T×T matrix."""

import torch
from torch import Tensor

CHUNK = 256
"""Query rows at a time where no fused kernel gives what is needed."""


def attention_with_entropy(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention output (B, H, T, D), its entropy in nats (B, H, T) and the number of visible keys (B, T).

    `mask` is boolean (B, 1, T, N), true where a query may look; without one the attention is causal.
    With s_ij = scale q_i·k_j the entropy is H_i = logsumexp_j s_ij − scale q_i·(Σ_j a_ij k_j): the sum is attention
    with k in place of v, so no T×T matrix is kept. Positions that see no key give 0.
    """
    batch, heads, length, _ = q.shape
    groups = heads // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if mask is None:
        visible = torch.arange(1, length + 1, device=q.device).expand(batch, length)
        bias = None
    else:
        mask = mask.expand(batch, 1, length, k.shape[2])
        visible = mask.sum(-1)[:, 0]
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, torch.finfo(q.dtype).min)
    fused = q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)
    attend = _fused_cpu if fused else _in_chunks
    out, lse = attend(q, k, v, bias, scale)
    mean_key, _ = attend(q, k, k, bias, scale)
    entropy = lse - scale * (q.float() * mean_key.float()).sum(-1)
    seen = (visible > 0)[:, None]  # (B, 1, T)
    return torch.where(seen[..., None], out, 0), torch.where(seen, entropy.clamp_min(0), 0), visible


def _fused_cpu(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, bias is None, attn_mask=bias, scale=scale
    )


def _in_chunks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The same in float32 on any device, a few query rows at a time so that memory does not grow with T²."""
    out, lse = torch.empty_like(q), torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    keys = torch.arange(k.shape[2], device=q.device)
    for start in range(0, q.shape[2], CHUNK):
        rows = slice(start, start + CHUNK)
        scores = scale * q[:, :, rows].float() @ k.float().transpose(-1, -2)  # (B, H, chunk, N)
        if bias is None:
            scores = scores.masked_fill(keys > keys[rows][:, None], -torch.inf)
        else:
            scores = scores + bias[:, :, rows].float()
        lse[:, :, rows] = scores.logsumexp(-1)
        out[:, :, rows] = (scores.softmax(-1) @ v.float()).to(q.dtype)
    return out, lse
