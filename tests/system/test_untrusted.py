"""Folders and plan files that somebody made to do harm, or that were damaged: one sentence, and nothing is run."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slim.core.errors import InputError
from slim.models.load import Loaded, load_model
from slim.models.original import PLAN_FILE
from slim.models.tokenizer import facts_at_hand
from slim.planning.files import load_plan
from slim.planning.record import Plan
from slim.pruning.checkpoint import prune, recipe
from tests.pico import keeping, plan_of, save_pico
from tests.surgery import IDS, WHOLE, logits

KEEP = keeping((), (0, 2, 3, 5), (3, 4, 5), WHOLE)
Edit = Callable[[Path], Any]
HARM = """
from pathlib import Path
Path({marker!r}).touch()
raise SystemExit("a folder's code was run")
"""


@pytest.fixture
def original(pico: Callable[..., Loaded], tmp_path: Path) -> Loaded:
    """A qwen2 in a folder: its config's class checks little by itself."""
    return save_pico(pico("qwen2"), tmp_path / "original")


@pytest.fixture
def folder(original: Loaded, tmp_path: Path) -> Path:
    """A checkpoint of it whose layers differ."""
    return prune(plan_of(original.facts, KEEP), tmp_path / "pruned")


def config(**changes: Any) -> Edit:
    """Changes settings of a folder's config."""

    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def file(name: str, content: str | bytes) -> Edit:
    """Writes a file in a folder."""
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def tensors(change: Callable[[dict[str, Any]], Any]) -> Edit:
    """Changes the tensors of a folder's weights."""

    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return edit


def cut_off(share: float) -> Edit:
    """Leaves the first part of the weights' file."""

    def edit(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: int(len(content) * share)])

    return edit


def pickled(folder: Path) -> None:
    """The weights as torch saved them before there was a safe format."""
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def indexed(name: str) -> Edit:
    """An index that sends the reader elsewhere."""

    def edit(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return edit


Q = "model.layers.1.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[Edit, str]] = {
    "heads": (config(num_attention_heads=10**9), "config asks for"),
    "KV heads": (config(num_key_value_heads=10**9), "config asks for|not a model folder|multiple"),
    "head size": (config(head_dim=10**9), "config asks for"),
    "width": (config(intermediate_size=10**9), "config asks for"),
    "vocabulary": (config(vocab_size=10**12), "config asks for"),
    "beyond 64 bits": (config(intermediate_size=10**30), "'.*original' is not a model folder"),
    "layers": (config(num_hidden_layers=10**9), r"num_hidden_layers=1000000000 and its weights hold 4 layers"),
    "one layer more": (
        config(num_hidden_layers=5, layer_types=["full_attention"] * 5),
        "num_hidden_layers=5 and its weights hold 4 layers",
    ),
    "one layer less": (
        config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        "num_hidden_layers=3 and its weights hold 4 layers",
    ),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers=0"),
    "layers in words": (config(num_hidden_layers="four"), "num_hidden_layers=four"),
    "no heads": (config(num_attention_heads=0), "not a model folder"),
    "negative": (config(intermediate_size=-4), "not a model folder"),
    "words": (config(intermediate_size="wide"), "not a model folder"),
    "activation": (config(hidden_act="import os"), "not a model folder"),
    "rope": (config(rope_parameters=[1, {}]), "not a model folder"),
    "family": (config(model_type=["llama"]), "names no model_type"),
    "list": (file("config.json", "[1, 2]"), "not a JSON object"),
    "deep": (file("config.json", "[" * 100_000), "config.json cannot be read"),
    "binary": (file("config.json", b"\xff\xfe\x00"), "config.json cannot be read"),
    "quantised": (config(quantization_config={"quant_method": "bitnet"}), "quantised whenever it runs"),
    "elsewhere": (config(transformers_weights="../other.safetensors"), "weights that are not its own"),
    "adapter": (file("adapter_config.json", '{"base_model_name_or_path": "x/y"}'), "holds an adapter"),
    "pickle": (pickled, "no safetensors weights"),
    "index away": (indexed("../original/model.safetensors"), "is not a file in the folder"),
    "index absolute": (indexed("/etc/passwd"), "is not a file in the folder"),
    "index of nothing": (indexed("model-00002-of-00002.safetensors"), "is not a file in the folder"),
    "index of no map": (
        lambda folder: (indexed("x")(folder), file("model.safetensors.index.json", "{}")(folder)),
        "stored as nothing",
    ),
    "half": (cut_off(0.5), "model.safetensors is cut off or damaged"),
    "no end": (cut_off(0.999), "model.safetensors is cut off or damaged"),
    "half a header": (cut_off(0.002), "model.safetensors is cut off or damaged"),
    "empty": (cut_off(0), "model.safetensors is cut off or damaged"),
    "header of a petabyte": (file("model.safetensors", struct.pack("<Q", 2**50) + b"{}"), "cut off or damaged"),
    "overlapping": (
        file(
            "model.safetensors",
            struct.pack("<Q", 108)
            + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            + b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(54)
            + bytes(4),
        ),
        "cut off or damaged",
    ),
    "missing tensor": (tensors(lambda state: state.pop(Q)), f"tensor '{Q}' is missing"),
    "other shape": (
        tensors(lambda state: state.update({Q: torch.zeros(3, 5)})),
        r"q_proj.weight' is \[3, 5\] and its config asks for \[48, 24\]",
    ),
    "whole numbers": (
        tensors(lambda state: state.update({name: tensor.to(torch.int8) for name, tensor in state.items()})),
        "stored as I8",
    ),
}
LAYERS: dict[str, tuple[Any, str]] = {
    "a list": ([1], "per_layer_config in config.json is not an object"),
    "no object": ({"0": []}, r"per_layer_config\[0\] is not what Slim writes"),
    "another setting": ({"0": {"vocab_size": 5}}, r"per_layer_config\[0\] is not what Slim writes"),
    "another skip": ({"0": {"skip": ["mlp"]}}, r"per_layer_config\[0\] is not what Slim writes"),
    "truth": ({"0": {"num_attention_heads": True}}, r"per_layer_config\[0\] is not what Slim writes"),
    "no number": ({"first": {"skip": ["attention"]}}, "not a model folder"),
    "no such layer": ({"4": {"skip": ["attention"]}}, "not a model folder"),
    "no groups": ({"1": {"num_attention_heads": 4, "num_key_value_heads": 3}}, "must be a multiple"),
    "no heads": ({"1": {"num_attention_heads": 0, "num_key_value_heads": 0}}, "must be a multiple"),
    "many heads": (
        {"0": {"skip": ["attention"]}, "1": {"num_attention_heads": 10**9, "num_key_value_heads": 1}},
        "config asks for",
    ),
    "other heads": (
        {"0": {"skip": ["attention"]}, "1": {"num_attention_heads": 2, "num_key_value_heads": 2}},
        "config asks for",
    ),
    "a block that is not there": ({}, r"layers\.0\.self_attn\.q_proj\.weight' is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused(original: Loaded, name: str) -> None:
    """In one sentence that names it, by the load and by the look that comes before."""
    folder, (edit, words) = Path(original.facts.source), BROKEN[name]
    edit(folder)
    with pytest.raises(InputError, match=words) as caught:
        load_model(str(folder), device="cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LAYERS)
def test_broken_layers_are_refused(folder: Path, name: str) -> None:
    """The settings of single layers in a config are checked like everything else."""
    per_layer, words = LAYERS[name]
    config(per_layer_config=per_layer)(folder)
    with pytest.raises(InputError, match=words) as caught:
        load_model(str(folder), device="cpu")
    assert str(folder) in str(caught.value)


def test_the_first_look_is_as_careful(original: Loaded) -> None:
    """A page asks for a model's shape without its weights."""
    folder = Path(original.facts.source)
    facts = facts_at_hand(str(folder))
    assert facts is not None
    assert facts.shapes == original.facts.shapes
    config(num_hidden_layers=10**9)(folder)
    with pytest.raises(InputError, match="num_hidden_layers"):
        facts_at_hand(str(folder))


def test_no_code_of_a_folder_is_run(folder: Path, tmp_path: Path) -> None:
    """Whatever its config, its generation config and its tokenizer point at; and no kernel is fetched by name."""
    expected = logits(load_model(str(folder), device="cpu", dtype="float64"))
    marker = tmp_path / "marker"
    harm = HARM.format(marker=str(marker))
    (folder / "custom_generate").mkdir()
    for name in ("modeling_slim.py", "harm.py", "custom_generate/generate.py"):
        file(name, harm)(folder)
    config(
        auto_map={
            "AutoConfig": "harm.Config",
            "AutoModel": "harm.Model",
            "AutoModelForCausalLM": "harm.Model",
            "AutoTokenizer": ["harm.Tokenizer", "harm.Tokenizer"],
        },
        _attn_implementation="nobody/kernel",
    )(folder)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["harm.Tokenizer", "harm.Tokenizer"]}
    file("tokenizer_config.json", json.dumps(tokenizer))(folder)
    loaded = load_model(str(folder), device="cpu", dtype="float64")
    assert torch.equal(logits(loaded), expected)
    loaded.model.generate(IDS, max_new_tokens=2, do_sample=False)  # type: ignore[operator]
    facts_at_hand(str(folder))
    assert not marker.exists()
    with pytest.raises(SystemExit, match="a folder's code was run"):  # the trap works
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def test_the_recipe_in_a_folder_is_checked(folder: Path, original: Loaded, tmp_path: Path) -> None:
    """Its plan must have valid shapes and be the plan of these weights."""
    assert recipe(folder).keep == KEEP
    whole = plan_of(original.facts, keeping(WHOLE, *KEEP[1:]))
    (folder / PLAN_FILE).write_text(whole.model_dump_json())
    with pytest.raises(InputError, match=r"slim_plan\.json is that of another model"):
        recipe(folder)
    (folder / PLAN_FILE).write_text("{")
    with pytest.raises(InputError, match="is not valid"):
        recipe(folder)
    (folder / PLAN_FILE).unlink()
    with pytest.raises(InputError, match=r"has no slim_plan\.json"):
        recipe(folder)
    with pytest.raises(InputError, match=r"without a config\.json"):
        recipe(tmp_path)


def plan(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """Changes one value of a plan file."""

    def edit(raw: Any) -> None:
        for step in path[:-1]:
            raw = raw[step]
        raw[path[-1]] = to

    return edit


LAST = "last attention block"
OUTPUT = "model.layers.0.self_attn.o_proj.weight"
EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no layer stays": (plan("keep", to=[{"layer": False}] * 4), LAST),
    "no head stays": (plan("keep", to=[{"heads": []}] * 4), LAST),
    "layers and blocks": (plan("keep", to=[{"layer": False}, {}, {"layer": False}, {}]), LAST),
    "three layers": (plan("keep", to=[{"heads": [0]}] * 3), "keep has 3 layers, the model has 4"),
    "nothing": (plan("keep", to=None), "keep"),
    "words": (plan("keep", 1, to="all"), r"keep\.1"),
    "an object": (plan("keep", 1, to={"0": 1}), r"keep\.1"),
    "heads alone": (plan("keep", 1, to=[0, 3]), r"keep\.1"),
    "half a head": (plan("keep", 1, "heads", to=[0.5]), r"keep\.1\.heads\.0"),
    "no head six": (plan("keep", 1, "heads", to=[6]), r"keep\[1\]"),
    "a negative head": (plan("keep", 1, "heads", to=[-1]), r"keep\.1\.heads\.0"),
    "a huge head": (plan("keep", 1, "heads", to=[10**30]), "keep"),
    "twice": (plan("keep", 1, "heads", to=[0, 0]), r"keep\.1: heads=\[0, 0\]"),
    "descending": (plan("keep", 1, "heads", to=[3, 0]), r"keep\.1: heads=\[3, 0\]"),
    "unequal groups": (plan("keep", 1, "heads", to=[0, 1, 3]), "every KV group that stays must keep equally many"),
    "layer gone": (plan("keep", 3, to={"layer": False}), "after: it is not the size"),
    "heads of no layer": (plan("keep", 1, "layer", to=False), r"keep\.1: layer=false: nothing of a removed layer"),
    "channels of words": (plan("keep", 1, "channels", to="some of them"), r"keep\.1: channels: it is neither"),
    "channels of a list": (plan("keep", 1, "channels", to=[0, 1]), r"keep\.1\.channels"),
    "too few channels": (plan("keep", 1, "channels", to="AAAA"), "24 bits does not fit the layer's 48 channels"),
    "too many channels": (plan("keep", 1, "channels", to="AAAAAAAAAA=="), "56 bits does not fit the layer's 48"),
    "channels gone": (plan("keep", 1, "channels", to="AAAAAAAA"), "after: it is not the size"),
    "layers": (plan("model", "layers", to=10**9), r"model\.layers"),
    "heads": (plan("model", "heads", to=6 * 10**8), r"model\.heads"),
    "no heads": (plan("model", "heads", to=0), r"model\.heads"),
    "KV heads": (plan("model", "kv_heads", to=6), "does not fit heads=6, kv_heads=6"),
    "no multiple": (plan("model", "kv_heads", to=4), "not a multiple of kv_heads=4"),
    "head size": (plan("model", "head_dim", to=4), "does not fit heads=6, kv_heads=2, head_dim=4"),
    "bytes of a number": (plan("model", "itemsize", to=0), r"model\.itemsize"),
    "family": (plan("model", "model_type", to="bloom"), "'bloom' is not supported"),
    "no shape": (lambda raw: raw["model"]["shapes"].pop(OUTPUT), "o_proj"),
    "a flat shape": (plan("model", "shapes", OUTPUT, to=[1152]), "o_proj"),
    "a negative shape": (plan("model", "shapes", OUTPUT, to=[-24, 48]), "shapes"),
    "a huge shape": (plan("model", "shapes", "model.norm.weight", to=[10**30]), "shapes"),
    "layer 99": (plan("model", "shapes", "model.layers.99.mlp.up_proj.weight", to=[1, 1]), r"layers\.99.* layers=4"),
    "layer x": (plan("model", "shapes", "model.layers.x.weight", to=[1, 1]), "layers.x"),
    "size": (plan("after", "bytes", to=1), "after: it is not the size"),
    "size before": (plan("before", "parameters", to=1), "before: it is not the size"),
    "unit": (plan("unit", to="neuron"), "unit"),
    "version": (plan("schema_version", to=99), "newer Slim"),
    "reason": (plan("reason", "kind", to="whim"), "reason"),
    "more": (plan("surprise", to=1), "surprise"),
}


@pytest.fixture(scope="module")
def saved(pico: Callable[..., Loaded]) -> Plan:
    """A plan that takes something from three layers."""
    return plan_of(pico("qwen2").facts, KEEP)


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_plan_is_refused(saved: Plan, tmp_path: Path, name: str) -> None:
    """In one sentence that names the file and the field."""
    edit, words = EDITS[name]
    raw = saved.model_dump(mode="json")
    edit(raw)
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=words) as caught:
        load_plan(tmp_path / "plan.json")
    assert str(tmp_path / "plan.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null", b"[[[1]]]"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    """The message names the file."""
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.json' is not valid"):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "load"}, "dtype='load'"),
        ({"dtype": "float16"}, "dtype='float16', where it is 'float64'"),
        ({"shapes": {}}, "does not describe .*: shapes"),
        ({"layers": 5}, "layers=5, where it is 4"),
        ({"model_type": "llama"}, "model_type='llama', where it is 'qwen2'"),
        ({"fingerprint": "f" * 64}, "fingerprint ffffffffffff"),
    ],
)
def test_a_plan_that_says_otherwise_than_its_model_is_refused(
    original: Loaded, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """Although it is in order by itself; nothing is written, and the original stays as it was."""
    made = plan_of(original.facts, KEEP)
    other = made.model_copy(update={"model": made.model.model_copy(update=changes)})
    before = {path: path.read_bytes() for path in Path(original.facts.source).iterdir()}
    with pytest.raises(InputError, match=words):
        prune(other, tmp_path / "pruned")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]
    assert {path: path.read_bytes() for path in Path(original.facts.source).iterdir()} == before


def test_a_plan_for_a_pruned_model_is_refused(folder: Path, tmp_path: Path) -> None:
    """Its layers differ: a plan counts on one shape for all of them."""
    facts = load_model(str(folder), device="cpu", dtype="float64").facts
    original = json.loads((folder / PLAN_FILE).read_text())["model"]
    made = Plan.model_validate_json((folder / PLAN_FILE).read_text())
    assert original["fingerprint"] != facts.fingerprint
    claimed = made.model.model_copy(update={"source": str(folder), "fingerprint": facts.fingerprint})
    with pytest.raises(InputError, match=r"pruned already.*original"):
        prune(made.model_copy(update={"model": claimed}), tmp_path / "again")
    assert not (tmp_path / "again").exists()
