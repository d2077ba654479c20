"""The number format of matrix products: bfloat16 where that is faster, beside weights and sums in float32."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from slim.core.fields import Precision

WIDE = 512
"""Width of a model from which bfloat16 pays on a CPU: in narrower matrices the conversion costs what it saves."""


def precision_of(wanted: Precision, model: Any) -> Literal["float32", "bfloat16"]:
    """Return the number format of a model's matrix products; float32 means that of its weights.

    "auto" is bfloat16 where the device has instructions for it, the model is wide enough to gain by it, and its weights
    are not float64.
    """
    if wanted != "auto":
        return wanted
    return fastest(model.device, model.get_input_embeddings().weight.shape[1], model.dtype)


def fastest(device: torch.device, width: int, dtype: torch.dtype) -> Literal["float32", "bfloat16"]:
    """Return the faster number format for matrix products of a model of this width and these weights."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:
        found = torch.cpu.get_capabilities()
        able = width >= WIDE and bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return "bfloat16" if able and dtype != torch.float64 else "float32"


def products(precision: str, model: Any) -> torch.autocast:
    """Return a context in which matrix products on a model's device are in this `precision`."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def rounded(precision: str, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the matrices of `modules` are held in bfloat16 where `products` are, if they do not learn.

    Otherwise every product would round them anew. Memory: half of these weights once more.
    """
    kept: list[tuple[Any, Any]] = []
    try:
        for module in modules if precision == "bfloat16" else ():
            for part in module.modules():
                if isinstance(part, nn.Linear | Conv1D) and not part.weight.requires_grad:
                    kept.append((part, part.weight))
                    part.weight = nn.Parameter(part.weight.to(torch.bfloat16), requires_grad=False)
        yield
    finally:
        for part, weight in kept:
            part.weight = weight
