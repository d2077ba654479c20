"""A model one layer at a time: the hidden states of rows are carried through it, so a pass runs one layer alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from slim.data.tasks import Batch
from slim.models.architectures import Architecture, decoder_layers
from slim.models.precision import products, rounded


class Passed(nn.Module):
    """Stands for a layer that is not run: hands on what was computed before, or what it gets."""

    def __init__(self, hidden: Tensor | None = None) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states if self.hidden is None else self.hidden


class _Known(nn.Module):
    """Stands for an attention block whose output is known."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return self.output, None


class Enough(Exception):
    """All that was to be seen of a pass has been seen."""


@contextmanager
def replaced(layers: nn.ModuleList, instead: Mapping[int, nn.Module]) -> Iterator[None]:
    """Inside, the layers with these numbers are others."""
    original = list(layers)
    try:
        for place, layer in instead.items():
            layers[place] = layer
        yield
    finally:
        for place, layer in enumerate(original):
            layers[place] = layer


def started_at(layers: nn.ModuleList, start: int, hidden: Tensor | None) -> AbstractContextManager[None]:
    """The model runs from layer `start` on with `hidden` (B, T, E) as its input; the layers before it are skipped."""
    return replaced(layers, {place: Passed(hidden if place == start - 1 else None) for place in range(start)})


def _alone(layers: nn.ModuleList, index: int) -> AbstractContextManager[None]:
    return replaced(layers, {place: Passed() for place in range(len(layers)) if place != index})


class Stream:
    """Rows on their way through a model: `hidden` is what enters the layer `index`.  # (B, T, E) of each batch

    The residual keeps the number format of the weights, whatever the `precision` of matrix products.
    """

    def __init__(
        self, model: Any, architecture: Architecture, batches: Sequence[Batch], precision: str = "float32"
    ) -> None:
        self.model, self.architecture, self.batches, self.precision = model, architecture, batches, precision
        self.layers = decoder_layers(model, architecture)
        self.index = 0
        self.hidden: list[Tensor] = []
        with _alone(self.layers, -1):
            for batch in batches:
                self.hidden.append(self._entering(batch))

    @property
    def layer(self) -> nn.Module:
        """The layer at hand."""
        return self.layers[self.index]

    @torch.no_grad()
    def seen(
        self,
        modules: Mapping[str, nn.Module],
        until: str | None = None,
        attention: Sequence[Tensor] | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Run the layer at hand over every batch and yield the input and output of each of `modules`, as NAME.in and
        NAME.out, and the layer's own output as `left`. The layer must not be changed meanwhile.

        With `until`, a run stops where that module is entered. Where the outputs of the `attention` block are known,
        (B, T, E) of each batch, it is not run.
        """
        with rounded(self.precision, [self.layer]):
            for place in range(len(self.batches)):
                yield self._run(place, modules, until, None if attention is None else attention[place])

    def left(self, place: int, learning: bool = False) -> Tensor:
        """Return the layer's output for a batch; with gradients where it is `learning`.  # (B, T, E)"""
        with torch.set_grad_enabled(learning):
            return self._run(place, {}, None, None)["left"]

    def advance(self, left: Sequence[Tensor] | None = None, attention: Sequence[Tensor] | None = None) -> None:
        """Go through the layer at hand as it is now; `left` is its output, and `attention` its block's, where known."""
        self.hidden = list(left) if left is not None else [seen["left"] for seen in self.seen({}, None, attention)]
        self.index += 1

    @torch.no_grad()
    def _entering(self, batch: Batch) -> Tensor:
        found: list[Any] = []

        def enough(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.append(output)
            raise Enough

        handle = self.layers[0].register_forward_hook(enough)
        try:
            with suppress(Enough):
                self._forward(batch)
        finally:
            handle.remove()
        return found[0]

    def _run(
        self, place: int, modules: Mapping[str, nn.Module], until: str | None, attention: Tensor | None
    ) -> dict[str, Tensor]:
        hidden = self.hidden[place]
        seen: dict[str, Tensor] = {}

        def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        def entered(name: str) -> Any:
            def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen[f"{name}.in"] = args[0] if args else kwargs["hidden_states"]
                if name == until:
                    raise Enough

            return note

        def leaving(name: str) -> Any:
            def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                seen[name] = output[0] if isinstance(output, tuple) else output
                if name == "left":
                    raise Enough

            return note

        with ExitStack() as stack:
            stack.enter_context(_alone(self.layers, self.index))
            if attention is not None:
                path = self.architecture.attention
                stack.callback(self.layer.set_submodule, path, self.layer.get_submodule(path))
                self.layer.set_submodule(path, _Known(attention))
            handles = [
                self.layer.register_forward_pre_hook(given, with_kwargs=True),
                self.layer.register_forward_hook(leaving("left")),
            ]
            for name, module in modules.items():
                handles.append(module.register_forward_pre_hook(entered(name), with_kwargs=True))
                handles.append(module.register_forward_hook(leaving(f"{name}.out")))
            for handle in handles:
                stack.callback(handle.remove)
            with suppress(Enough):
                self._forward(self.batches[place])
        return seen

    def _forward(self, batch: Batch) -> None:
        with products(self.precision, self.model):
            self.model(**batch.inputs(self.model.device), use_cache=False, logits_to_keep=1)
