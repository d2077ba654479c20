"""A pico model cut by a plan, and the original with the same things gated by hooks of the tests' own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from slim.models.load import Loaded, load_model
from slim.models.units import Keep, UnitName
from slim.pruning import checkpoint
from tests import reference
from tests.pico import Heads, keeping, plan_of, random_rows, shorthand

WHOLE = (0, 1, 2, 3, 4, 5)
FULL: Keep = keeping(*[WHOLE] * 4)
IDS = torch.stack(random_rows((14, 14)))


class Pruned:
    """An original, a plan, and the checkpoint it gives, each loaded from its folder."""

    def __init__(self, original: Loaded, keep: Keep, folder: Path, unit: UnitName = "head") -> None:
        self.original, self.folder = original, folder
        self.plan = plan_of(original.facts, keep, unit)
        self.keep: tuple[Heads, ...] = shorthand(keep)
        checkpoint.prune(self.plan, folder)
        self.loaded = load_model(str(folder), device="cpu", dtype="float64")

    @property
    def stay(self) -> list[tuple[int, ...]]:
        """The heads of each layer that stays."""
        return [heads for heads in self.keep if heads is not None]

    @contextmanager
    def gated_original(self) -> Iterator[None]:
        """The original with gates on what its output projections read, blocks and layers passed by; no probe."""
        facts, keep = self.original.facts, self.keep
        gates = torch.tensor([[float(head in (heads or ())) for head in range(facts.heads)] for heads in keep])
        scales = torch.tensor([[float(bool(heads)), float(heads is not None)] for heads in keep]).double()
        with (
            reference.gated(self.original.model, gates, facts.head_dim),
            reference.scaled_blocks(self.original.model, scales),
        ):
            yield


@torch.no_grad()
def logits(loaded: Loaded, ids: Tensor = IDS) -> Tensor:
    """A plain forward without a cache."""
    return loaded.model(ids, use_cache=False).logits


@torch.no_grad()
def cached(loaded: Loaded, tokens: int = 4) -> list[int]:
    """Bytes that each layer with a cache holds after a forward of `tokens` tokens in every row of IDS."""
    cache = DynamicCache()
    loaded.model(IDS[:, :tokens], cache=cache, use_cache=True)
    layers: list[Any] = cache.layers
    return [layer.keys.nbytes + layer.values.nbytes for layer in layers if layer.keys is not None]


def held(loaded: Loaded) -> int:
    """Bytes of memory that a model's parameters really occupy, whatever part of it they show."""
    storages = {parameter.untyped_storage().data_ptr(): parameter.untyped_storage() for parameter in weights(loaded)}
    return sum(storage.nbytes() for storage in storages.values())


def weights(loaded: Loaded) -> list[Tensor]:
    """All that is not empty."""
    return [parameter for parameter in loaded.model.parameters() if parameter.numel()]


def file_bytes(file: Path) -> int:
    """Of a safetensors file but for its header."""
    return file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")
