"""The probe: attention with its entropy on every path and mask, and what counts as a position."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slim import attention, probe
from slim.attention import attention_with_entropy
from slim.models import Loaded
from slim.probe import Probe
from slim.tasks import Batch
from tests.pico import random_rows

Pico = Callable[..., Loaded]


def explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention and its entropy in float64; positions that see nothing give 0."""
    k, v = (tensor.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    scores = (scale * q.double() @ k.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0)
    return weights @ v, -torch.xlogy(weights, weights).sum(-1)


def masks(batch: int, length: int) -> dict[str, Tensor | None]:
    """Masks (B, 1, T, T) a model may hand over."""
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    padded = causal.expand(batch, 1, length, length).clone()
    for row in range(batch):
        padded[row, :, :, : 2 * row] = False  # leaves the first positions of row 1 on without any key
    return {
        "none": None,
        "causal": causal.expand(1, 1, length, length),
        "window": (causal & ~causal.tril(-4)).expand(batch, 1, length, length),
        "left padding": padded,
    }


@pytest.mark.parametrize("kind", ["none", "causal", "window", "left padding"])
@pytest.mark.parametrize("way", ["fused", "chunks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_with_entropy(kind: str, way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths give the explicit softmax's output, entropy and visible keys under every mask."""
    torch.manual_seed(0)
    batch, length = 3, 11
    q = 3 * torch.randn(batch, 6, length, 8, dtype=dtype)
    k, v = (torch.randn(batch, 2, length, 8, dtype=dtype) for _ in range(2))
    mask = masks(batch, length)[kind]
    if way == "chunks":
        monkeypatch.setattr(attention, "CHUNK", 4)
        monkeypatch.setattr(attention, "_fused_cpu", attention._in_chunks)
    out, entropy, visible = attention_with_entropy(q, k, v, mask, 0.3)
    boolean = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, 1, -1, -1) if mask is None else mask
    expected, expected_entropy = explicit(q, k, v, boolean, 0.3)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-5, atol=1e-5)
    assert torch.equal(visible, boolean.sum(-1)[:, 0].expand(batch, -1))
    if kind == "left padding":
        assert (out[1, :, :2] == 0).all()
        assert (entropy[2, :, :4] == 0).all()


def test_rows_that_see_nothing_are_no_positions(pico: Pico) -> None:
    """A batch's left padding is in no mean even where it is marked valid by mistake."""
    loaded, row = pico("llama"), random_rows((8,))[0]
    ids = torch.cat([torch.zeros(3, dtype=torch.long), row])[None]
    mask = torch.cat([torch.zeros(3), torch.ones(len(row))]).bool()[None]
    seen = []

    class Watch:
        def update(self, view: probe.LayerView) -> None:
            seen.append(view.valid)

    with torch.no_grad(), Probe(loaded.model, loaded.architecture, [Watch()]) as opened:
        opened.valid = torch.ones_like(mask)
        loaded.model(**Batch((0,), ids, mask, "left").inputs(), use_cache=False)
    assert len(seen) == loaded.facts.layers
    assert all(torch.equal(valid, mask) for valid in seen)
