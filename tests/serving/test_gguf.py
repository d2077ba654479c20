"""GGUF files read back with the gguf package's reader: shapes, per-layer numbers, values, tokenizer, refusals."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from slim.core.errors import InputError, SlimError
from slim.models.load import load_model
from slim.models.units import NO_ATTENTION, Keep
from slim.pruning.checkpoint import prune
from slim.serving.gguf import export_gguf
from tests.commands import Run
from tests.gguf_files import GPT2, TEXT, trained
from tests.pico import keeping, make_pico, plan_of, save_pico, shorthand
from tests.pruning.test_refusals import little_room

FULL = keeping((0, 1, 2, 3, 4, 5)) * 4
GROUPED = keeping((), (0, 2, 3, 5), (3, 4, 5), (0, 1, 2, 3, 4, 5))
INNER = keeping((0, 1, 2, 3, 4, 5), (), (3, 4, 5), (0, 2, 3, 5))
UNIFORM = keeping((3, 4, 5), (0, 1, 2), (3, 4, 5), (0, 1, 2))
FEWER = keeping(None, *FULL[1:])
D = 8
CASES: dict[str, tuple[str, dict[str, Any], Keep, str]] = {
    "llama": ("llama", {}, FULL, "llama"),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}, GROUPED, "deci"),
    "llama-tied": ("llama", {"tie_word_embeddings": True}, INNER, "deci"),
    "llama-uniform": ("llama", {}, UNIFORM, "llama"),
    "llama-layers": ("llama", {}, FEWER, "llama"),
    "mistral": ("mistral", {}, INNER, "deci"),
    "mistral-uniform": ("mistral", {}, UNIFORM, "llama"),
    "qwen2": ("qwen2", {}, GROUPED, "deci"),
    "qwen2-uniform": ("qwen2", {}, UNIFORM, "qwen2"),
    "qwen3-uniform": ("qwen3", {}, UNIFORM, "qwen3"),
}
"""Family, settings, plan, llama.cpp's architecture."""
PLACES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""The names of a layer's parts in llama.cpp."""
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def by_words(digits: str) -> Any:
    """The cut of newer families: no word across a line's end, and digits in groups."""
    parts = [pre_tokenizers.Split(Regex(WORDS.format(digits)), "isolated")]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


CUTS = {
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "llama-bpe": by_words("{1,3}"),
    "qwen2": by_words(""),
}


def made(
    place: Path,
    family: str = "llama",
    keep: Keep = FULL,
    cut: Any = GPT2,
    dtype: torch.dtype = torch.float32,
    **extra: Any,
) -> Path:
    """The folder of a pruned model whose tokenizer has merges."""
    tokenizer = trained(cut, ignore_merges=cut is CUTS["llama-bpe"])
    loaded = make_pico(family, vocab_size=len(tokenizer) + 4, dtype=dtype, **extra)
    original = save_pico(replace(loaded, tokenizer=tokenizer), place / "original")
    return prune(plan_of(original.facts, keep), place / "pruned")


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata, and tensors as float32."""
    reader = GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    return values, {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def paired(weight: Tensor) -> Tensor:
    """Row 2i of a head is the row i that transformers rotates with row i + D/2, which comes after it."""
    order = [head * D + half * D // 2 + i for head in range(len(weight) // D) for i in range(D // 2) for half in (0, 1)]
    return weight[order]


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Keep, str]:
    """Folder, file, plan and architecture of each case."""
    family, extra, keep, arch = request.param
    place = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(place / "workspace"))
        folder = made(place, family, keep, **extra)
        exported = export_gguf(str(folder), place / "model.gguf")
    assert exported.architecture == arch
    assert exported.bytes == exported.path.stat().st_size
    assert bool(exported.notes) == (keep[0] == NO_ATTENTION)
    return folder, exported.path, keep, arch


def test_every_value_is_where_llama_cpp_looks_for_it(case: tuple[Path, Path, Keep, str]) -> None:
    """Each stored tensor once, under its name there, bit for bit; and nothing else but the head that adds nothing."""
    folder, file, keep, arch = case
    _, tensors = read(file)
    stored = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if tensor.numel()}
    expected = {}
    for name, tensor in stored.items():
        whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
        place = whole.get(name, "output.weight")
        if name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").split(".", 1)
            part, kind = part.rsplit(".", 1)
            place = f"blk.{layer}.{PLACES[part]}.{kind}"
        moved = arch in ("llama", "deci") and (".attn_q." in place or ".attn_k." in place)
        expected[place] = paired(tensor) if moved else tensor
    for place, tensor in expected.items():
        assert np.array_equal(tensors[place], tensor.numpy()), place
    silent = tensors.keys() - expected.keys()
    if keep[0] == NO_ATTENTION:
        assert silent == {f"blk.0.attn_{name}.weight" for name in ("norm", "q", "k", "v", "output")}
        assert not tensors["blk.0.attn_output.weight"].any()
        assert tensors["blk.0.attn_q.weight"].shape == (D, 24)
    else:
        assert not silent


def test_the_metadata_tells_every_layer(case: tuple[Path, Path, Keep, str]) -> None:
    """One number where layers are alike, else one for each, with 0 where the attention is gone."""
    folder, file, keep, arch = case
    values, _ = read(file)
    config = json.loads((folder / "config.json").read_text())
    stay = [heads for heads in shorthand(keep) if heads is not None]
    queries, keys = [len(heads) for heads in stay], [len({head // 3 for head in heads}) for heads in stay]
    if keep[0] == NO_ATTENTION:
        queries[0] = keys[0] = 1
    assert values["general.architecture"] == arch
    assert values[f"{arch}.block_count"] == len(stay)
    assert values[f"{arch}.attention.head_count"] == (queries if arch == "deci" else queries[0])
    assert values[f"{arch}.attention.head_count_kv"] == (keys if arch == "deci" else keys[0])
    assert values[f"{arch}.attention.key_length"] == values[f"{arch}.attention.value_length"] == D
    assert values[f"{arch}.rope.dimension_count"] == D
    assert values[f"{arch}.rope.freq_base"] == config["rope_parameters"]["rope_theta"]
    assert values[f"{arch}.feed_forward_length"] == 48
    assert values[f"{arch}.embedding_length"] == 24
    assert values[f"{arch}.context_length"] == 1024
    assert values[f"{arch}.attention.layer_norm_rms_epsilon"] == pytest.approx(config["rms_norm_eps"])
    assert values["general.file_type"] == 0


@pytest.mark.parametrize(
    ("chosen", "kind", "close"), [("f16", "F16", 1e-3), ("bf16", "BF16", 8e-3), ("q8_0", "Q8_0", 2e-2)]
)
def test_number_formats(tmp_path: Path, chosen: Any, kind: str, close: float) -> None:
    """Matrices in the chosen one, or float16 where their rows do not divide into its blocks; vectors in float32."""
    folder = made(tmp_path, hidden_size=96)
    exported = export_gguf(str(folder), tmp_path / "model.gguf", chosen)
    assert exported.number_format == chosen
    reader = GGUFReader(exported.path)
    stored = load_file(folder / "model.safetensors")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {kinds[f"blk.{layer}.attn_norm.weight"] for layer in range(4)} == {"F32"}
    assert {kinds[f"blk.{layer}.attn_v.weight"] for layer in range(4)} == {kind}
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if chosen == "q8_0" else kind)
    for name, place in (("self_attn.v_proj", "attn_v"), ("mlp.down_proj", "ffn_down")):
        expected = stored[f"model.layers.2.{name}.weight"].numpy()
        (found,) = (tensor for tensor in reader.tensors if tensor.name == f"blk.2.{place}.weight")
        values = dequantize(found.data, found.tensor_type)
        assert values.shape == expected.shape
        np.testing.assert_allclose(values, expected, rtol=close, atol=close)


def test_auto_keeps_the_stored_format(tmp_path: Path) -> None:
    """bfloat16 bit for bit."""
    folder = made(tmp_path, keep=INNER, dtype=torch.bfloat16)
    exported = export_gguf(str(folder), tmp_path / "model.gguf")
    assert exported.number_format == "bf16"
    reader = GGUFReader(exported.path)
    (found,) = (tensor for tensor in reader.tensors if tensor.name == "blk.2.attn_v.weight")
    assert found.tensor_type == GGMLQuantizationType.BF16
    expected = load_file(folder / "model.safetensors")["model.layers.2.self_attn.v_proj.weight"]
    assert np.array_equal(dequantize(found.data, found.tensor_type), expected.float().numpy())


def test_rope_factors(tmp_path: Path) -> None:
    """The divisors of each angle under llama 3 and linear scaling, by their definitions."""
    theta, low, high, old = 10000.0, 1.0, 4.0, 64
    scalings = {
        "linear": {"factor": 4.0},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": old,
        },
    }
    waves = [2 * math.pi * theta ** (2 * i / D) for i in range(D // 2)]
    llama3 = []
    for wave in waves:
        smooth = min(1.0, max(0.0, (old / wave - low) / (high - low)))
        llama3.append(1 / ((1 - smooth) / 8 + smooth))
    assert 1 < llama3[1] < 8
    expected = {"linear": [4.0] * 4, "llama3": llama3}
    for kind, scaling in scalings.items():
        rope = {"rope_type": kind, "rope_theta": theta, **scaling}
        folder = made(tmp_path / kind, keep=INNER, rope_parameters=rope)
        _, tensors = read(export_gguf(str(folder), tmp_path / f"{kind}.gguf").path)
        np.testing.assert_allclose(tensors["rope_freqs.weight"], expected[kind], rtol=1e-5)


def test_a_sliding_window_ends_the_context(tmp_path: Path) -> None:
    """llama.cpp would look past it."""
    folder = made(tmp_path, "mistral", sliding_window=100)
    exported = export_gguf(str(folder), tmp_path / "model.gguf")
    assert read(exported.path)[0]["llama.context_length"] == 100
    assert any("100 tokens" in note for note in exported.notes)


@pytest.mark.parametrize(
    ("family", "keep", "extra", "sentence"),
    [
        ("gemma2", FULL, {}, r"model_type='gemma2': .*llama, mistral, qwen2, qwen3"),
        ("qwen3", INNER, {}, r"model_type='qwen3': .*query and key norms.*--uniform"),
        ("llama", FULL, {"hidden_act": "gelu"}, r"hidden_act='gelu'"),
        (
            "llama",
            FULL,
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            r"rope_type='yarn'",
        ),
        (
            "qwen2",
            FULL,
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
            r"rope_type='linear': .*'qwen2'",
        ),
    ],
)
def test_what_gguf_cannot_hold_is_refused_by_name(
    tmp_path: Path, family: str, keep: Keep, extra: dict[str, Any], sentence: str
) -> None:
    """And no file is left."""
    folder = made(tmp_path, family, keep, **extra)
    with pytest.raises(InputError, match=sentence):
        export_gguf(str(folder), tmp_path / "model.gguf")
    assert not [file for file in tmp_path.iterdir() if "model.gguf" in file.name]


def test_an_existing_file_stays_as_it_is(tmp_path: Path) -> None:
    """Said before the model is loaded."""
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(InputError, match=r"model\.gguf' exists: name a new file"):
        export_gguf(str(made(tmp_path)), tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_text() == "mine"


def test_a_real_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """Before anything is written, in the metadata, or in the middle of the weights."""
    folder = made(tmp_path)
    size = export_gguf(str(folder), tmp_path / "model.gguf").bytes
    refused = []
    for room in range(size - 40_000, size + 8_192, 8_192):
        place = tmp_path / f"disk-{room}"
        with little_room(place, room):
            try:
                export_gguf(str(folder), place / "model.gguf")
            except SlimError as error:
                refused.append(str(error))
                assert list(place.iterdir()) == []
            else:
                assert (place / "model.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()
                break
    assert "its disk has" in refused[0]
    assert "no space left" in refused[-1] or "could not be written" in refused[-1]
    assert len(refused) < 6


@pytest.mark.parametrize("name", CUTS)
def test_a_tokenizer_is_written_as_llama_cpp_reads_it(tmp_path: Path, name: str) -> None:
    """Its tokens in order, what kind each is, its merges, its special tokens, and what its cut is called."""
    folder = made(tmp_path, cut=CUTS[name])
    values, tensors = read(export_gguf(str(folder), tmp_path / "model.gguf").path)
    tokenizer = trained(CUTS[name], ignore_merges=name == "llama-bpe")
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert values["tokenizer.ggml.pre"] == name
    known = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert values["tokenizer.ggml.tokens"] == [*known, "[PAD320]", "[PAD321]", "[PAD322]", "[PAD323]"]
    assert values["tokenizer.ggml.token_type"] == [3] * 3 + [1] * (len(known) - 3) + [5] * 4
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    assert values["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges]
    assert [values[f"tokenizer.ggml.{token}_token_id"] for token in ("padding", "bos", "eos")] == [0, 1, 2]
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert len(tensors["token_embd.weight"]) == len(known) + 4


def test_the_tokenizer_of_a_gguf_original_is_kept(tmp_path: Path) -> None:
    """transformers forgets how the text is cut when it reads one; but one with other tokens is not taken over."""
    first = export_gguf(str(made(tmp_path, cut=CUTS["smollm"])), tmp_path / "first.gguf").path
    original = load_model(str(first), device="cpu")
    folder = prune(plan_of(original.facts, INNER), tmp_path / "again")
    expected = {name: value for name, value in read(first)[0].items() if name.startswith("tokenizer.")}
    assert expected["tokenizer.ggml.pre"] == "smollm"
    for name, source in (("second", first), ("third", folder)):
        values, _ = read(export_gguf(str(source), tmp_path / f"{name}.gguf").path)
        assert {name: value for name, value in values.items() if name.startswith("tokenizer.")} == expected
    trained(CUTS["llama-bpe"], ignore_merges=True).save_pretrained(folder)
    values, _ = read(export_gguf(str(folder), tmp_path / "fourth.gguf").path)
    assert values["tokenizer.ggml.pre"] == "llama-bpe"


def ending(folder: Path, *more: int) -> Path:
    """The folder of a model whose template ends a turn with `<pad>`, 0, and whose generation config names `more`."""
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}<pad>{% endfor %}")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(more)}))
    return folder


@pytest.mark.parametrize(("more", "ids"), [((), (2, 0, None)), ((2, 7), (2, 0, 7)), ((9, 7, 2), (2, 0, 9))])
def test_the_file_names_every_end(tmp_path: Path, more: tuple[int, ...], ids: tuple[int | None, ...]) -> None:
    """The tokenizer's, the turn's, and one of the generation config; another one is named in a note."""
    exported = export_gguf(str(ending(made(tmp_path), *more)), tmp_path / "model.gguf")
    values, _ = read(exported.path)
    assert tuple(values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")) == ids
    assert len(exported.notes) == (len(more) > 2)
    assert all("a file names three tokens" in note for note in exported.notes)
    assert load_model(str(exported.path), device="cpu").stops == tuple(sorted(one for one in ids if one is not None))
    found, _ = read(export_gguf(str(exported.path), tmp_path / "again.gguf").path)
    assert tuple(found.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")) == ids


def test_a_model_without_an_end_names_a_token_that_no_text_has(tmp_path: Path) -> None:
    """llama.cpp assumes an ordinary word otherwise."""
    folder = made(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    exported = export_gguf(str(folder), tmp_path / "model.gguf")
    values, _ = read(exported.path)
    assert values["tokenizer.ggml.tokens"][values["tokenizer.ggml.eos_token_id"]] == "[PAD320]"
    assert "names no token that ends an answer" in " ".join(exported.notes)


def test_the_chat_template_goes_along(tmp_path: Path) -> None:
    """As it is."""
    folder = made(tmp_path)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    values, _ = read(export_gguf(str(folder), tmp_path / "model.gguf").path)
    assert values["tokenizer.chat_template"] == "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    """Words without pairs, and one with more tokens than the model has embeddings."""
    save_pico(make_pico("llama", vocab_size=64), tmp_path / "words")
    loaded = make_pico("llama", vocab_size=300)
    loaded.model.save_pretrained(tmp_path / "more")
    trained(GPT2).save_pretrained(tmp_path / "more")
    for name, sentence in (("words", "tokenizer=WordLevel"), ("more", "20 tokens, .* beyond the 300 rows")):
        with pytest.raises(InputError, match=sentence):
            export_gguf(str(tmp_path / name), tmp_path / "model.gguf")


def test_layers_that_differ_are_not_read_back(tmp_path: Path) -> None:
    """As a model they are refused for that reason, and the folder they came from is what to name."""
    export_gguf(str(made(tmp_path, keep=GROUPED)), tmp_path / "one.gguf")
    with pytest.raises(InputError, match=r"one.gguf'?: its layers differ .* folder that it was exported from"):
        load_model(str(tmp_path / "one.gguf"))


def test_the_command_prints_for_people_and_for_programs(run: Run, tmp_path: Path) -> None:
    """The file that was written and the notes are printed; the same as JSON; bad input is one line."""
    folder = made(tmp_path, keep=GROUPED)
    shown = run("export", folder, "--format", "gguf", "--output", tmp_path / "one.gguf")
    assert shown.code == 0, shown.err
    assert "deci" in shown.out
    assert "Note: layer 0 is written with one head" in shown.out
    assert f"File: {tmp_path / 'one.gguf'}" in shown.out
    told = json.loads(run("export", folder, "--type", "f16", "--output", tmp_path / "two.gguf", "--json").out)
    assert (told["format"], told["architecture"], told["type"]) == ("gguf", "deci", "f16")
    assert told["bytes"] == (tmp_path / "two.gguf").stat().st_size < (tmp_path / "one.gguf").stat().st_size
    assert len(told["notes"]) == 1
    for arguments in ((folder, "--output", tmp_path / "one.gguf"), (tmp_path, "--output", tmp_path / "x.gguf")):
        refused = run("export", *arguments)
        assert refused.code == 2
        assert len(refused.err.splitlines()) == 1


def test_a_cut_without_a_name_is_refused(tmp_path: Path) -> None:
    """Guessing one would give other tokens than the model knows."""
    odd = {
        "whitespace": pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), GPT2]),
        "none": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    }
    for name, cut in odd.items():
        with pytest.raises(InputError, match=r"tokenizer: .*gpt-2, smollm, llama-bpe, qwen2"):
            export_gguf(str(made(tmp_path / name, cut=cut)), tmp_path / "model.gguf")


def test_a_tokenizer_that_falls_back_to_bytes(tmp_path: Path) -> None:
    """The older kind: pieces with a mark for the space, scores in the order of their merges, and a byte each."""
    tokenizer = sentencepiece()
    loaded = replace(make_pico("mistral", vocab_size=len(tokenizer)), tokenizer=tokenizer)
    save_pico(loaded, tmp_path / "model")
    values, _ = read(export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf").path)
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.add_space_prefix"] is True
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert kinds[:3] == [2, 3, 3]
    assert [tokens[index] for index, kind in enumerate(kinds) if kind == 6] == [
        f"<0x{byte:02X}>" for byte in range(256)
    ]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    made_by = ["".join(merge) for merge in merges]
    scores = dict(zip(tokens, values["tokenizer.ggml.scores"], strict=True))
    ordered = [scores[piece] for piece in dict.fromkeys(made_by)]
    assert ordered == sorted(ordered, reverse=True)
    assert len(set(ordered)) == len(ordered) > 20


def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes them."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT.split(), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
