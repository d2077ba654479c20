"""Plans that keep some of the MLP's channels: their slices in every family, their sizes, and files of large ones."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from slim.core.records import ModelFacts
from slim.models.architectures import ARCHITECTURES
from slim.models.columns import channel_mask
from slim.models.load import Loaded, facts_from_config
from slim.models.units import NO_LAYER, Keep, LayerKeep, whole_layer
from slim.planning.files import load_plan, save_plan
from slim.planning.sizes import CONTEXT, size_of
from slim.planning.slicing import Slice, channels_of, slice_of
from tests.pico import FAMILIES, make_pico, plan_of
from tests.reference import layers_of
from tests.surgery import IDS

MLPS = {
    "phi3": {"mlp.gate_up_proj": 2, "mlp.down_proj": 0},
    "starcoder2": {"mlp.c_fc": 1, "mlp.c_proj": 0},
    "gpt2": {"mlp.c_fc": 1, "mlp.c_proj": 0},
    "gpt_neox": {"mlp.dense_h_to_4h": 1, "mlp.dense_4h_to_h": 0},
    "opt": {"fc1": 1, "fc2": 0},
}
"""The modules of a layer that a channel is in, and how often in its output, 0 where it is an input."""
GATED = {"mlp.gate_proj": 1, "mlp.up_proj": 1, "mlp.down_proj": 0}


def some_channels(facts: ModelFacts, seed: int = 0) -> tuple[list[list[int]], Keep]:
    """Whole heads, and of each layer's channels about a third, by number and as a plan keeps them."""
    rng = np.random.default_rng(seed)
    chosen = [np.flatnonzero(rng.random(channels_of(facts, layer)) < 0.3).tolist() for layer in range(facts.layers)]
    whole = whole_layer(facts)
    masks = [channel_mask(kept, channels_of(facts, layer)) for layer, kept in enumerate(chosen)]
    return chosen, tuple(whole.model_copy(update={"channels": mask}) for mask in masks)


def sliced(loaded: Loaded, keep: Keep) -> Any:
    """The model with every parameter cut as the slices say, in its own stock modules."""
    model: Any = copy.deepcopy(loaded.model)
    for name, parameter in [*model.named_parameters()]:
        found = slice_of(name, loaded.architecture, loaded.facts, keep)
        if isinstance(found, Slice):
            owner: Any = model.get_submodule(name.rpartition(".")[0])
            part = parameter.index_select(found.dim, torch.tensor(found.entries))
            setattr(owner, name.rpartition(".")[2], nn.Parameter(part))
            if hasattr(owner, "nf"):  # GPT-2's kind of linear layer keeps the number of its outputs
                owner.nf = owner.weight.shape[1]
    return model


@contextmanager
def silenced(loaded: Loaded, chosen: list[list[int]]) -> Iterator[None]:
    """The model while its MLPs' output projections read 0 from every channel that does not stay."""
    handles = []
    for layer, kept in zip(layers_of(loaded.model), chosen, strict=True):
        (output,) = (name for name, times in of_family(loaded.facts.model_type).items() if not times)

        def hook(module: nn.Module, args: tuple[Tensor], stays: list[int] = kept) -> Tensor:
            left = torch.zeros_like(args[0])
            left[..., stays] = args[0][..., stays]
            return left

        handles.append(layer.get_submodule(output).register_forward_pre_hook(hook))
    yield
    for handle in handles:
        handle.remove()


def of_family(model_type: str) -> dict[str, int]:
    return MLPS.get(model_type, GATED)


@pytest.mark.parametrize("family", FAMILIES)
def test_slices_of_channels_are_the_silenced_original(pico: Callable[..., Loaded], family: str) -> None:
    """Only the MLP's matrices and what is added to its channels are cut, to the shapes that the modules then have, and
    the logits are those of the original whose other channels put out nothing."""
    loaded = pico(family)
    chosen, keep = some_channels(loaded.facts)
    for number, (layer, kept) in enumerate(zip(layers_of(loaded.model), chosen, strict=True)):
        channels = channels_of(loaded.facts, number)
        for name, parameter in layer.named_parameters():
            module, _, kind = name.rpartition(".")
            full = f"{ARCHITECTURES[family].layers}.{number}.{name}"
            found = slice_of(full, loaded.architecture, loaded.facts, keep)
            times = of_family(family).get(module)
            if times is None or (times == 0 and kind == "bias"):
                assert found == "all", name
                continue
            assert isinstance(found, Slice), name
            across = int(family == "gpt2" and kind == "weight")
            assert found.dim == (across if times else 1 - across), name
            assert parameter.shape[found.dim] == max(1, times) * channels, name
            blocks = [channel + block * channels for block in range(max(1, times)) for channel in kept]
            assert found.entries == tuple(blocks), name
    with torch.no_grad():
        model = sliced(loaded, keep)
        found = model(IDS, use_cache=False).logits
        with silenced(loaded, chosen):
            expected = loaded.model(IDS, use_cache=False).logits
        assert (expected - loaded.model(IDS, use_cache=False).logits).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert sum(parameter.numel() for parameter in model.parameters()) == size_of(loaded.facts, keep).parameters


def test_channels_beside_heads_and_layers(pico: Callable[..., Loaded]) -> None:
    """Sizes of a layer that loses heads and channels, of one without attention, of one that is gone, of a whole one."""
    facts = pico("llama").facts
    mask = channel_mask(range(0, 48, 5), 48)
    keep = (LayerKeep(heads=(0, 3), channels=mask), LayerKeep(channels=mask), NO_LAYER, whole_layer(facts))
    found = size_of(facts, keep)
    attention, channel = 2 * (2 * 24 * 8 + 2 * 24 * 8), 3 * 24  # two query heads of 8 and both KV heads
    whole = 2 * 24 + 2 * (6 * 24 * 8) + 2 * (2 * 24 * 8) + 48 * channel
    layers = (2 * 24 + attention + 10 * channel) + (24 + 10 * channel) + whole
    assert found.parameters == 2 * 264 * 24 + 24 + layers
    assert found.kv_bytes_per_token == 2 * (2 + 2) * 8 * facts.itemsize
    assert size_of(facts, (*keep[:3], whole_layer(facts).model_copy(update={"channels": mask}))).parameters == (
        found.parameters - 38 * channel
    )
    for channels in (0, 1):
        fewest = keep[3].model_copy(update={"channels": channel_mask(range(channels), 48)})
        assert size_of(facts, (*keep[:3], fewest)).parameters == found.parameters - (48 - channels) * channel


def large() -> ModelFacts:
    """A llama of 80 layers with 28,672 channels, of which no weight is made."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        dtype="bfloat16",
    )
    return facts_from_config("large", config)


def test_a_plan_of_a_large_model_is_small_and_opens_at_once(tmp_path: Path) -> None:
    """Below 2 MB with masks of random channels in all of 80 layers × 28,672, read and checked in less than a second of
    this process, and of the sizes that counting its channels gives."""
    facts, rng = large(), np.random.default_rng(0)
    keep, counts, queries, groups = [], [], 0, 0
    for _ in range(80):
        kept = np.flatnonzero(rng.random(28_672) < rng.uniform(0.2, 0.9))
        stay = sorted(rng.choice(8, rng.integers(1, 9), replace=False).tolist())
        heads = tuple(8 * group + head for group in stay for head in sorted(rng.choice(8, 5, replace=False).tolist()))
        keep.append(LayerKeep(heads=heads, channels=channel_mask(kept.tolist(), 28_672)))
        counts.append(len(kept))
        queries, groups = queries + len(heads), groups + len(stay)
    made = plan_of(facts, tuple(keep))
    path = save_plan(made, tmp_path / "plan.json")
    assert path.stat().st_size < 2_000_000
    load_plan(path)  # imports, which happen once, are not timed
    begun = time.process_time()
    found = load_plan(path)
    seconds = time.process_time() - begun
    assert found == made
    matrices = 8192 * 128 * (2 * queries + 2 * groups) + 3 * 8192 * sum(counts)
    table = 128_256 * 8192
    assert found.after.parameters == 2 * table + 8192 + 80 * 2 * 8192 + matrices
    assert found.after.bytes == 2 * found.after.parameters
    assert found.after.kv_bytes_per_token == 2 * groups * 128 * 2
    assert found.after.flops_per_token == 2 * (matrices + table) + 4 * 128 * (CONTEXT // 2) * queries
    assert found.after.bytes_read_per_token == 2 * (matrices + table) + CONTEXT * found.after.kv_bytes_per_token
    assert seconds < 1


def test_a_family_tells_where_its_channels_are() -> None:
    """The modules that this test names, and no others, hold them in every family that is supported."""
    for family in FAMILIES:
        architecture, layer = ARCHITECTURES[family], layers_of(make_pico(family, layers=1).model)[0]
        expected = of_family(family)
        assert {**architecture.mlp_inputs, architecture.mlp_output: 0} == expected
        wide = {name.rpartition(".")[0] for name, parameter in layer.named_parameters() if parameter.dim() == 2}
        attention = {*architecture.projections, architecture.output}
        assert wide - attention == set(expected)
