"""What a model will take once a plan is executed: from its shapes alone, exact to the parameter.

A layer's share of every size is a straight line in its numbers of query and KV heads, so a few numbers per layer
project any plan. The board in the browser computes with the same numbers.
"""

from dataclasses import asdict, dataclass
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slim.core.records import Keep, ModelFacts
from slim.models.architectures import architecture_of
from slim.planning.record import Size
from slim.planning.slicing import check_tensor_shapes, shape_of, slice_of, whole_blocks_only

CONTEXT = 512
"""Tokens of the prompt that work and reading are projected for."""
Quantity = Literal["parameters", "bytes", "kv_bytes_per_token", "flops_per_token", "bytes_read_per_token"]
QUANTITIES: tuple[Quantity, ...] = (
    "parameters",
    "bytes",
    "kv_bytes_per_token",
    "flops_per_token",
    "bytes_read_per_token",
)


@dataclass(frozen=True)
class Price:
    """size = fixed + Σ over the layers that stay of rest + [has attention] · block + queries · query + keys · key."""

    fixed: int
    rest: NDArray[np.int64]  # (L,) what stays of a layer without attention
    block: NDArray[np.int64]  # (L,) what any attention needs: its norms, its output bias
    query: NDArray[np.int64]  # (L,) per query head
    key: NDArray[np.int64]  # (L,) per KV head

    def of_layer(self, layer: int, heads: tuple[int, ...] | None, group: int) -> int:
        """A layer's share."""
        if heads is None:
            return 0
        queries, keys = shape_of(heads, group)
        found = self.rest[layer] + (queries > 0) * self.block[layer]
        return int(found + queries * self.query[layer] + keys * self.key[layer])

    def of(self, keep: Keep, group: int) -> int:
        """The size of a whole plan."""
        return self.fixed + sum(self.of_layer(layer, heads, group) for layer, heads in enumerate(keep))


Prices = dict[Quantity, Price]


@dataclass(frozen=True)
class Speedup:
    """How many times faster a plan is, where its work alone (prefill) or its reading alone (decoding) sets the pace."""

    prefill: float
    decode: float


def everything(facts: ModelFacts) -> Keep:
    """The plan that removes nothing."""
    return (tuple(range(facts.heads)),) * facts.layers


def project(facts: ModelFacts, keep: Keep) -> Size:
    """What `facts`' model pruned to `keep` takes. Raises InputError where single heads of a family cannot go."""
    if architecture_of(facts.model_type).whole_blocks and any(heads and len(heads) < facts.heads for heads in keep):
        raise whole_blocks_only(facts.model_type)
    return size_of(prices(facts), keep, facts.group)


def size_of(prices: Prices, keep: Keep, group: int) -> Size:
    """The same from prices that are at hand."""
    return Size(**{name: price.of(keep, group) for name, price in prices.items()})


def speedup(before: Size, after: Size, rows: int = 1, tokens: int = CONTEXT) -> Speedup:
    """What removed work and removed reading promise.

    Decoding `rows` answers at once goes over the weights once, and over the cache of `tokens` tokens in every row.
    """

    def read(size: Size) -> int:
        return size.bytes_read_per_token + (rows * tokens - CONTEXT) * size.kv_bytes_per_token

    return Speedup(
        prefill=before.flops_per_token / after.flops_per_token,
        decode=read(before) / read(after),
    )


def prices(facts: ModelFacts) -> Prices:
    """The price of everything that may stay of `facts`' model.

    Attention works on half of CONTEXT tokens on average; sliding windows are not taken off. Decoding reads the layers,
    the output head and the cache. Raises InputError for facts that are not of one model.
    """
    check_tensor_shapes(facts)
    inside = {name for names in _layer_names(facts) for name in names}
    outside = [shape for name, shape in facts.shapes.items() if name not in inside]
    head = max((prod(shape) for shape in outside if len(shape) == 2), default=0)
    weights = _weights(facts, matrices=False, fixed=sum(map(prod, outside)))
    used = _weights(facts, matrices=True, fixed=head)
    one = np.ones(facts.layers, dtype=np.int64)
    cached = 2 * facts.head_dim * facts.itemsize * one
    attended = 2 * 2 * facts.head_dim * (CONTEXT // 2) * one
    cache = Price(0, 0 * one, 0 * one, 0 * one, cached)
    return {
        "parameters": weights,
        "bytes": _scaled(weights, facts.itemsize),
        "kv_bytes_per_token": cache,
        "flops_per_token": _plus(_scaled(used, 2), Price(0, 0 * one, 0 * one, attended, 0 * one)),
        "bytes_read_per_token": _plus(_scaled(used, facts.itemsize), _scaled(cache, CONTEXT)),
    }


def heads_of(facts: ModelFacts) -> Price:
    """What counts query heads, as a price counts bytes."""
    one = np.ones(facts.layers, dtype=np.int64)
    return Price(0, 0 * one, 0 * one, one, 0 * one)


def _layer_names(facts: ModelFacts) -> list[list[str]]:
    prefix = f"{architecture_of(facts.model_type).layers}."
    found: list[list[str]] = [[] for _ in range(facts.layers)]
    for name in facts.shapes:
        if name.startswith(prefix):
            found[int(name.removeprefix(prefix).partition(".")[0])].append(name)
    return found


def _weights(facts: ModelFacts, *, matrices: bool, fixed: int) -> Price:
    """Prices in parameters, of matrices alone or of everything, read off the smallest shapes that a layer can have."""
    whole = bool(architecture_of(facts.model_type).whole_blocks)
    names = _layer_names(facts)
    rows = []
    for layer in range(facts.layers):

        def count(heads: tuple[int, ...], here: list[str] = names[layer]) -> int:
            return sum(_left(facts, name, heads) for name in here if not matrices or len(facts.shapes[name]) == 2)

        rest = count(())
        if whole or facts.heads == 1:
            rows.append((rest, count(tuple(range(facts.heads))) - rest, 0, 0))
            continue
        first = count((0,))
        query = count((0, 1)) - first if facts.group > 1 else 0
        key = (count((0, facts.group)) - first if facts.kv_heads > 1 else first - rest) - query
        rows.append((rest, first - rest - query - key, query, key))
    rest, block, query, key = np.array(rows, dtype=np.int64).T
    return Price(fixed, rest, block, query, key)


def _left(facts: ModelFacts, name: str, heads: tuple[int, ...]) -> int:
    """Parameters that stay of one tensor where its layer keeps `heads`."""
    cut = slice_of(name, architecture_of(facts.model_type), facts, (heads,) * facts.layers)
    if cut == "none":
        return 0
    count = prod(facts.shapes[name])
    return count if cut == "all" else count // facts.shapes[name][cut.dim] * len(cut.entries)


def _scaled(price: Price, factor: int) -> Price:
    return Price(**{name: part * factor for name, part in asdict(price).items()})


def _plus(one: Price, other: Price) -> Price:
    return Price(**{name: part + getattr(other, name) for name, part in asdict(one).items()})
