"""The real llama.cpp on exported files: it loads them, knows their tokens, and predicts as transformers does."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from numpy.typing import NDArray

from slim.evaluation.streaming import stream
from slim.models import bundled
from slim.models.load import Loaded, load_model
from slim.models.units import Keep
from slim.pruning.checkpoint import prune
from slim.serving.gguf import export_gguf
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.serving.test_gguf import CASES, CUTS, INNER, TEXT, ending, made, sentencepiece

PATIENCE = 300.0
"""Seconds after which a test gives up; nothing is asserted about time."""
STORY = (
    "The lighthouse keeper counted 12 ships before dawn, and he wrote each of their names in a small green book that "
    "nobody else had ever read. When the storm came, he lit the lamp"
)
ASK = """
import json, sys, urllib.request
import xllamacpp as runtime
file, asked, answered = sys.argv[1:]
given = json.load(open(asked))
params = runtime.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = file, 512, 1, False
params.cache_type_k = params.cache_type_v = runtime.ggml_type.GGML_TYPE_F32
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # two wait for each other on busy cores
params.flash_attn_type = runtime.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = runtime.Server(params)

def ask(path, **body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), headers)
    return json.loads(urllib.request.urlopen(request, timeout=120).read())

def next_token(ids):  # a plain letter is made to come next, as a part of a character is not reported
    letter = [[given["letter"], 1000]]
    said = ask("/completion", prompt=ids, n_predict=1, n_probs=given["vocabulary"], temperature=0, logit_bias=letter)
    row = [None] * given["vocabulary"]
    for token in said["completion_probabilities"][0]["top_logprobs"]:
        row[token["id"]] = token["logprob"]
    return row

def ended(token):  # made the likeliest of all
    return ask("/completion", prompt=[60], n_predict=3, temperature=0, logit_bias=[[token, 1000]])["stop_type"]

told = {
    "ended": [ended(token) for token in given["ends"]],
    "rows": [next_token(ids) for ids in given["prompts"]],
    "tokens": [ask("/tokenize", content=text, add_special=True)["tokens"] for text in given["texts"]],
    "chats": [
        ask("/v1/chat/completions", messages=[{"role": "user", "content": chat}], max_tokens=24, temperature=0)
        for chat in given["chats"]
    ],
}
json.dump(told, open(answered, "w"))
"""


@dataclass(frozen=True)
class Told:
    """Results of llama.cpp: log-probabilities of the next token after each prompt (prompts, V), tokens, answers."""

    rows: NDArray[np.float64]
    tokens: list[list[int]]
    chats: list[str]
    ended: list[str]


def llama_cpp(
    file: Path,
    *,
    prompts: Sequence[Sequence[int]] = (),
    vocabulary: int = 1,
    letter: int = 0,
    texts: Sequence[str] = (),
    chats: Sequence[str] = (),
    ends: Sequence[int] = (),
) -> Told:
    """Its answers, from a process of its own: what it cannot load ends that process."""
    asked, answered = file.with_suffix(".asked.json"), file.with_suffix(".answered.json")
    given = {"prompts": list(map(list, prompts)), "texts": list(texts), "chats": list(chats)}
    given |= {"vocabulary": vocabulary, "letter": letter, "ends": list(ends)}
    asked.write_text(json.dumps(given))
    command = [sys.executable, "-c", ASK, str(file), str(asked), str(answered)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(answered.read_text())
    answers = [chat["choices"][0]["message"]["content"] for chat in told["chats"]]
    return Told(np.array(told["rows"], dtype=float), told["tokens"], answers, told["ended"])


def log_probabilities(loaded: Loaded, prompts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """transformers' of the next token after each prompt."""
    rows = []
    with torch.no_grad():
        for ids in prompts:
            logits = loaded.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            rows.append(logits.double().log_softmax(-1).numpy())
    return np.stack(rows)


def differences(folder: Path, file: Path) -> NDArray[np.float64]:
    """How far off each log-probability is after prompts of several lengths, which differ."""
    loaded = load_model(str(folder), device="cpu")
    ids = loaded.tokenizer(STORY).input_ids
    prompts = [ids[:length] for length in (1, 5, 17, len(ids))]
    expected = log_probabilities(loaded, prompts)
    assert expected.std(0).max() > 0.5
    letter = loaded.tokenizer("a", add_special_tokens=False).input_ids[0]
    found = llama_cpp(file, prompts=prompts, vocabulary=expected.shape[1], letter=letter).rows
    return np.abs(found - expected)


@pytest.mark.parametrize(("family", "extra", "keep", "arch"), CASES.values(), ids=list(CASES))
def test_every_case_runs(tmp_path: Path, family: str, extra: dict[str, Any], keep: Keep, arch: str) -> None:
    """Of every family, alike and per layer, the first layer's attention gone too; biases and tied embeddings."""
    folder = made(tmp_path, family, keep, **extra)
    assert differences(folder, export_gguf(str(folder), tmp_path / "model.gguf").path).max() < 1e-3


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=["linear", "llama3"],
)
def test_scaled_rotations_run(tmp_path: Path, rope: dict[str, Any]) -> None:
    """The factors are applied where layers are alike and where they are not."""
    for name, keep in (("alike", keeping(*[(0, 1, 2)] * 4)), ("differ", INNER)):
        folder = made(tmp_path / name, keep=keep, rope_parameters={"rope_theta": 1e4, **rope})
        assert differences(folder, export_gguf(str(folder), tmp_path / f"{name}.gguf").path).max() < 1e-3


@pytest.mark.parametrize(
    ("chosen", "within"), [("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.25), ("q5_1", 1.0), ("q4_0", 2.0)]
)
def test_smaller_numbers_run(tmp_path: Path, chosen: Any, within: float) -> None:
    """They are read as what they are; what rounding costs is their own."""
    folder = made(tmp_path, keep=INNER, hidden_size=96, intermediate_size=64)
    assert differences(folder, export_gguf(str(folder), tmp_path / "model.gguf", chosen).path).mean() < within


@pytest.mark.parametrize("name", [*CUTS, "bytes"])
def test_tokens_are_the_same(tmp_path: Path, name: str) -> None:
    """Of texts with line ends, numbers, signs, contractions and other scripts, special tokens added as it does."""
    if name == "bytes":
        tokenizer = sentencepiece()
        save_pico(replace(make_pico("mistral", vocab_size=len(tokenizer)), tokenizer=tokenizer), tmp_path / "pruned")
    else:
        made(tmp_path, cut=CUTS[name])
    loaded = load_model(str(tmp_path / "pruned"), device="cpu")
    texts = [TEXT, STORY, "I'll say DON'T: 12345 a_b+=c!!\n\n  def\r\n\tx", "naïve 北京 ١٢٣ 🙂  end ", "a\n\n\nb   c"]
    file = export_gguf(str(tmp_path / "pruned"), tmp_path / "model.gguf").path
    expected = [loaded.tokenizer(text).input_ids for text in texts]
    assert llama_cpp(file, texts=texts).tokens == expected


def test_answers_end_where_they_do_in_slim(tmp_path: Path) -> None:
    """At the tokenizer's, the template's and the generation config's tokens, and at no other."""
    folder = ending(made(tmp_path), 40, 2)
    file = export_gguf(str(folder), tmp_path / "model.gguf").path
    assert load_model(str(folder), device="cpu").stops == (0, 2, 40)
    assert llama_cpp(file, ends=[0, 2, 40, 1, 11, 41]).ended == ["eos"] * 3 + ["limit"] * 3


@pytest.mark.integration
@pytest.mark.parametrize("plan", ["layers differ", pytest.param("layers alike", marks=pytest.mark.release)])
def test_the_real_model_runs(shared_workspace: Path, tmp_path: Path, plan: str) -> None:
    """Pruned per layer with two blocks removed, the first among them; and to one shape. Greedy answers agree too."""
    original = load_model(device="cpu")
    keep: list[tuple[int, ...]] = [(0, 1, 3, 4, 6, 7)] * 30
    if plan == "layers differ":
        full = tuple(range(9))
        keep = [(), full, (3, 4, 5, 6, 7, 8), *[full] * 8, (), (0, 3, 6), *[full] * 17]
    folder = prune(plan_of(original.facts, keeping(*keep)), tmp_path / "pruned")
    exported = export_gguf(str(folder), tmp_path / "model.gguf", "stored")
    assert exported.architecture == ("deci" if plan == "layers differ" else "llama")
    assert differences(folder, exported.path).max() < 1e-3
    loaded = load_model(str(folder), device="cpu")
    question = "What do ships need a lighthouse for?"
    told = llama_cpp(exported.path, texts=[question, STORY], chats=[question])
    assert told.tokens == [loaded.tokenizer(text).input_ids for text in (question, STORY)]
    assert told.chats == [list(stream(loaded, question, 24))[-1].text]
    kept, original_file = (GGUFReader(file).fields for file in (exported.path, bundled.bundled_gguf()))
    for name in original_file:
        assert not name.startswith("tokenizer.") or kept[name].contents() == original_file[name].contents(), name
    assert kept["tokenizer.ggml.pre"].contents() == "smollm"


@pytest.mark.integration
def test_the_bundled_file_goes_out_as_it_came_in(shared_workspace: Path, tmp_path: Path) -> None:
    """Cut in one layer: each matrix in its type, a smaller file, and llama.cpp answers with it."""
    original = load_model(device="cpu")
    full = tuple(range(9))
    keep = [full] * 14 + [(0, 1, 2)] + [full] * 15
    folder = prune(plan_of(original.facts, keeping(*keep)), tmp_path / "pruned")
    exported = export_gguf(str(folder), tmp_path / "model.gguf")
    given = bundled.bundled_gguf()
    assert exported.bytes < given.stat().st_size
    assert exported.number_format == "q4_1"
    types = [{one.name: one.tensor_type for one in GGUFReader(file).tensors} for file in (given, exported.path)]
    assert types[0] == types[1]
    (answer,) = llama_cpp(exported.path, chats=["What do ships need a lighthouse for?"]).chats
    assert len(answer) > 20
