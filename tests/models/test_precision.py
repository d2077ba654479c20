"""Matrix products in bfloat16: what they are worth, and that weights are as they were afterwards."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from slim.models.architectures import decoder_layers
from slim.models.load import Loaded
from slim.models.precision import WIDE, fastest, precision_of, products, rounded

Pico = Callable[..., Loaded]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_that_are_rounded_before_give_the_same(pico: Pico, family: str) -> None:
    """As those which every product rounds; afterwards each module has its own parameter again."""
    loaded = pico(family, layers=2, dtype=torch.float32)
    layers = decoder_layers(loaded.model, loaded.architecture)
    before = dict(loaded.model.named_parameters())
    ids = torch.arange(1, 13)[None]
    with torch.no_grad(), products("bfloat16", loaded.model):
        expected = loaded.model(ids, use_cache=False).logits
        with rounded("bfloat16", layers):
            held = {name for name, weight in loaded.model.named_parameters() if weight.dtype == torch.bfloat16}
            found = loaded.model(ids, use_cache=False).logits
    assert torch.equal(found, expected)
    matrices = {name for name, weight in before.items() if weight.dim() == 2 and loaded.architecture.layers in name}
    assert held == matrices
    assert all(weight is before[name] for name, weight in loaded.model.named_parameters())


def test_what_learns_is_not_rounded() -> None:
    """Nor is anything where products are in float32."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False))
    with rounded("bfloat16", module):
        assert [part.weight.dtype for part in module] == [torch.float32, torch.bfloat16]
    with rounded("float32", module):
        assert [part.weight.dtype for part in module] == [torch.float32, torch.float32]


def test_a_narrow_model_and_float64_stay_as_they_are(pico: Pico) -> None:
    """Whatever the processor can do; what a user asks for is what they get."""
    for dtype in (torch.float32, torch.float64):
        model = pico("llama", dtype=dtype).model
        assert precision_of("auto", model) == "float32"
        assert precision_of("bfloat16", model) == "bfloat16"


def test_the_number_format_is_told_before_a_model_is_loaded() -> None:
    """By device, width and weights: where a processor has such products at all, not in narrow models or for float64."""
    cpu = torch.device("cpu")
    assert fastest(cpu, 8192, torch.float64) == fastest(cpu, WIDE - 1, torch.float32) == "float32"
    found = torch.cpu.get_capabilities()
    able = found.get("avx512_bf16") or found.get("amx_bf16")
    assert fastest(cpu, WIDE, torch.float32) == ("bfloat16" if able else "float32")
