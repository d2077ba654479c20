"""Layers that stay in their files: the same figures bit by bit, and never two layers' weights in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slim.models.architectures import ARCHITECTURES, decoder_layers
from slim.models.load import Loaded, load_model
from slim.models.stored_layers import present
from tests.pico import make_pico, random_rows, save_pico
from tests.reference import measured


def both(model_type: str, folder: Path) -> tuple[Loaded, Loaded]:
    """A pico model with its layers in memory, and in their files."""
    save_pico(make_pico(model_type), folder)
    held, stored = (load_model(folder, device="cpu", dtype="float64", layers=layers) for layers in ("memory", "file"))
    return held, stored


@pytest.mark.parametrize("kl", ["fisher", "exact"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_figures_are_the_same_to_rounding(model_type: str, kl: str, tmp_path: Path) -> None:
    """Some processors' products depend on where in memory a matrix lies."""
    rows = random_rows((9, 12, 20, 7))
    held, stored = (measured(model, rows, kl=kl, batch_size=2) for model in both(model_type, tmp_path / "model"))
    for name, levels in held.estimates.items():
        for level, estimate in levels.items():
            np.testing.assert_allclose(stored.estimates[name][level].value, estimate.value, rtol=1e-12, atol=1e-15)
    assert held.sketch is not None
    assert stored.sketch is not None
    np.testing.assert_allclose(stored.sketch.scores, held.sketch.scores, rtol=1e-5, atol=1e-7)


def test_one_layer_is_in_memory_while_it_runs_and_none_else(tmp_path: Path) -> None:
    _, stored = both("llama", tmp_path / "model")
    model: Any = stored.model
    layers: Any = decoder_layers(stored.model, stored.architecture)
    there: list[list[int]] = []

    def look(*_: object) -> None:
        there.append([number for number, layer in enumerate(layers) if not layer.mlp.down_proj.weight.is_meta])

    for layer in layers:
        layer.mlp.register_forward_hook(look)
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert there == [[number] for number in range(len(layers))]
    look()
    assert there[-1] == []


def test_what_is_present_already_is_not_read_again(tmp_path: Path) -> None:
    _, stored = both("llama", tmp_path / "model")
    layer: Any = decoder_layers(stored.model, stored.architecture)[1]
    with present(layer):
        weight = layer.self_attn.o_proj.weight
        with present(layer, "self_attn.o_proj.weight"):
            assert layer.self_attn.o_proj.weight is weight
        assert not weight.is_meta
    assert layer.self_attn.o_proj.weight.is_meta
