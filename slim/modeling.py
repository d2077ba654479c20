"""The class that loads a checkpoint whose layers differ in their attention.

This file is copied into every such checkpoint (with one subclass added at its end), so it imports nothing but torch
and transformers and stays readable on its own. The shapes come from transformers' own `per_layer_config`.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DummyLayer, DynamicCache, DynamicLayer


class RemovedAttention(nn.Module):
    """Stands where an attention block was: adds nothing to the residual stream and keeps no cache."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class RemovedNorm(nn.Module):
    """Stands where the norm of a removed attention block was.

    Its empty weight makes a load without this class fail for its shape: the stock class would else put random attention
    where there should be none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


class PerLayerAttentionMixin(PreTrainedModel):
    """Rebuilds each layer's attention from `config.per_layer_config[i]`.

    A layer with `skip: ["attention"]` loses its attention and the norm in front of it; a layer with its own
    `num_attention_heads` / `num_key_value_heads` gets the family's attention class in that shape.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        removed = set()
        layers: Any = self.base_model.layers
        for index, layer in enumerate(layers):
            layer_config = config.per_layer_config[index]
            if "attention" in getattr(layer_config, "skip", ()):
                layer.self_attn = RemovedAttention()
                layer.input_layernorm = RemovedNorm()
                removed.add(index)
            elif self._shape(layer_config) != self._shape(config):
                layer.self_attn = type(layer.self_attn)(layer_config, index)
                # A per-layer copy would not learn an attention implementation that is set later on the model, and
                # would then run without a causal mask.
                layer.self_attn.config = config
        self._removed_attention = frozenset(removed)
        if removed:
            self.base_model.register_forward_pre_hook(self._give_removed_layers_no_cache, with_kwargs=True)
        self.post_init()

    @staticmethod
    def _shape(config: Any) -> tuple[int, int]:
        return config.num_attention_heads, config.num_key_value_heads

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
