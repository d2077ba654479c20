"""LoRA on every matrix of a model's layers, and training without dropout."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import peft
import torch
from peft import LoraConfig, PeftModel
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from slim.models.architectures import Architecture, decoder_layers
from slim.models.load import Loaded

DROPOUTS = ("attention_dropout", "attn_dropout", "dropout", "layerdrop", "dropout_p", "activation_dropout")
"""Attributes of modules that hold the rate of a dropout of their own."""


def adapted(loaded: Loaded, rank: int) -> PeftModel:
    """Return the model with a LoRA on every matrix of its layers, which changes nothing yet (Hu et al. 2021)."""
    names = matrices(decoder_layers(loaded.model, loaded.architecture))
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing`", FutureWarning
        )  # peft reads the attribute by its old name
        return peft.get_peft_model(loaded.model, _config(names, rank, loaded.architecture, "CAUSAL_LM"))  # type: ignore[return-value]


def adapted_layer(layer: nn.Module, rank: int, architecture: Architecture) -> PeftModel:
    """Return a decoder layer, changed in place, with a LoRA on each of its matrices, which changes nothing yet."""
    return peft.get_peft_model(layer, _config(matrices([layer]), rank, architecture))  # type: ignore[arg-type,return-value]


def matrices(layers: Iterable[nn.Module]) -> list[str]:
    """Return the names within a decoder layer of all modules that multiply with a matrix."""
    return sorted(
        {name for layer in layers for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    )


@contextmanager
def inputs_rounded_once(model: nn.Module) -> Iterator[None]:
    """Inside, what several adapted matrices read is rounded to bfloat16 once, and its gradients add up in bfloat16.

    Otherwise each matrix and each of its adapters would round it anew, and round its gradient back.
    """
    read = _ReadLast()
    hooks = [part.register_forward_pre_hook(read) for part in model.modules() if isinstance(part, LoraLayer)]
    try:
        with disable_input_dtype_casting(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _ReadLast:
    """Rounds the input of a module, unless the module before it had the same."""

    def __init__(self) -> None:
        self.given = self.rounded = torch.empty(0)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if args[0] is not self.given:
            self.given, self.rounded = args[0], args[0].to(torch.bfloat16)
        return (self.rounded, *args[1:])


def without_dropout(model: nn.Module) -> None:
    """Turn off all dropout of a model.

    The original's predictions are targets without noise, and a training of few steps has little to overfit.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _config(names: list[str], rank: int, architecture: Architecture, task: str | None = None) -> LoraConfig:
    return LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=names,
        fan_in_fan_out=architecture.transposed,
    )
