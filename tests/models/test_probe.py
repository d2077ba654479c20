"""The probe: what counts as a position, what it refuses, and that it looks at its own model alone."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig

from slim.core.errors import InputError
from slim.data.tasks import Batch
from slim.models import probe
from slim.models.architectures import Architecture
from slim.models.load import Loaded
from slim.models.probe import Probe
from tests.pico import random_rows

Pico = Callable[..., Loaded]


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


def test_attention_that_does_not_ask_the_interface_is_refused() -> None:
    """With the model type and the reason, instead of figures that are all zero; and the probe closes behind it."""
    config = FalconConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=20)
    model = AutoModelForCausalLM.from_config(config).eval()
    path = "self_attention"
    falcon = Architecture(layers="transformer.h", attention=path, attention_adds=path)
    with pytest.raises(InputError, match=r"'falcon' cannot be measured.*attention interface"), Probe(model, falcon):
        model(random_rows((5,), vocab=20)[0][None])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_probe_looks_at_its_own_model_alone(pico: Pico) -> None:
    """Another model that is run meanwhile is neither gated nor seen, whatever attention both were loaded with."""
    one, other = pico("gemma2"), pico("gemma2", heads=4, seed=1)
    ids = random_rows((6,))[0][None]
    with torch.no_grad():
        expected = other.model(ids, use_cache=False).logits
        with Probe(one.model, one.architecture) as opened:
            opened.gates = torch.zeros(1, 4, 6 + 2)
            assert torch.equal(other.model(ids, use_cache=False).logits, expected)
