"""Attention with its entropy on every path and under every mask, against a softmax written out in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slim.models import attention
from slim.models.attention import attention_with_entropy

BATCH, HEADS, LENGTH, DIM, SCALE = 3, 6, 11, 8, 0.3
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
WAYS = ["fused", "written out"]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2}
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(BATCH, 1, -1, -1)
PADDED = CAUSAL & (torch.arange(LENGTH) >= torch.tensor([6, 3, 0])[:, None, None, None])
MASKS: dict[str, Tensor | None] = {
    "none": None,
    "causal": CAUSAL[:1],
    "window": CAUSAL & ~CAUSAL.tril(-4),
    "left padding": PADDED,  # the first positions of rows 0 and 1 see no key
    "right padding": CAUSAL & PADDED[:, :, -1:].flip(-1),
    "padded window": PADDED & ~CAUSAL.tril(-4),
}


def explicit(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float | None = None, sinks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Output and entropy in float64; positions that see nothing give 0."""
    k, v = (tensor.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    scores = SCALE * torch.einsum("bhtd,bhnd->bhtn", q.double(), k)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    powers = scores.exp() * mask
    total = powers.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.double().exp()[:, None, None]
    weights = (powers / total).nan_to_num(0)
    return weights @ v, -torch.xlogy(weights, weights).sum(-1)


def made(kv_heads: int = 2, keys: int = LENGTH, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, with scores large enough for attention from nearly one key to nearly all alike."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(BATCH, *shape, DIM) for shape in ((HEADS, LENGTH), (kv_heads, keys), (kv_heads, keys)))
    return (3 * q).to(dtype), k.to(dtype), v.to(dtype)


def check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, device: str = "cpu", **extra: Any) -> None:
    """All three results are those of the explicit softmax, the entropy to float32's precision in every dtype."""
    boolean = CAUSAL if mask is None else mask.expand(BATCH, -1, -1, -1)
    expected, expected_entropy = explicit(q, k, v, boolean, **extra)
    q, k, v = q.to(device), k.to(device), v.to(device)
    extra = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in extra.items()}
    results = attention_with_entropy(q, k, v, None if mask is None else mask.to(device), SCALE, **extra)
    out, entropy, visible = (result.cpu() for result in results)
    assert out.dtype == q.dtype
    assert entropy.dtype == (q.dtype if q.dtype == torch.float64 else torch.float32)
    rough, near = TOLERANCE[q.dtype], min(TOLERANCE[q.dtype], 1e-5)
    torch.testing.assert_close(out.double(), expected, rtol=rough, atol=rough)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=near, atol=near)
    assert torch.equal(visible, boolean.sum(-1)[:, 0])


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel or the explicit softmax, four query rows at a time where rows are cut."""
    monkeypatch.setattr(attention, "ROWS", 4)
    monkeypatch.setattr(attention, "SCORES", 4 * BATCH * HEADS * LENGTH)
    if request.param != "fused":
        monkeypatch.setattr(attention, "_kernel", lambda q: None)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("device", DEVICES)
def test_every_path_gives_the_explicit_softmax(device: str, kind: str, dtype: torch.dtype) -> None:
    """Query heads share keys; no mask, causal, window, padding on either side."""
    check(*made(dtype=dtype), MASKS[kind], device)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kv_heads", [1, 6])
@pytest.mark.parametrize("kind", ["none", "left padding"])
@pytest.mark.parametrize("device", DEVICES)
def test_any_number_of_key_heads(device: str, kind: str, kv_heads: int) -> None:
    """One for all query heads, or one each."""
    check(*made(kv_heads), MASKS[kind], device)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("device", DEVICES)
def test_soft_capped_scores(device: str, kind: str, dtype: torch.dtype) -> None:
    """The cap is low enough to bend most scores."""
    q, k, v = made(dtype=dtype)
    check(q, k, v, MASKS[kind], device, softcap=2.0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("device", DEVICES)
def test_a_sink_takes_its_share(device: str, softcap: float | None, kind: str, dtype: torch.dtype) -> None:
    """From next to nothing to nearly all; where no key is seen the sink has everything, and entropy is 0."""
    sinks = torch.linspace(-9, 9, HEADS).to(dtype)
    check(*made(dtype=dtype), MASKS[kind], device, softcap=softcap, sinks=sinks)


@pytest.mark.usefixtures("way")
def test_more_keys_than_queries() -> None:
    """The queries may be the last of a longer sequence when a mask says so, and only then."""
    q, k, v = made(keys=LENGTH + 5)
    mask = torch.ones(1, 1, LENGTH, LENGTH + 5, dtype=torch.bool).tril(5)
    check(q, k, v, mask)
    with pytest.raises(ValueError, match="11 queries and 16 keys need a mask"):
        attention_with_entropy(q, k, v, None, SCALE)


@pytest.mark.parametrize("step", [1, 2, 3, 11, 12])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("fused", [True, False])
def test_how_rows_are_cut_changes_nothing(fused: bool, kind: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one row though even that is too much, a rest of one row, exactly all rows, parts that see no key."""
    monkeypatch.setattr(attention, "ROWS", step)
    monkeypatch.setattr(attention, "SCORES", step * BATCH * HEADS * LENGTH - 1)
    if not fused:
        monkeypatch.setattr(attention, "_kernel", lambda q: None)
    mask = MASKS[kind]
    check(*made(), mask if mask is None else mask & (torch.arange(LENGTH) >= 2))


@pytest.mark.usefixtures("way")
def test_rounding_makes_no_entropy_negative() -> None:
    """A position that looks at one key only has 0 however large its score."""
    q, k, v = made()
    entropy = attention_with_entropy(100 * q, 100 * k, v, CAUSAL, SCALE)[1]
    assert (entropy >= 0).all()


class Largest(TorchDispatchMode):
    """The most elements of any tensor made inside, views of what came from outside left out."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["none", "causal"])
def test_memory_grows_with_the_length_alone(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the tokens make the largest tensor at most twice as large: no scores of all pairs are kept."""
    monkeypatch.setattr(attention, "SCORES", 2**16)
    if way != "fused":
        monkeypatch.setattr(attention, "_kernel", lambda q: None)
    found = {}
    for length in (1024, 2048):
        mask = None if kind == "none" else torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        q, k = torch.randn(1, 2, length, 4), torch.randn(1, 1, length, 4)
        with Largest() as largest:
            attention_with_entropy(q, k, k, mask, SCALE)
        found[length] = largest.elements
    assert 0 < found[2048] <= 2048 * attention.ROWS
    assert found[2048] <= 2 * found[1024]


def test_keys_that_nobody_sees_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a window the kernel gets as many keys as its rows see together, wherever they stand."""
    spans = []

    def kernel(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        spans.append((q.shape[2], k.shape[2]))
        return attention._fused_cpu(q, k, *rest)

    monkeypatch.setattr(attention, "ROWS", 4)
    monkeypatch.setattr(attention, "_kernel", lambda q: kernel)
    check(*made(), MASKS["window"])
    assert spans == [(4, 4), (4, 7), (3, 6)]


def test_the_call_of_the_gpu_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments and result of the kernel, played by a stand-in that also runs where there is no GPU."""
    calls = []

    def kernel(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        compute_log_sumexp: bool,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert compute_log_sumexp
        assert is_causal == (bias is None)
        assert q.dtype == k.dtype == v.dtype == torch.float32
        assert q.shape[1] == k.shape[1] == v.shape[1]
        scores = scale * q @ k.mT
        if bias is None:
            scores = scores.masked_fill(~CAUSAL, -torch.inf)
        else:
            assert bias.shape == scores.shape
            assert bias.stride(-1) == 1
            assert all(stride % 4 == 0 for stride in bias.stride()[:-1])  # 16 bytes
            scores = scores + bias
        lse = torch.full((*scores.shape[:2], 32), torch.inf)
        lse[..., : scores.shape[2]] = scores.logsumexp(-1)
        calls.append(bias is None)
        return scores.softmax(-1) @ v, lse, torch.empty(0), torch.empty(0)

    def output(*args: Any, attn_mask: Tensor | None, enable_gqa: bool, **options: Any) -> Tensor:
        assert attn_mask is None or not enable_gqa  # torch has no fused kernel for both
        return scaled_dot_product_attention(*args, attn_mask=attn_mask, enable_gqa=enable_gqa, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", output)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_efficient_attention", kernel)
    monkeypatch.setattr(attention, "_kernel", lambda q: attention._fused_cuda)
    for kind, mask in MASKS.items():
        for dtype in (torch.float32, torch.bfloat16):
            calls.clear()
            check(*made(dtype=dtype), mask)
            assert calls, kind
