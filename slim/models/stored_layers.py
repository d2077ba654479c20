"""Layers that stay in their files: each is read when it runs and let go afterwards, so that a model larger than memory
can be measured.

Where gradients flow, a layer keeps its input alone and is run once more on the way back (activation checkpointing, Chen
et al. 2016, arXiv:1604.06174), which reads it a second time.
"""

import copy
import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from slim.models.architectures import Architecture, architecture_of, decoder_layers, residual_multiplier
from slim.models.folder_check import Folder
from slim.models.stored_tensors import places_of

_again: ContextVar[bool] = ContextVar("runs_again", default=False)
MUCH = 2**27
"""Bytes of a layer from which memory that it leaves is given back at once, which takes a moment."""


def runs_again() -> bool:
    """Return whether a layer is being run a second time, on the way back: what observes it has seen it before."""
    return _again.get()


def present(layer: nn.Module, *names: str) -> AbstractContextManager[None]:
    """Inside, the weights of a layer are in memory: those with these `names`, or all."""
    stored = layer.forward
    return stored.present(*names) if isinstance(stored, StoredLayer) else nullcontext()


def has_stored_layers(model: nn.Module, architecture: Architecture) -> bool:
    """Return whether the weights of a model's layers stay in their files."""
    return any(isinstance(layer.forward, StoredLayer) for layer in decoder_layers(model, architecture))


class StoredLayer:
    """The forward of a layer whose weights are in files; `places` names the stored tensor of each of its parameters.

    A weight is read in the number format of the parameter that stands for it.
    """

    def __init__(self, layer: nn.Module, places: Mapping[str, str], files: "Files | Tensors") -> None:
        self.layer, self.places, self.files = layer, places, files
        self.forward = layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._run(*args, **kwargs)
        return checkpoint(
            self._run, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts, **kwargs
        )

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        with self.present():
            return self.forward(*args, **kwargs)

    @contextmanager
    def present(self, *names: str) -> Iterator[None]:
        """Inside, the weights with these `names`, or all, are in memory; those that are there already are not read."""
        empty = {name: self.layer.get_parameter(name) for name in names or self.places}
        empty = {name: parameter for name, parameter in empty.items() if parameter.is_meta}
        try:
            for name, tensor in self.files.read({name: self.places[name] for name in empty}):
                _put(self.layer, name, nn.Parameter(tensor.to(empty[name].dtype), requires_grad=False))
            yield
        finally:
            for name, parameter in empty.items():
                _put(self.layer, name, parameter)
            size = sum(parameter.nbytes for parameter in empty.values())
            if size > MUCH and torch.is_grad_enabled():  # what a layer keeps for the way back is the most of all
                _give_back()


class Tensors:
    """Tensors in memory, by name, in place of files."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def read(self, places: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that `places` names, on the CPU."""
        for name, place in places.items():
            yield name, self.state[place].detach().cpu()


class Files:
    """The tensors in a model's safetensors `files`."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.file_of: dict[str, Path] = {}
        for file in files:
            with safe_open(file, "pt") as opened:
                self.file_of |= dict.fromkeys(opened.keys(), file)

    def read(self, places: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that `places` names. A file is open no longer than that, as its pages count as memory."""
        for file in {self.file_of[place] for place in places.values()}:
            with safe_open(file, "pt") as opened:
                for name, place in places.items():
                    if self.file_of[place] == file:
                        yield name, opened.get_tensor(place)


def write_weight(model: nn.Module, architecture: Architecture, layer: int) -> Tensor:
    """Return the matrix that makes of a layer's heads' outputs what they write, before a post-norm.  # (E, H·D)"""
    whole = decoder_layers(model, architecture)[layer]
    with present(whole, f"{architecture.output}.weight"):
        weight: Tensor = attrgetter(architecture.output)(whole).weight
    scale = residual_multiplier(model, architecture)
    weight = weight.T if architecture.transposed else weight
    return weight if scale == 1 else scale * weight


def with_stored_layers(model_class: Any, folder: Folder, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model in the files of a `folder`, of which all but the layers is in memory, on the CPU."""
    model = without_weights(model_class, folder.config, dtype)
    place_of = {
        tied: next(folder.tensors[place].place for place in places if place in folder.tensors)
        for names, places in places_of(model)
        for tied in names
    }
    return with_weights_of(model, Files(folder.files), place_of, dtype)


def widened(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model that computes the same on the CPU in a wider format, one layer converted at a time."""
    made = without_weights(type(model), copy.deepcopy(model.config), dtype)
    state = dict(model.named_parameters(remove_duplicate=False))
    return with_weights_of(made, Tensors(state), {name: name for name in state}, dtype)


def with_weights_of(
    model: PreTrainedModel, files: "Files | Tensors", place_of: Mapping[str, str], dtype: torch.dtype
) -> PreTrainedModel:
    """Return a `model` without storage with the weights that `place_of` names: those of a layer while it runs, all
    others for good.
    """
    architecture = architecture_of(model.config.model_type)
    layers: Any = decoder_layers(model, architecture)
    for number, layer in enumerate(layers):
        prefix = f"{architecture.layers}.{number}."
        places = {name: place_of[prefix + name] for name, _ in layer.named_parameters()}
        layer.forward = StoredLayer(layer, places, files)
    around = {name: place for name, place in place_of.items() if not name.startswith(f"{architecture.layers}.")}
    for name, tensor in files.read(around):
        _put(model, name, nn.Parameter(tensor.to(dtype, copy=True), requires_grad=False))
    model.tie_weights()
    return model


def unwrapped(folder: Folder) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in the files of a `folder` by the names that they have without a wrapper."""
    return Files(folder.files).read({name: tensor.place for name, tensor in folder.tensors.items()})


def without_weights(model_class: Any, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """Return a model without storage for its parameters; its buffers are made in `dtype`, as transformers does."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            model = model_class(config)
    finally:
        torch.set_default_dtype(usual)
    model.tie_weights()
    return model


@contextmanager
def _second_run() -> Iterator[None]:
    token = _again.set(True)
    try:
        yield
    finally:
        _again.reset(token)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _second_run()


def _give_back() -> None:
    """Return what was freed to the system: glibc keeps blocks as large as a layer's activations otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path).register_parameter(leaf, parameter)
