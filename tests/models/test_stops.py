"""Where a model's answers end: the tokens that its parts name, as one set that all of Slim stops at."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AddedToken, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from slim.data.encode import encode
from slim.data.templates import Example
from slim.data.turn_end import turn_end
from slim.evaluation.lm_eval_tasks import _wrapped
from slim.evaluation.streaming import stream
from slim.models.load import Loaded, load_model
from slim.models.stops import NO_END, end_notes, stop_tokens
from slim.pruning import checkpoint
from slim.pruning.history import Recovery
from tests.pico import keeping, make_pico, pico_tokenizer, plan_of, save_pico

SPECIAL = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<|endoftext|>")
"""Their ids are 259 to 263 in `tokenizer`."""


def chat(before: str, after: str, asked: str = "") -> str:
    """A template that writes each turn between `before` and `after`."""
    turns = "{% for m in messages %}" + before + "{{ m['content'] | trim }}" + after + "{% endfor %}"
    return turns + "{% if add_generation_prompt %}" + asked + "{% endif %}"


TEMPLATES = {
    "none": None,
    "chatml": chat("[{{ m['role'] }}]\n", "<|im_end|>\n", "[assistant]\n"),
    "gemma": chat("[{{ 'model' if m['role'] == 'assistant' else m['role'] }}]\n", "<end_of_turn>\n", "[model]\n"),
    "llama-3": chat("[{{ m['role'] }}]\n\n", "<|eot_id|>", "[assistant]\n\n"),
    "phi-3": chat("", "<|end|>\n", "[assistant]\n") + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}",
    "llama-2": chat("", "{% if m['role'] == 'assistant' %} {{ eos_token }}{% endif %}"),
    "nothing": chat("<bos>", ""),
    "newline": chat("", "\n"),
    "words": chat("", "\n### End ###\n"),
    "words and token": chat("", " [done]<|eot_id|>"),
    "shouting": chat("", "<|im_end|>").replace("| trim", "| upper"),
    "quoted": chat("", "", "").replace("m['content'] | trim", "m['content'] | tojson") + "<|end|>",
    "silent": "{% for m in messages %}<bos>{% endfor %}<|end|>",
    "refusing": "{{ raise_exception('no') }}",
}
TURN_ENDS = {
    "chatml": 259, "gemma": 260, "llama-3": 261, "phi-3": 262, "llama-2": 2, "words and token": 261, "shouting": 259,
    "quoted": 262,
}  # fmt: skip


def tokenizer(template: str | None, eos: str | None = "<eos>") -> PreTrainedTokenizerFast:
    """A byte a token, and the ends of turns of several families."""
    made = pico_tokenizer()
    for piece in SPECIAL:
        made.add_tokens([AddedToken(piece, special=True, normalized=False)], special_tokens=True)
    made.chat_template = template
    made.eos_token = eos
    return made


def named(
    template: str, eos: str | None, generation: int | list[int] | None, config: int | list[int] | None
) -> dict[int, tuple[str, ...]]:
    """The stop tokens of a model whose parts name these, and which part named each."""
    settings: Any = make_pico("llama", layers=1).model.config
    settings.eos_token_id = config
    found = stop_tokens(tokenizer(TEMPLATES[template], eos), settings, GenerationConfig(eos_token_id=generation))
    return {one.id: one.named_by for one in found}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_turn_end_is_the_first_token_after_an_answer(name: str) -> None:
    """Whatever stands around it; ordinary words and line breaks do not count, as they occur within answers."""
    assert turn_end(tokenizer(TEMPLATES[name])) == TURN_ENDS.get(name)


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"refusing", "silent"}))
@pytest.mark.parametrize("eos", ["<eos>", "<|endoftext|>", None])
def test_training_counts_an_end_after_every_answer(name: str, eos: str | None) -> None:
    """Once: the template's own where it writes one, else the tokenizer's, if there is one."""
    tok = tokenizer(TEMPLATES[name], eos)
    own = eos if name == "llama-2" else tok.convert_ids_to_tokens(TURN_ENDS[name]) if name in TURN_ENDS else None
    example = Example("Why?", "So.")
    plain, ended = (encode([example], tok, 99, "answer", ended=ended) for ended in (False, True))
    said, more = (str(tok.decode(one.rows[0][one.start(0) :])) for one in (plain, ended))
    assert more == said + ("" if own else eos or "")
    assert own is None or said.count(str(own)) == 1


@pytest.mark.parametrize(
    ("template", "eos", "generation", "config", "expected"),
    [
        ("none", "<eos>", None, None, {2: ("tokenizer",)}),
        ("none", None, None, None, {}),
        ("none", None, 7, None, {7: ("generation config",)}),
        ("none", None, [7, 259], None, {7: ("generation config",), 259: ("generation config",)}),
        ("none", "<eos>", [2, 7], 2, {2: ("tokenizer", "generation config", "config"), 7: ("generation config",)}),
        ("none", "<eos>", [2, 264, 99999, -1], [2, 300], {2: ("tokenizer", "generation config", "config")}),
        ("chatml", "<|endoftext|>", 263, 263,
         {263: ("tokenizer", "generation config", "config"), 259: ("chat template",)}),
        ("chatml", "<|im_end|>", [259, 263], 263,
         {259: ("tokenizer", "chat template", "generation config"), 263: ("generation config", "config")}),
        ("gemma", "<eos>", [2, 260], 2,
         {2: ("tokenizer", "generation config", "config"), 260: ("chat template", "generation config")}),
        ("llama-3", "<|endoftext|>", None, [263], {263: ("tokenizer", "config"), 261: ("chat template",)}),
        ("phi-3", "<|endoftext|>", 263, None, {263: ("tokenizer", "generation config"), 262: ("chat template",)}),
        ("nothing", "<eos>", 263, None, {2: ("tokenizer",), 263: ("generation config",)}),
        ("words", "<eos>", None, 7, {2: ("tokenizer",), 7: ("config",)}),
        ("refusing", "<eos>", None, None, {2: ("tokenizer",)}),
    ],
)  # fmt: skip
def test_the_set_is_the_union_of_what_each_part_names(
    template: str, eos: str | None, generation: Any, config: Any, expected: dict[int, tuple[str, ...]]
) -> None:
    """With who named each; ids beyond the vocabulary are left out."""
    assert named(template, eos, generation, config) == expected


def test_a_familys_default_is_no_end_where_it_is_a_word() -> None:
    """llama's is 2, which may be any token of another tokenizer; one that the folder names counts all the same."""
    settings: Any = make_pico("llama", layers=1).model.config
    tok = PreTrainedTokenizerFast(tokenizer_object=pico_tokenizer().backend_tokenizer)
    assert settings.eos_token_id == 2
    assert [one.id for one in stop_tokens(tok, settings, None)] == [2]  # an added token
    settings.eos_token_id, type(settings).eos_token_id = 50, 50
    try:
        assert stop_tokens(tok, settings, GenerationConfig()) == ()
        assert [one.id for one in stop_tokens(tok, settings, GenerationConfig(eos_token_id=50))] == [50]
    finally:
        type(settings).eos_token_id = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose parts name three ends: its tokenizer 2, its template 259 and its generation config 7."""
    place = tmp_path_factory.mktemp("stops") / "model"
    made = replace(make_pico("llama", dtype=torch.float32), tokenizer=tokenizer(TEMPLATES["chatml"]))
    save_pico(made, place)
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    return place


def generation_of(place: Path) -> int | list[int] | None:
    """The end tokens that transformers, vLLM and others read in a folder."""
    return json.loads((place / "generation_config.json").read_text()).get("eos_token_id")


def test_every_checkpoint_names_them_all(folder: Path, tmp_path: Path) -> None:
    """The pruned one, and the same once it was trained: also without Slim, and for good."""
    loaded = load_model(str(folder), device="cpu")
    assert loaded.stops == (2, 7, 259)
    assert {one.id: one.named_by for one in loaded.facts.stops} == {
        2: ("tokenizer", "config"), 259: ("chat template",), 7: ("generation config",)
    }  # fmt: skip
    pruned = checkpoint.prune(plan_of(loaded.facts, keeping((0, 1, 2), *[tuple(range(6))] * 3)), tmp_path / "pruned")
    checkpoint.rewrite(pruned, tmp_path / "again", {}, Recovery())
    for place in (pruned, tmp_path / "again"):
        assert generation_of(place) == [2, 259, 7]
        plain: Any = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
        assert plain.generation_config.eos_token_id == [2, 259, 7]
        assert load_model(str(place), device="cpu").stops == (2, 7, 259)
    assert generation_of(folder) == 7


def test_layers_in_their_files_end_their_answers_too(folder: Path) -> None:
    assert load_model(str(folder), device="cpu", layers="file").stops == (2, 7, 259)


def speaking(loaded: Loaded, tokens: Sequence[int]) -> Loaded:
    """The model as one that says these tokens after anything, again and again."""
    model: Any = loaded.model
    forward, said = model.forward, list(tokens)

    def one_after_the_other(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        found.logits[:, -1] = -1e9
        found.logits[:, -1, said[0]] = 0
        said.append(said.pop(0))
        return found

    model.forward = one_after_the_other
    return loaded


@pytest.mark.parametrize("stop", [2, 7, 259])
def test_whoever_generates_stops_at_each(folder: Path, stop: int) -> None:
    """A stream, transformers' own generate as its server calls it, and the harness of standard tasks."""
    words = [80, 81, 82]

    def fresh() -> Loaded:
        return speaking(load_model(str(folder), device="cpu"), [*words, stop, 90, 91])

    loaded = fresh()
    last = list(stream(loaded, "Hi", 12))[-1]
    assert (last.tokens, last.finished) == (3, True)
    model: Any = fresh().model
    ids = torch.tensor([[60, 61]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert out[0, 2:].tolist() == [*words, stop]
    harness = _wrapped(fresh(), 1)
    out = harness._model_generate(ids, max_length=14, stop=["never"], attention_mask=torch.ones_like(ids))
    assert out[0, 2:].tolist() == [*words, stop]


def test_a_model_that_names_no_end_says_so(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """In one sentence; and a tokenizer without an end token takes the one that the generation config names."""
    loaded = replace(pico("llama", eos_token_id=None), tokenizer=tokenizer(None, None))
    save_pico(loaded, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (tmp_path / "model" / "generation_config.json").unlink()
    endless = load_model(str(tmp_path / "model"), device="cpu")
    assert endless.stops == ()
    assert end_notes(endless.stops) == [NO_END]
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": 261}))
    taught = load_model(str(tmp_path / "model"), device="cpu")
    assert end_notes(taught.stops) == []
    row = encode([Example("Why?", "So.")], taught.tokenizer, 99).rows[0]
    assert row[-1] == 261
