"""Targets by name, the rules of each runtime, and the bytes of each format beside those that llama.cpp writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.models.units import Keep, whole_model
from slim.planning.served_size import ServedSizes, fallen_back, matrices, served_bytes
from slim.planning.valid_choices import check_valid, valid_choices
from slim.pruning.checkpoint import prune
from slim.serving.gguf import NumberFormat, export_gguf
from slim.serving.quantize import quantize_file
from slim.serving.source_types import FILE_TYPES
from slim.targets.target import known_formats, known_runtimes, target
from tests.gguf_files import GPT2, trained
from tests.pico import keeping, make_pico, plan_of, save_pico

WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 9,
}
MIXED = ((), (0, 1, 4, 5), (0, 2, 5, 6), None, tuple(range(8)), (2,), (0, 1, 2, 3), (0, 4), (1, 2, 3, 5, 6, 7))
MODELS = {
    "as it was": ("llama", WIDE, None),
    "layers differ": ("llama", WIDE, MIXED),
    "narrow rows": ("llama", {"hidden_size": 96, "intermediate_size": 64}, ((0, 1), (0, 3), (), (0, 1, 2, 3, 4, 5))),
    "own head": ("qwen2", {**WIDE, "tie_word_embeddings": False}, None),
    "alike": ("qwen3", WIDE, ((0, 1, 4, 5),) * 9),
}


@pytest.fixture(scope="module", params=MODELS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFacts, Keep, Path]:
    """A model, what stays of it, and the file that is exported from that in float32."""
    family, settings, kept = MODELS[request.param]
    folder = tmp_path_factory.mktemp("written")
    loaded = replace(make_pico(family, vocab_size=324, **settings), tokenizer=trained(GPT2))
    facts = save_pico(loaded, folder / "model").facts
    if kept is None:
        return facts, whole_model(facts), export_gguf(str(folder / "model"), folder / "f32.gguf", "f32").path
    keep = keeping(*kept)
    small = prune(plan_of(facts, keep), folder / "small")
    return facts, keep, export_gguf(str(small), folder / "f32.gguf", "f32").path


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_bytes_are_those_that_llama_cpp_writes(
    written: tuple[ModelFacts, Keep, Path], kind: str, tmp_path: Path
) -> None:
    """To the byte, of all tensors; and each tensor has the type of the projection."""
    facts, keep, file = written
    aim = target(f"llama.cpp:{kind}")
    quantize_file(file, tmp_path / "made.gguf", kind)
    tensors = GGUFReader(tmp_path / "made.gguf").tensors
    assert sum(int(tensor.n_bytes) for tensor in tensors) == served_bytes(facts, keep, aim)
    sizes = sorted((tuple(map(int, reversed(tensor.shape))), int(tensor.n_bytes)) for tensor in tensors)
    assert aim.format is not None
    told = [(one.shape, aim.format.bytes_of(one)) for one in matrices(facts, keep, silent=True)]
    assert sizes == sorted(told)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_bytes_are_those_that_slim_writes(
    written: tuple[ModelFacts, Keep, Path], kind: NumberFormat, tmp_path: Path
) -> None:
    """The formats that need no quantiser; llama.cpp's own stores the output head in more bits, and Slim does not."""
    facts, keep, file = written
    source = file.with_name("small" if file.with_name("small").is_dir() else "model")
    made = export_gguf(str(source), tmp_path / "made.gguf", kind)
    size = sum(int(tensor.n_bytes) for tensor in GGUFReader(made.path).tensors)
    assert size == served_bytes(facts, keep, target(f"llama.cpp:{kind}"))


def test_shares_of_layers_add_up(written: tuple[ModelFacts, Keep, Path]) -> None:
    """Exactly where a format does not count layers; of a whole model always."""
    facts, keep, _ = written
    for kind in ("f16", "q4_0", "q6_k", "q4_k_m"):
        sizes = ServedSizes(facts, target(f"llama.cpp:{kind}"))
        shares = [sizes.of_layer(layer, kept, facts.group) for layer, kept in enumerate(keep)]
        if kind != "q4_k_m":
            assert sizes.fixed + sum(shares) == sizes.of(keep, facts.group)
        whole = whole_model(facts)
        assert sizes.fixed + sum(map(sizes.of_layer, range(facts.layers), whole, [facts.group] * facts.layers)) == (
            sizes.of(whole, facts.group)
        )


def test_rows_that_do_not_fit_are_told() -> None:
    """At 3 heads of 64 a row has 192 numbers, at 4 it has 256."""
    facts = make_pico("llama", **WIDE).facts
    aim = target("llama.cpp:q4_k_m")
    keep = keeping((0, 1, 2), (0, 1, 4, 5), *[None] * 7)
    outputs = {name: type_ for name, type_ in fallen_back(facts, keep, aim).items() if "o_proj" in name}
    assert outputs == {"model.layers.0.self_attn.o_proj.weight": "Q5_0"}


@pytest.mark.parametrize("name", ["vllm:tp=2", "llama.cpp:q4_k_m", "transformers", "vllm:fp8,tp=4", "sglang:bf16"])
def test_a_target_says_its_name(name: str) -> None:
    """And is read again from it."""
    assert target(name).name == name
    assert target(target(name).name) == target(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vlm", "'vlm' is not a runtime .* did you mean 'vllm'"),
        ("llama.cpp:q4km", "'q4km' is not a number format .* did you mean 'q4_k_m'"),
        ("vllm:q4_k_m", "'q4_k_m' is not a number format"),
        ("llama.cpp:tp=2", "splits no layers among devices"),
        ("vllm:tp=0", "tp=0 must be a number of devices"),
        ("vllm:pp=2", "'pp' is not a setting"),
    ],
)
def test_what_is_not_known_is_refused(name: str, why: str) -> None:
    """In one sentence, with what is known."""
    with pytest.raises(InputError, match=why):
        target(name)


def test_every_runtime_names_formats_that_there_are() -> None:
    """And says where its rules are from."""
    for runtime in known_runtimes().values():
        assert runtime.source
        assert set(runtime.formats) <= known_formats().keys()
    assert all(one.source and one.name == name for name, one in known_formats().items())


def test_each_rule_leaves_the_shapes_that_it_should() -> None:
    """Of 6 query heads in 2 KV groups of 3, by hand."""
    facts = make_pico("llama").facts
    assert (facts.heads, facts.kv_heads) == (6, 2)

    def shapes(*names: str) -> list[list[tuple[int, int]]]:
        return [sorted(one.shapes) for one in valid_choices(facts, "head", [target(name) for name in names])]

    every = [(n, m) for n in (1, 2) for m in (1, 2, 3)]
    assert shapes() == shapes("transformers") == shapes("vllm") == shapes("llama.cpp") == [every]
    assert shapes("vllm:tp=2") == [[(1, 2), (2, 1), (2, 2), (2, 3)]]
    assert shapes("vllm:tp=3") == [[(1, 3)]]
    assert shapes("nemotron_nas") == [[(1, 1)], [(1, 2), (2, 1)], [(1, 3)], [(2, 2)], [(2, 3)]]
    assert shapes("onnxruntime_genai") == [[one] for one in [(1, 1), (1, 2), (2, 1), (1, 3), (2, 2), (2, 3)]]
    assert shapes("nemotron_nas", "vllm:tp=2") == [[(1, 2), (2, 1)], [(2, 2)], [(2, 3)]]


def test_what_may_lack_its_attention() -> None:
    """Not everywhere, and whole layers may go everywhere."""
    facts = make_pico("llama").facts
    for name, there in (("vllm", True), ("onnxruntime_genai", False), ("llama.cpp", True)):
        assert all((one.gone is not None) == there for one in valid_choices(facts, "head", [target(name)]))
        assert all(one.gone is not None for one in valid_choices(facts, "layer", [target(name)]))
    qwen3 = make_pico("qwen3").facts
    assert len(valid_choices(qwen3, "head", [target("llama.cpp")])) > 1
    assert all(one.gone is None for one in valid_choices(qwen3, "head", [target("llama.cpp")]))


@pytest.mark.parametrize(
    ("name", "keep", "why"),
    [
        ("vllm:tp=2", ((0,), None, None, None), "layer 0 has 1 query and 1 KV heads, and 2 devices need a multiple"),
        ("onnxruntime_genai", ((), None, None, None), "lacks the attention block of layer 0"),
        ("sglang", ((0, 1), None, None, None), "layers must be alike"),
        ("mlx", ((0, 1), None, None, None), "takes all 6 query heads of a layer or none|make up the model's width"),
    ],
)
def test_a_model_that_a_target_does_not_take(name: str, keep: tuple[tuple[int, ...] | None, ...], why: str) -> None:
    """The layer and the rule are named."""
    facts = make_pico("llama").facts
    full = tuple(range(facts.heads))
    with pytest.raises(InputError, match=why):
        check_valid(facts, keeping(*(full if kept is None else kept for kept in keep)), target(name))


def test_a_family_that_a_target_does_not_take() -> None:
    """By its name."""
    with pytest.raises(InputError, match=r"llama\.cpp takes llama, mistral, qwen2, qwen3 pruned, and this is gpt2"):
        valid_choices(make_pico("gpt2").facts, "head", [target("llama.cpp")])
    with pytest.raises(InputError, match="rows of a multiple of 128 numbers, not 24, which pruning does not change"):
        valid_choices(make_pico("llama").facts, "head", [target("vllm:int4")])
