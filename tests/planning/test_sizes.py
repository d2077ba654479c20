"""The size model: its numbers per layer give exactly the shapes that stay, for every family."""

from collections.abc import Callable
from math import prod

import numpy as np
import pytest

from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.models.architectures import architecture_of
from slim.models.load import Loaded
from slim.models.units import Keep, whole_model
from slim.planning.sizes import CONTEXT, size_of, speedup
from slim.planning.slicing import Slice, slice_of
from tests.pico import FAMILIES, keeping


def counted(facts: ModelFacts, keep: Keep) -> int:
    """Parameters that stay, tensor by tensor."""
    total = 0
    for name, shape in facts.shapes.items():
        cut = slice_of(name, architecture_of(facts.model_type), facts, keep)
        if isinstance(cut, Slice):
            shape = (*shape[: cut.dim], len(cut.entries), *shape[cut.dim + 1 :])  # noqa: PLW2901
        total += 0 if cut == "none" else prod(shape)
    return total


def random_keep(facts: ModelFacts, rng: np.random.Generator) -> Keep:
    """A random plan of valid shapes."""
    keep: list[tuple[int, ...] | None] = []
    for _ in range(facts.layers):
        kind = rng.integers(4)
        if architecture_of(facts.model_type).whole_blocks:
            kind = kind % 2 * 3
        per_group = int(rng.integers(1, facts.group + 1))
        groups = np.sort(rng.choice(facts.kv_heads, int(rng.integers(1, facts.kv_heads + 1)), replace=False))
        some = [
            int(g) * facts.group + int(h) for g in groups for h in sorted(rng.choice(facts.group, per_group, False))
        ]
        keep.append([tuple(range(facts.heads)), tuple(some), tuple(some), ()][kind] if rng.random() > 0.2 else None)
    keep[0] = keep[0] or tuple(range(facts.heads))
    return keeping(*keep)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_exact(pico: Callable[..., Loaded], family: str) -> None:
    """Heads, groups, blocks and layers in any mixture, with and without grouped heads where the family has them."""
    for kv_heads in (2, 6):
        facts = pico(family, kv_heads=kv_heads).facts
        rng = np.random.default_rng(kv_heads)
        for _ in range(25):
            keep = random_keep(facts, rng)
            found = size_of(facts, keep)
            assert found.parameters == counted(facts, keep)
            assert found.bytes == found.parameters * facts.itemsize
            groups = sum(len({head // facts.group for head in kept.heads}) for kept in keep)
            assert found.kv_bytes_per_token == 2 * groups * facts.head_dim * facts.itemsize


def test_work_and_reading_are_those_of_the_matrices(pico: Callable[..., Loaded]) -> None:
    """Two operations a weight and attention over half of the context; reading the weights once and the whole cache."""
    facts = pico("llama").facts
    keep = keeping((0, 3), (), None, tuple(range(6)))
    found = size_of(facts, keep)
    layer = {name: prod(shape) for name, shape in facts.shapes.items() if name.startswith("model.layers.0.")}
    mlp = sum(size for name, size in layer.items() if ".mlp." in name)
    attention = sum(size for name, size in layer.items() if ".self_attn." in name)
    head = prod(facts.shapes["lm_head.weight"])
    matrices = (
        head
        + 3 * mlp
        + attention
        + sum(
            size * (1 / 3 if name.split(".")[4] in ("q_proj", "o_proj") else 1)
            for name, size in layer.items()
            if ".self_attn." in name
        )
    )
    attended = 2 * 2 * facts.head_dim * (CONTEXT // 2) * (2 + 6)
    assert found.flops_per_token == pytest.approx(2 * matrices + attended)
    assert found.bytes_read_per_token == pytest.approx(matrices * facts.itemsize + CONTEXT * found.kv_bytes_per_token)
    whole = size_of(facts, whole_model(facts))
    assert speedup(whole, whole).prefill == speedup(whole, whole).decode == 1
    assert speedup(whole, found).prefill == pytest.approx(whole.flops_per_token / found.flops_per_token)


def test_single_heads_that_cannot_go(pico: Callable[..., Loaded]) -> None:
    """The projection refuses what surgery refuses."""
    facts = pico("olmo2").facts
    with pytest.raises(InputError, match="norms span all heads"):
        size_of(facts, keeping((0, 1, 2), *whole_model(facts)[1:]))
