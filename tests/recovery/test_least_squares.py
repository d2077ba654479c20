"""Closed-form repair against what it must give: exact where it can be, least squares by the textbook elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slim.data.tasks import Batch, Encoded, batches
from slim.models.architectures import architecture_of
from slim.models.load import Loaded
from slim.models.units import Keep, UnitName
from slim.recovery.least_squares import repair_weights
from slim.recovery.projection_fit import STRENGTHS
from tests.pico import FAMILIES, keeping, make_pico, random_rows, save_pico
from tests.reference import layers_of
from tests.surgery import FULL, WHOLE, Pruned, logits

LENGTHS = (40, 33, 47, 28, 36, 45, 39, 31)


@pytest.fixture
def cut(tmp_path: Path) -> Callable[..., Pruned]:
    """A pico model, as it is or changed, and its checkpoint with `keep` left."""

    def make(keep: Keep, loaded: Loaded | None = None, unit: UnitName = "head") -> Pruned:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        original = save_pico(loaded or make_pico("llama"), folder)
        return Pruned(original, keep, folder / "cut", unit)

    return make


def rows_of(lengths: tuple[int, ...], seed: int, size: int = 4, side: str = "right") -> list[Batch]:
    return list(batches(Encoded(random_rows(lengths, seed=seed), 0), size, side))


def fit_and_choose(size: int = 4, side: str = "right") -> tuple[list[Batch], list[Batch]]:
    return rows_of(LENGTHS * 4, 1, size, side), rows_of(LENGTHS, 2, size, side)


def lost(one: Tensor, other: Tensor) -> float:
    """Mean KL of two models' predictions."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def removable(model_type: str) -> Keep:
    """A head group here, a block there, where the family lets single heads go."""
    if architecture_of(model_type).whole_blocks:
        return keeping(WHOLE, (), WHOLE, WHOLE)
    kv = make_pico(model_type).facts.kv_heads
    return keeping(WHOLE, (0, 1, 3, 4) if kv == 2 else (0, 2, 3), (), WHOLE)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_comes_nearer_to_its_original(model_type: str, cut: Callable[..., Pruned]) -> None:
    case = cut(removable(model_type), make_pico(model_type))
    before = lost(logits(case.original), logits(case.loaded))
    found = repair_weights(case.original, case.loaded, case.plan.keep, *fit_and_choose())
    assert lost(logits(case.original), logits(case.loaded)) < before
    assert any(one.strength for one in found)
    assert all(one.left <= 1 for one in found)


def test_nothing_changes_where_nothing_was_removed(cut: Callable[..., Pruned]) -> None:
    case = cut(FULL)
    found = repair_weights(case.original, case.loaded, FULL, *fit_and_choose())
    assert all(one.strength is None for one in found)
    assert torch.equal(logits(case.original), logits(case.loaded))


def test_what_comes_before_the_first_removal_stays_as_it_is(cut: Callable[..., Pruned]) -> None:
    keep = keeping(WHOLE, WHOLE, (0, 1, 3, 4), WHOLE)
    case = cut(keep)
    before = {name: weight.clone() for name, weight in case.loaded.model.named_parameters()}
    found = repair_weights(case.original, case.loaded, keep, *fit_and_choose())
    changed = {name for name, weight in case.loaded.model.named_parameters() if not torch.equal(weight, before[name])}
    assert {one.layer for one in found} == {2, 3}
    assert changed
    for name in changed:
        assert name.startswith(("model.layers.2", "model.layers.3"))
        assert name.endswith(("o_proj.weight", "down_proj.weight"))


@torch.no_grad()
def test_a_head_that_has_a_twin_is_made_up_for_exactly(cut: Callable[..., Pruned]) -> None:
    """Head 1 sees and says what head 0 does: with the right columns of o_proj nothing is lost at all."""
    original = make_pico("llama")
    attention = layers_of(original.model)[1].self_attn
    size = original.facts.head_dim
    attention.q_proj.weight[size : 2 * size] = attention.q_proj.weight[:size]
    keep = keeping(WHOLE, (0, 2, 3, 5), WHOLE, WHOLE)
    attention.q_proj.weight[4 * size : 5 * size] = attention.q_proj.weight[3 * size : 4 * size]
    case = cut(keep, original)
    assert lost(logits(original), logits(case.loaded)) > 1e-2
    repair_weights(case.original, case.loaded, keep, *fit_and_choose())
    assert lost(logits(original), logits(case.loaded)) < 1e-5


class Watched:
    """Inputs of a module and outputs of a layer, by hooks of the test's own on a plain forward."""

    def __init__(self, module: nn.Module, layer: nn.Module) -> None:
        self.x: list[Any] = []
        self.left: list[Any] = []
        self.handles = [
            module.register_forward_pre_hook(lambda module, args: self.x.append(args[0])),
            layer.register_forward_hook(lambda module, args, output: self.left.append(output)),
        ]

    @torch.no_grad()
    def run(self, loaded: Loaded, rows: list[Batch]) -> tuple[Tensor, Tensor]:
        """Of all valid positions.  # (n, F), (n, E)"""
        self.x.clear()
        self.left.clear()
        for batch in rows:
            loaded.model(**batch.inputs(), use_cache=False)
        valid = [batch.valid for batch in rows]
        return (
            torch.cat([part[v] for part, v in zip(self.x, valid, strict=True)]),
            torch.cat([part[v] for part, v in zip(self.left, valid, strict=True)]),
        )


def test_the_last_matrix_is_the_textbooks_ridge_regression(cut: Callable[..., Pruned]) -> None:
    """Its change, the λ that was chosen and the error left, all from explicit data matrices."""
    keep = keeping(WHOLE, WHOLE, WHOLE, (0, 1, 3, 4))
    case = cut(keep)
    fit, choose = fit_and_choose()
    before = layers_of(case.loaded.model)[3].mlp.down_proj.weight.clone()
    found = repair_weights(case.original, case.loaded, keep, fit, choose)
    layer = layers_of(case.loaded.model)[3]
    after = layer.mlp.down_proj.weight.clone()
    layer.mlp.down_proj.weight.copy_(before)  # as it was when it was fitted, with o_proj repaired already

    whole = layers_of(case.original.model)[3]
    ours, theirs = Watched(layer.mlp.down_proj, layer), Watched(whole.mlp.down_proj, whole)
    data = {}
    for name, rows in (("fit", fit), ("choose", choose)):
        x, left = ours.run(case.loaded, rows)
        data[name] = x, theirs.run(case.original, rows)[1] - left
    x, error = data["fit"]
    gram = x.T @ x
    tried = {}
    for strength in STRENGTHS:
        change = torch.linalg.inv(gram + strength * gram.diagonal().mean() * torch.eye(len(gram))) @ x.T @ error
        tried[strength] = (float((data["choose"][1] - data["choose"][0] @ change).square().sum()), change)
    strength = min(tried, key=lambda strength: tried[strength][0])
    left, change = tried[strength]
    assert (found[-1].layer, found[-1].name, found[-1].strength) == (3, "mlp.down_proj", strength)
    assert found[-1].left == pytest.approx(left / float(data["choose"][1].square().sum()))
    assert torch.allclose(after, before + change.T, atol=1e-9)


def test_a_removed_layer_is_absorbed_by_what_writes_before_it(cut: Callable[..., Pruned]) -> None:
    keep = keeping(WHOLE, WHOLE, None, WHOLE)
    case = cut(keep, unit="layer")
    before = lost(logits(case.original), logits(case.loaded))
    found = repair_weights(case.original, case.loaded, keep, *fit_and_choose())
    assert (found[1].layer, found[1].name) == (1, "mlp.down_proj")
    assert found[1].left < 0.9
    assert lost(logits(case.original), logits(case.loaded)) < before


@pytest.mark.parametrize(("size", "side"), [(1, "right"), (3, "left"), (8, "right")])
def test_batches_and_padding_make_no_difference(size: int, side: str, cut: Callable[..., Pruned]) -> None:
    keep = keeping(WHOLE, (0, 1, 3, 4), (), WHOLE)
    one, other = (cut(keep) for _ in range(2))
    repair_weights(one.original, one.loaded, keep, *fit_and_choose())
    repair_weights(other.original, other.loaded, keep, *fit_and_choose(size, side))
    assert torch.allclose(logits(one.loaded), logits(other.loaded), atol=1e-7)
