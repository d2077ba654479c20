"""Tests of what only a GPU can show. They run where there is one and are left out elsewhere."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from slim.models.load import Loaded
from tests import reference
from tests.pico import random_rows

pytestmark = pytest.mark.gpu
ROWS = random_rows((9, 30, 17, 40))


def on_gpu(loaded: Loaded, dtype: torch.dtype) -> Loaded:
    """The same model on the first GPU."""
    model: Any = loaded.model
    model.to("cuda", dtype)
    return loaded


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3"])
def test_a_gpu_measures_what_the_cpu_does(pico: Callable[..., Loaded], family: str) -> None:
    """Every metric in float32; what is drawn at random has other draws there, so `kl_output` is measured exactly."""
    cpu = reference.measured(pico(family, dtype=torch.float32), ROWS, kl="exact")
    gpu = reference.measured(on_gpu(pico(family), torch.float32), ROWS, kl="exact")
    for name, scores in cpu.metrics.items():
        for level, expected in scores.items():
            np.testing.assert_allclose(gpu.metrics[name][level], expected, rtol=2e-3, atol=1e-4, err_msg=name)


def test_bfloat16_weights_have_float32_statistics(pico: Callable[..., Loaded]) -> None:
    """The figures of a bfloat16 model stay within bfloat16's rounding of those in float32."""
    exact = reference.measured(on_gpu(pico("llama"), torch.float32), ROWS, kl="none")
    rounded = reference.measured(on_gpu(pico("llama"), torch.bfloat16), ROWS, kl="none")
    for name in ("entropy", "entropy_norm", "kl_uniform"):
        np.testing.assert_allclose(rounded.metrics[name]["head"], exact.metrics[name]["head"], rtol=0.02, atol=0.02)


def test_a_batch_that_does_not_fit_is_halved(pico: Callable[..., Loaded]) -> None:
    """With little memory allowed the calibration goes on with fewer rows at a time, and says so."""
    loaded = on_gpu(pico("llama", hidden_size=512, intermediate_size=4096, layers=8), torch.float32)
    rows = random_rows((900,) * 16)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_allocated() + 300e6) / total
    )  # the weights and a few rows
    try:
        found = reference.measured(loaded, rows, batch_size=16)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("did not fit" in note for note in found.facts.notes)
