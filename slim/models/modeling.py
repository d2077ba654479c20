"""The class that loads a checkpoint whose layers differ in their attention.

This file is copied into every such checkpoint (with one subclass added at its end), so it imports nothing but torch
and transformers and stays readable on its own. The shapes come from transformers' own `per_layer_config`.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DummyLayer, DynamicCache, DynamicLayer
from transformers.pytorch_utils import Conv1D


class RemovedAttention(nn.Module):
    """Stands where an attention block was: adds nothing to the residual stream and keeps no cache.

    Its attention weights (B, 0, T, T) are those of no head, so that `output_attentions` has one entry per layer.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)  # not that of the family's attention, which `in_place_of` puts behind this class
        self._is_hf_initialized = True  # it has nothing to initialize

    @classmethod
    def in_place_of(cls, attention: nn.Module) -> nn.Module:
        """One that transformers takes for an attention of its family, whose weights it collects by their class."""
        made: nn.Module = type(cls.__name__, (cls, type(attention)), {})()
        return made

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        batch, length = hidden_states.shape[:2]
        return torch.zeros_like(hidden_states), hidden_states.new_zeros(batch, 0, length, length)


class RemovedNorm(nn.Module):
    """Stands where a norm of a removed attention block was.

    Its empty weight makes a load without this class fail for its shape: the stock class would else put random attention
    where there should be none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


class LayerConfig:
    """The model's config as one layer sees it: numbers of heads of its own, everything else as it is in the model now.

    A copy would not learn an attention implementation that is set later on the model, and the layer would then run
    without a causal mask.
    """

    def __init__(self, config: Any, **own: Any) -> None:
        self.__dict__.update(own, _shared=config)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_shared":
            raise AttributeError(name)
        return getattr(self._shared, name)


class PerLayerAttentionMixin(PreTrainedModel):
    """Gives each layer's attention the shape that `config.per_layer_config[i]` says.

    A layer with `skip: ["attention"]` loses its attention and the norms around it; in a layer with its own
    `num_attention_heads` / `num_key_value_heads` the projections of the family's attention are made smaller.
    """

    slim_family: dict[str, Any]
    """Where the family keeps these modules: the path of its `layers`, and in each its `attention`, the attention's
    `projections` with what each puts out, its `output` projection, and the `norms` that go with it."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        family, removed = self.slim_family, set()
        heads, kv_heads = _shape(config)
        owner, _, name = family["layers"].rpartition(".")
        for index, layer in enumerate(getattr(self.get_submodule(owner), name)):
            layer_config = config.per_layer_config[index]
            if "attention" in getattr(layer_config, "skip", ()):
                attention = layer.get_submodule(family["attention"])
                setattr(layer, family["attention"], RemovedAttention.in_place_of(attention))
                for norm in family["norms"]:
                    setattr(layer, norm, RemovedNorm())
                removed.add(index)
            elif _shape(layer_config) != (heads, kv_heads):
                self._resize(layer, config, *_shape(layer_config))
        self._removed_attention = frozenset(removed)
        if removed:
            self.get_submodule(owner).register_forward_pre_hook(self._give_removed_layers_no_cache, with_kwargs=True)
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """transformers looks for the answer in a class's source, and the family's attention is not in this file."""
        return True

    def _resize(self, layer: nn.Module, config: Any, heads: int, kv_heads: int) -> None:
        family = self.slim_family
        attention: Any = layer.get_submodule(family["attention"])
        head_dim = _sizes(layer.get_submodule(family["output"]))[0] // config.num_attention_heads
        counts = {"q": heads, "k": kv_heads, "v": kv_heads, "qkv": 3 * heads}
        for path, parts in family["projections"].items():
            outputs = head_dim * sum(counts[part] for part in parts)
            layer.set_submodule(path, _resized(layer.get_submodule(path), outputs=outputs))
        path = family["output"]
        layer.set_submodule(path, _resized(layer.get_submodule(path), inputs=head_dim * heads))
        own = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        attention.config = LayerConfig(config, **own)
        own |= {"num_heads": heads, "num_key_value_groups": heads // kv_heads, "split_size": head_dim * heads}
        for name, value in own.items():
            if hasattr(attention, name):
                setattr(attention, name, value)

    def _give_removed_layers_no_cache(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Marks the removed layers in the cache, so that its length is read from a layer that has one.

        Otherwise transformers asks layer 0, which stays empty when its attention is gone: positions and mask of a
        plain `forward` with a cache would then start again at zero.
        """
        name = "past_key_values" if kwargs.get("past_key_values") is not None else "cache"
        cache = kwargs.get(name)
        if cache is None:
            use_cache = kwargs.get("use_cache")
            if not (self.config.use_cache if use_cache is None else use_cache):
                return None
            if module.training and getattr(module, "gradient_checkpointing", False):
                return None
            cache = DynamicCache(config=self.config)
        if isinstance(cache, Cache):
            while len(cache.layers) < self.config.num_hidden_layers:  # a cache made without a config grows lazily
                cache.layers.append(DynamicLayer())
            for index in self._removed_attention:
                if not isinstance(cache.layers[index], DummyLayer):
                    cache.layers[index] = DummyLayer()
        return args, {**kwargs, name: cache}


def _shape(config: Any) -> tuple[int, int]:
    heads = config.num_attention_heads
    return heads, getattr(config, "num_key_value_heads", None) or heads


def _sizes(projection: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer."""
    first, second = projection.weight.shape
    return (first, second) if isinstance(projection, Conv1D) else (second, first)


def _resized(projection: Any, inputs: int | None = None, outputs: int | None = None) -> nn.Module:
    """A linear layer like `projection` with another number of inputs or outputs."""
    old_inputs, old_outputs = _sizes(projection)
    inputs, outputs = inputs or old_inputs, outputs or old_outputs
    if isinstance(projection, Conv1D):
        made = Conv1D(outputs, inputs)
    else:
        made = nn.Linear(inputs, outputs, bias=projection.bias is not None)
    return made.to(projection.weight)
