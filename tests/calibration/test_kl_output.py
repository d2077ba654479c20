"""Loss increase of an ablation, against whole forwards of one row, one by one, without any short cut."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.testing import assert_close

from slim.calibration import ablation
from slim.calibration.ablation import Ablation, Baseline, ablate, ablations, kl_divergence, without
from slim.data.tasks import Encoded, batches
from slim.models.load import Loaded
from slim.models.predictions import logits_are_linear
from tests import reference
from tests.pico import FAMILIES, random_rows

Pico = Callable[..., Loaded]
ROWS = random_rows((5, 11, 3, 8))
STARTS = (1, 4, 2, 7)
LEVELS = ("head", "group", "block")


@contextmanager
def left_out(loaded: Loaded, removed: NDArray[np.bool_]) -> Iterator[None]:
    """The model without the heads, blocks and MLPs in `removed` (L, H+2), by hooks of the reference's own."""
    kept = torch.from_numpy(~removed).to(loaded.model.dtype)
    with ExitStack() as stack:
        stack.enter_context(reference.gated(loaded.model, kept[:, :-2], loaded.facts.head_dim))
        stack.enter_context(reference.scaled_blocks(loaded.model, kept[:, -2:]))
        yield


def mask(loaded: Loaded, layer: int, columns: tuple[int, ...]) -> NDArray[np.bool_]:
    """Some columns of one layer.  # (L, H+2)"""
    removed = np.zeros((loaded.facts.layers, loaded.facts.heads + 2), dtype=bool)
    removed[layer, list(columns)] = True
    return removed


def cost(loaded: Loaded, row: torch.Tensor, removed: NDArray[np.bool_], start: int = 1) -> tuple[float, float]:
    """Σ KL and Σ −ln p of the row's own tokens from place `start` on, in nats."""
    full = reference.log_probabilities(loaded, row)[start - 1 :]
    with left_out(loaded, removed):
        other = reference.log_probabilities(loaded, row)[start - 1 :]
    return reference.kl_sum(full, other), -float(other[range(len(other)), row[start:]].sum())


def naive(loaded: Loaded, rows: tuple[torch.Tensor, ...], starts: tuple[int, ...] = ()) -> dict[str, NDArray]:
    """Nats per token of every head, group and block, one forward of one row at a time."""
    facts = loaded.facts
    columns = {
        "head": [(head,) for head in range(facts.heads)],
        "group": [tuple(range(k * facts.group, (k + 1) * facts.group)) for k in range(facts.kv_heads)],
        "block": [(-2,)],
    }
    starts = starts or (1,) * len(rows)
    tokens = sum(len(row) - start for row, start in zip(rows, starts, strict=True))
    found = {}
    for level, units in columns.items():
        sums = [
            [
                sum(
                    cost(loaded, row, mask(loaded, layer, unit), start)[0]
                    for row, start in zip(rows, starts, strict=True)
                )
                for unit in units
            ]
            for layer in range(facts.layers)
        ]
        found[level] = np.array(sums) / tokens
    found["block"] = found["block"][:, 0]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_is_the_naive_loop(pico: Pico, family: str) -> None:
    """Every head, group and block of every family, in float64 within 1e-6 nats per token, on every other row."""
    loaded = pico(family, layers=2, heads=4)
    found = reference.measured(loaded, ROWS, kl="exact", batch_size=2)
    expected = naive(loaded, ROWS[::2])
    assert expected["head"].min() > 1e-6
    for level in LEVELS:
        np.testing.assert_allclose(found.metrics["kl_output"][level], expected[level], rtol=0, atol=1e-6)
    facts = found.facts.metrics["kl_output"]
    assert (facts.rows, facts.positions) == (2, 6)
    assert "measured by leaving it out" in facts.method


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batching_and_padding_change_nothing(pico: Pico, batch_size: int, side: str) -> None:
    """The naive figures for any batch size, with windows shorter than rows."""
    loaded, rows = pico("mistral", layers=2, heads=4, sliding_window=4), (*ROWS, ROWS[1][2:])
    found = reference.measured(loaded, rows, side, kl="exact", batch_size=batch_size).metrics["kl_output"]
    expected = naive(loaded, rows[::2])
    for level in LEVELS:
        np.testing.assert_allclose(found[level], expected[level], rtol=0, atol=1e-6)


def test_single_precision_is_good_to_a_ten_thousandth_nat(pico: Pico) -> None:
    """float32 against the naive loop in float64."""
    single, double = (pico("llama", layers=3, dtype=dtype) for dtype in (torch.float32, torch.float64))
    found = reference.measured(single, ROWS, kl="exact").metrics["kl_output"]
    expected = naive(double, ROWS[::2])
    for level in LEVELS:
        np.testing.assert_allclose(found[level], expected[level], rtol=0, atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 17, 10**6])
def test_how_many_go_together_changes_nothing(pico: Pico, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """One variant per forward, a few, or all of them."""
    loaded = pico("gemma2", layers=3)
    (batch,) = batches(Encoded(ROWS, 0), 4)
    chosen = [ablations(loaded.facts, LEVELS)] * 3
    removed = np.random.default_rng(0).random((5, 3, 8)) < 0.3
    expected, together = list(ablate(loaded, batch, chosen)), without(loaded, batch, removed)
    monkeypatch.setattr(ablation, "TOKENS_AT_ONCE", at_once)
    for one, other in zip(expected, ablate(loaded, batch, chosen), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-7)
    for one, other in zip(together, without(loaded, batch, removed), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_joint_removals_cost_what_they_cost(pico: Pico, family: str, side: str) -> None:
    """Heads, blocks and MLPs of many layers together: each row's KL and likelihood, counted from its start on."""
    loaded = pico(family, layers=3)
    removed = np.random.default_rng(4).random((4, 3, 8)) < 0.3
    removed[0] = False
    removed[1, :, :-2], removed[1, 1, -2], removed[1, 2, -1] = False, True, True
    (batch,) = batches(Encoded(ROWS, 0, STARTS), 4, side)
    nats, surprise, full = without(loaded, batch, removed)
    assert nats.shape == surprise.shape == (4, 4)
    for place, index in enumerate(batch.rows):
        for variant in range(4):
            expected = cost(loaded, ROWS[index], removed[variant], STARTS[index])
            np.testing.assert_allclose([nats[place, variant], surprise[place, variant]], expected, rtol=1e-5, atol=1e-6)
        assert nats[place, 0] == pytest.approx(0, abs=1e-6)
        assert full[place] == pytest.approx(surprise[place, 0], rel=1e-6)


def test_only_the_answers_positions_count(pico: Pico) -> None:
    """With starts, exact costs are those of the positions that predict a token from there on."""
    loaded = pico("llama", layers=2, heads=4)
    found = np.zeros((2, 7))
    for batch in batches(Encoded(ROWS, 0, STARTS), 2):
        for layer, costs in enumerate(ablate(loaded, batch, [ablations(loaded.facts, LEVELS)] * 2)):
            found[layer] += costs.sum(0)
    tokens = sum(len(row) - start for row, start in zip(ROWS, STARTS, strict=True))
    expected = naive(loaded, ROWS, STARTS)
    np.testing.assert_allclose(found[:, :4] / tokens, expected["head"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[:, 4:6] / tokens, expected["group"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[:, 6] / tokens, expected["block"], rtol=0, atol=1e-6)


def test_layers_may_leave_out_different_things(pico: Pico) -> None:
    """Nothing in one, two heads in another, block and MLP in the last: one array per layer."""
    loaded = pico("llama", layers=3)
    chosen = [
        (),
        (Ablation("head", (4,)), Ablation("head", (0,))),
        (Ablation("block", (-2,)), Ablation("block", (-1,))),
    ]
    (batch,) = batches(Encoded(ROWS[:1], 0), 1)
    found = list(ablate(loaded, batch, chosen))
    assert [costs.shape for costs in found] == [(1, 0), (1, 2), (1, 2)]
    for layer, units in enumerate(chosen):
        for index, unit in enumerate(units):
            expected = cost(loaded, ROWS[0], mask(loaded, layer, unit.columns))[0]
            assert found[layer][0, index] == pytest.approx(expected, abs=1e-5)


def test_what_lies_before_an_ablation_is_computed_once(pico: Pico) -> None:
    """Layer l runs once for the whole model and once for each ablation of itself and of the layers before it."""
    loaded, counts = pico("llama", layers=3), [0, 0, 0]
    (batch,) = batches(Encoded(ROWS[:1], 0), 1)
    handles = []
    for index, layer in enumerate(reference.layers_of(loaded.model)):

        def count(module: Any, args: Any, output: Any, index: int = index) -> None:
            counts[index] += 1

        handles.append(layer.mlp.register_forward_hook(count))
    chosen = [[Ablation("head", (head,)) for head in range(heads)] for heads in (1, 2, 1)]
    list(ablate(loaded, batch, chosen))
    for handle in handles:
        handle.remove()
    assert counts == [1 + 1, 1 + 1 + 1, 1 + 1 + 1 + 1]  # the two of layer 1 share a forward


def test_ablations_are_ordered_by_level(pico: Pico) -> None:
    """Heads, groups, block; only those asked for."""
    facts = pico("llama").facts
    assert [a.columns for a in ablations(facts, LEVELS)] == [*((h,) for h in range(6)), (0, 1, 2), (3, 4, 5), (6,)]
    assert ablations(facts, ("block",)) == (Ablation("block", (6,)),)


def test_kl_is_in_nats_and_has_a_direction() -> None:
    """Σ p ln(p/q) by hand; logits may be shifted; nearly equal ones cost next to nothing."""
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert float(kl_divergence(p.log() + 3, q.log() - 40)) == pytest.approx(expected, rel=1e-5)
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    assert float(kl_divergence(p.log(), q.log())) != pytest.approx(float(kl_divergence(q.log(), torch.ones(2).log())))
    logits = torch.linspace(-3, 3, 50, dtype=torch.float64)
    small = logits + 0.05 * torch.sin(7 * logits)
    a, b = logits.log_softmax(-1), small.log_softmax(-1)
    assert float(kl_divergence(logits, small)) == pytest.approx(float((a.exp() * (a - b)).sum()), abs=1e-6)


def test_a_large_vocabulary_keeps_its_digits() -> None:
    """Logits of a real model's size and spread in float32, against float64: to a few millionths of a nat."""
    generator = torch.Generator().manual_seed(0)
    full = 3 * torch.randn(20, 49152, generator=generator) + 12
    for change, shift in ((0.1, 0.5), (1.5, 8.0)):
        other = full + change * torch.randn(full.shape, generator=generator) + shift
        a, b = full.double().log_softmax(-1), other.double().log_softmax(-1)
        off = kl_divergence(full, other).double() - (a.exp() * (a - b)).sum(-1)
        assert abs(float(off.mean())) < 2e-6


def test_a_change_of_logits_costs_what_other_logits_do() -> None:
    """KL and negative log-likelihood by the change alone, in both formats, and of one beyond float32's range."""
    generator = torch.Generator().manual_seed(0)
    logits, change = 3 * torch.randn(2, 70, 49152, generator=generator)
    targets = torch.randint(0, 49152, (70,), generator=generator)
    whole = Baseline(logits, targets)
    a = logits.double().log_softmax(-1)
    assert_close(whole.surprise.double(), -a.gather(1, targets[:, None])[:, 0], rtol=0, atol=1e-5)
    for size, dtype in ((0.02, torch.bfloat16), (0.5, torch.float32), (40.0, torch.float32)):
        moved = (size * change).to(dtype)
        b = (logits.double() + moved.double()).log_softmax(-1)
        expected = (a.exp() * (a - b)).sum(-1), -b.gather(1, targets[:, None])[:, 0]
        for found in (whole.compare_change(moved), whole.compare(logits + moved)):
            for mine, wanted in zip(found, expected, strict=True):
                assert_close(mine.double(), wanted, rtol=1e-5, atol=2e-6 if size < 1 else 1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_products_in_bfloat16_are_near(pico: Pico, family: str) -> None:
    """To a few hundredths of a block's cost; gemma2 changes logits after its head, so its head is left as it is."""
    loaded = pico(family, layers=3, heads=4, dtype=torch.float32)
    assert logits_are_linear(loaded) == (family != "gemma2")
    (batch,) = batches(Encoded(random_rows((60, 80)), 0), 2)
    chosen = [ablations(loaded.facts, ("block",))] * 3
    exact, near = (np.stack(list(ablate(loaded, batch, chosen, one))) for one in ("float32", "bfloat16"))
    assert not np.array_equal(exact, near)
    np.testing.assert_allclose(near, exact, rtol=0.05)


def test_the_model_is_as_it_was(pico: Pico) -> None:
    """Layers, hooks, attention and logits, also when an ablation stops in the middle."""
    loaded = pico("llama", layers=2)
    before, layers = reference.log_probabilities(loaded, ROWS[0]), list(loaded.model.model.layers)
    (batch,) = batches(Encoded(ROWS, 0), 4)
    for count, _ in enumerate(ablate(loaded, batch, [ablations(loaded.facts, LEVELS)] * 2)):
        if count == 0:
            break
    without(loaded, batch, np.ones((1, 2, 8), dtype=bool))
    assert list(loaded.model.model.layers) == layers
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())
    assert torch.equal(reference.log_probabilities(loaded, ROWS[0]), before)
