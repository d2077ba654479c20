"""Effects of the probe on a model of every family, against hooks of the tests' own on transformers' eager attention."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from slim.calibration.sketch import score_rows
from slim.core.errors import InputError
from slim.data.tasks import Encoded, batches
from slim.models.architectures import architecture_of, check_config
from slim.models.load import Loaded, load_model
from slim.models.probe import LayerView, Probe
from tests import reference
from tests.pico import FAMILIES, make_pico, random_rows, save_pico

IDS = torch.stack(random_rows((9, 9)))
LOOSE = 1e-4
"""Eager attention rounds its softmax to float32, whatever the model's dtype."""


@pytest.fixture(params=FAMILIES)
def loaded(request: pytest.FixtureRequest, pico: Callable[..., Loaded]) -> Loaded:
    """A pico model of every family with all that is special about it."""
    return pico(request.param)


def by_hand(loaded: Loaded, ids: Tensor, factors: Tensor) -> Tensor:
    """Logits of one row with `factors` ([T,] L, H+2) applied by hooks.  # (T, V)"""
    gates, deltas = factors[..., :-2], factors[..., -2:]
    if factors.dim() == 3:
        gates, deltas = gates.transpose(0, 1), deltas.permute(1, 2, 0)[..., None]  # (L, T, H), (L, 2, T, 1)
    with ExitStack() as stack:
        stack.enter_context(reference.eager(loaded.model))
        stack.enter_context(reference.gated(loaded.model, gates, loaded.facts.head_dim))
        stack.enter_context(reference.scaled_blocks(loaded.model, deltas))
        return loaded.model(ids[None], use_cache=False).logits[0]


def factors(loaded: Loaded, *shape: int) -> Tensor:
    """Random gates (…, L, H+2): of the heads, of the attention block, of the MLP."""
    generator, facts = torch.Generator().manual_seed(1), loaded.facts
    return 2 * torch.rand(*shape, facts.layers, facts.heads + 2, generator=generator, dtype=torch.float64)


def test_the_facts_are_those_of_the_tensors(loaded: Loaded) -> None:
    """Layers, query heads, KV heads and head size as they go through a real forward."""
    facts, seen, cache = loaded.facts, [], DynamicCache()

    class Watch:
        def update(self, view: LayerView) -> None:
            seen.append(tuple(view.heads.shape[2:]))

    with torch.no_grad(), Probe(loaded.model, loaded.architecture, [Watch()]) as probe:
        probe.valid = torch.ones_like(IDS, dtype=torch.bool)
        loaded.model(IDS, cache=cache, use_cache=True)
    assert seen == [(facts.heads, facts.head_dim)] * facts.layers
    assert [layer.keys.shape[1] for layer in cache.layers] == [facts.kv_heads] * facts.layers  # type: ignore[union-attr]


def test_gates_scale_what_is_added(loaded: Loaded) -> None:
    """Row by row of a batch; those of the heads matter, and those of the blocks and MLPs beside them."""
    gates = factors(loaded, 2)
    of_heads = torch.cat((gates[..., :-2], torch.ones_like(gates[..., -2:])), -1)
    with torch.no_grad(), Probe(loaded.model, loaded.architecture) as probe:
        plain = loaded.model(IDS, use_cache=False).logits
        probe.gates = of_heads
        gated = loaded.model(IDS, use_cache=False).logits
        probe.gates = gates
        found = loaded.model(IDS, use_cache=False).logits
    assert (gated - plain).abs().max() > 0.1
    assert (found - gated).abs().max() > 0.1
    for row in range(2):
        with torch.no_grad():
            expected = by_hand(loaded, IDS[row], gates[row])
        torch.testing.assert_close(found[row], expected, rtol=0, atol=LOOSE)


def test_gates_can_differ_from_token_to_token(loaded: Loaded) -> None:
    """Every token of a row scaled by factors of its own."""
    gates = factors(loaded, 2, 9)  # (B, T, L, H+2)
    with torch.no_grad(), Probe(loaded.model, loaded.architecture) as probe:
        probe.gates = gates
        found = loaded.model(IDS, use_cache=False).logits
    with torch.no_grad():
        expected = by_hand(loaded, IDS[1], gates[1])
    torch.testing.assert_close(found[1], expected, rtol=0, atol=LOOSE)


def test_nothing_is_added_at_zero(loaded: Loaded) -> None:
    """Each layer then hands on its input bit for bit: output biases and what norms add to a zero are gone as well."""
    reached: list[Tensor] = []
    layers = reference.layers_of(loaded.model)
    handles = [layer.register_forward_hook(lambda _, args, output: reached.append(output)) for layer in layers]
    with torch.no_grad(), Probe(loaded.model, loaded.architecture) as probe:
        probe.gates = torch.ones(1, loaded.facts.layers, loaded.facts.heads + 2)
        probe.gates[..., -2:] = 0
        loaded.model(IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    assert len(reached) == loaded.facts.layers
    assert all(torch.equal(hidden, reached[0]) for hidden in reached)


def test_gates_have_the_right_gradient(loaded: Loaded) -> None:
    """Of a random sum of the logits, against the gradient through the hooks."""
    pull = torch.randn(9, loaded.model.config.vocab_size, generator=torch.Generator().manual_seed(2)).double()
    gates, sizes = factors(loaded, 1).requires_grad_(), (loaded.facts.heads, 2)
    with torch.enable_grad(), Probe(loaded.model, loaded.architecture) as probe:
        probe.gates = gates
        (found,) = torch.autograd.grad((loaded.model(IDS[:1], use_cache=False).logits[0] * pull).sum(), gates)
    with torch.enable_grad():
        logits = by_hand(loaded, IDS[0], gates[0])
        (expected,) = torch.autograd.grad((logits * pull).sum(), gates)
    for one, other in zip(found.split(sizes, -1), expected.split(sizes, -1), strict=True):
        torch.testing.assert_close(one, other, rtol=LOOSE, atol=LOOSE * float(other.abs().max()))
        assert (other != 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sketch_samples_the_exact_fisher(pico: Callable[..., Loaded], family: str) -> None:
    """Of heads, attention blocks and MLPs, through all a family does to its logits; within five standard errors."""
    loaded, row, draws = pico(family, layers=2, vocab_size=12), random_rows((7,), vocab=12)[0], 100
    (batch,) = batches(Encoded((row,), 0), 1)
    (scores,) = score_rows(loaded, batch, draws, seed=0)  # (draws, L, H+2): a row this short is one segment
    drawn = scores.reshape(draws, -1).astype(np.float64)
    products = drawn[:, :, None] * drawn[:, None, :]
    error = products.std(0, ddof=1) / np.sqrt(draws)
    off = (products.mean(0) - reference.exact_fisher(loaded, row, blocks=True)) / error
    assert np.abs(off).max() < 5
    assert np.sqrt(np.square(off).mean()) < 2


def test_families_that_cannot_be_used_say_why() -> None:
    """By name, with the reason where there is one, and those that can be."""
    with pytest.raises(InputError, match=r"'falcon' is not supported \(its attention.*interface.*llama.*gpt_neox"):
        architecture_of("falcon")
    with pytest.raises(InputError, match=r"'gemma3' is not supported \(.*gemma3_text"):
        architecture_of("gemma3")
    with pytest.raises(InputError, match=r"'bloom' is not supported: choose.*llama"):
        architecture_of("bloom")


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("opt", {"do_layer_norm_before": False}),
        ("opt", {"layer_norm_elementwise_affine": False}),
        ("gpt2", {"add_cross_attention": True}),
        ("gemma2", {"use_bidirectional_attention": True}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
    ],
)
def test_variants_that_are_not_what_the_entry_says_are_refused(family: str, setting: dict[str, Any]) -> None:
    """The message names the family, the setting, its value and the one that is needed; the usual model passes."""
    assert check_config(make_pico(family, layers=1).model.config)
    ((name, value),) = setting.items()
    with pytest.raises(InputError, match=rf"'{family}' with {name}={value}.*{name}={not value}"):
        check_config(make_pico(family, layers=1, **setting).model.config)


def test_a_variant_is_refused_before_its_weights_are_read(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """`load` asks as well."""
    save_pico(pico("opt", layers=1), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"do_layer_norm_before": true', '"do_layer_norm_before": false'))
    with pytest.raises(InputError, match="do_layer_norm_before=False"):
        load_model(str(tmp_path), device="cpu")
