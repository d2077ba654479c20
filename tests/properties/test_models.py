"""Whatever a model folder or a GGUF file claims: a model that is what it says, or one clean line."""

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from slim.data.encode import encode, text_of
from slim.data.omissions import RowLeftOut
from slim.data.templates import Example
from slim.models.folder_check import read_folder
from slim.models.gguf_header import check_gguf
from slim.models.load import load_model
from slim.models.tokenizer import facts_at_hand, load_tokenizer
from slim.pruning import checkpoint
from slim.pruning.checkpoint import prune
from tests.fuzz import NUMBERS, ODD, cases, clean, damaged, edited, json_files
from tests.pico import keeping, make_pico, plan_of, save_pico

KEEP = keeping((), (0, 2, 3, 5), (3, 4, 5), (0, 1, 2, 3, 4, 5))
WEIGHTS = "model.safetensors"
ASKED = Example("What?", "This.", (("user", "What?"),))


class Folder:
    """A model folder whose files are good but for the one that was put last."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.good = {file.name: file.read_bytes() for file in path.iterdir()}

    def put(self, name: str, content: bytes) -> None:
        for file in self.path.iterdir():
            if file.name not in self.good:
                file.unlink()
        for file, was in self.good.items():
            (self.path / file).write_bytes(content if file == name else was)
        if name not in self.good:
            (self.path / name).write_bytes(content)

    def raw(self, name: str) -> Any:
        return json.loads(self.good[name])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def original(home: Path) -> Folder:
    """A qwen2: its config's class checks little by itself."""
    save_pico(make_pico("qwen2"), home / "original")
    return Folder(home / "original")


@pytest.fixture(scope="module")
def pruned(original: Folder, home: Path) -> Folder:
    """A checkpoint of it whose layers differ."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(home / "workspace"))
        original.put("config.json", original.good["config.json"])
        facts = load_model(original.name, device="cpu", dtype="float64").facts
        return Folder(prune(plan_of(facts, KEEP), home / "pruned"))


def look(folder: Folder) -> None:
    """The first look at a folder, and what is made of it."""
    found = clean(lambda: read_folder(folder.name, folder.path), folder.name)
    facts = clean(lambda: facts_at_hand(folder.name))
    if found is not None and facts is not None:
        assert facts.layers <= len(found.shapes)


def test_configs(original: Folder) -> None:
    """config.json of a model whose layers are alike."""

    @given(json_files(original.raw("config.json")))
    def every(content: bytes) -> None:
        original.put("config.json", content)
        look(original)

    every()


LAYER = st.one_of(
    st.just({"skip": ["attention"]}),
    st.fixed_dictionaries({"num_attention_heads": NUMBERS, "num_key_value_heads": NUMBERS}),
    edited({"num_attention_heads": 4, "num_key_value_heads": 2}),
    ODD,
)
PLACES = st.one_of(st.integers(-1, 12).map(str), st.sampled_from(["01", "", "first", "9" * 30, "٣", "1.0", " 1"]))


def test_layers_of_their_own(pruned: Folder) -> None:
    """`per_layer_config`, alone and with the rest of the config."""
    config = pruned.raw("config.json")
    layered = st.dictionaries(PLACES, LAYER, max_size=5).map(lambda own: json.dumps(config | {"per_layer_config": own}))
    edits = edited(config["per_layer_config"]).map(lambda own: json.dumps(config | {"per_layer_config": own}))

    @given(st.one_of(layered.map(str.encode), edits.map(str.encode), json_files(config)))
    def every(content: bytes) -> None:
        pruned.put("config.json", content)
        look(pruned)

    every()


def test_loads(pruned: Folder) -> None:
    """The whole load of folders that the first look lets pass, too."""
    names = st.sampled_from(["config.json", "config.json", "generation_config.json", "tokenizer_config.json"])
    files = names.flatmap(lambda name: st.tuples(st.just(name), json_files(pruned.raw(name))))

    @cases(0.4)
    @given(files)
    def every(file: tuple[str, bytes]) -> None:
        pruned.put(*file)
        found = clean(lambda: load_model(pruned.name, device="cpu"), pruned.name)
        if found is not None:
            shapes = {name: tuple(tensor.shape) for name, tensor in load_file(pruned.path / WEIGHTS).items()}
            assert sum(np.prod(shape) for shape in found.facts.shapes.values()) == sum(map(np.prod, shapes.values()))

    every()


def _with_header(content: bytes, header: Any, said: int | None = None) -> bytes:
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(header).encode()
    return (len(text) if said is None else said).to_bytes(8, "little") + text + content[8 + length :]


def test_headers_of_weights(original: Folder) -> None:
    """Shapes, formats and offsets that are not those of the file."""
    good = original.good[WEIGHTS]
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    sizes = st.one_of(st.none(), st.sampled_from([0, 1, 2**31, 2**60, 2**64 - 1]))
    headers = st.builds(_with_header, st.just(good), edited(header), sizes)

    @given(st.one_of(headers, headers, damaged(good)))
    def every(content: bytes) -> None:
        original.put(WEIGHTS, content)
        look(original)

    every()


def test_indexes_of_weights(original: Folder) -> None:
    """An index in place of the weights: it names files of the folder or nothing."""
    index = {
        "metadata": {"total_size": 9},
        "weight_map": {"model.norm.weight": "a.safetensors", "b": "../x.safetensors"},
    }

    @given(json_files(index))
    def every(content: bytes) -> None:
        original.put(f"{WEIGHTS}.index.json", content)
        (original.path / WEIGHTS).rename(original.path / "a.safetensors")
        look(original)

    every()


def test_recipes(pruned: Folder) -> None:
    """The plan in a checkpoint."""

    @given(json_files(pruned.raw(checkpoint.PLAN_FILE)))
    def every(content: bytes) -> None:
        pruned.put(checkpoint.PLAN_FILE, content)
        found = clean(lambda: checkpoint.recipe(pruned.path), pruned.name)
        if found is not None:
            assert checkpoint.model_card(found)

    every()


TEMPLATES = st.sampled_from(
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages[9].content }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{% if",
        "{{ raise_exception('no\nway') }}",
        "{{ ().__class__.__mro__ }}",
        "{% include 'x' %}",
        "{{ 'a' * 10 }}",
    ]
)


def test_tokenizers(original: Folder) -> None:
    """tokenizer.json, its config with a chat template, and what is encoded by them."""
    config = original.raw("tokenizer_config.json") | {"chat_template": "{{ messages[0].content }}"}
    templated = st.one_of(TEMPLATES, ODD).map(lambda text: json.dumps(config | {"chat_template": text}).encode())
    configs = st.one_of(templated, json_files(config)).map(lambda content: ("tokenizer_config.json", content))
    tokens = json_files(original.raw("tokenizer.json")).map(lambda content: ("tokenizer.json", content))
    chat = st.one_of(TEMPLATES.map(str.encode), st.binary(max_size=9)).map(
        lambda content: ("chat_template.jinja", content)
    )

    @given(st.one_of(configs, tokens, tokens, chat))
    def every(file: tuple[str, bytes]) -> None:
        original.put(*file)
        found = clean(lambda: load_tokenizer(original.name), original.name)
        if found is not None:
            with suppress(RowLeftOut):
                clean(lambda: text_of(ASKED, found))
            clean(lambda: encode([ASKED], found, 16, "answer"))

    every()


def _gguf(path: Path) -> bytes:
    """A small file with a setting of every kind, a vocabulary and two tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(16)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bool("any.switch", True)
    writer.add_array("any.list", [1, 2, 3])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", "<s>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(3)
    writer.add_tensor("token_embd.weight", np.ones((4, 8), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@st.composite
def _counted_wrong(draw: st.DrawFn, good: bytes) -> bytes:
    """A number somewhere in the header is replaced by one that no file could hold."""
    content = bytearray(good)
    start = draw(st.integers(4, len(good) - 9))
    content[start : start + 8] = struct.pack(
        "<Q", draw(st.sampled_from([0, 1, 2**16, 2**22, 2**31, 2**40, 2**63, 2**64 - 1]))
    )
    return bytes(content)


def test_gguf_files(home: Path) -> None:
    """A header that is taken is read to its end by the library: no list is longer than the file."""
    good, file = _gguf(home / "good.gguf"), home / "any.gguf"
    check_gguf(home / "good.gguf")

    @given(st.one_of(_counted_wrong(good), _counted_wrong(good), damaged(good)))
    def every(content: bytes) -> None:
        file.write_bytes(content)
        if clean(lambda: check_gguf(file) or True, str(file)):
            clean(lambda: load_tokenizer(str(file)), str(file))

    every()
