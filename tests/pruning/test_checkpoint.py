"""Parts of a checkpoint beyond its logits: its files, its formats, its card, and an adapter on top of it."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from slim.calibration.facts import Forecast
from slim.models.load import Loaded, load_model
from slim.pruning.checkpoint import prune
from slim.pruning.model_card import model_card
from tests.pico import keeping, plan_of, save_pico
from tests.surgery import IDS, WHOLE, Pruned, file_bytes, logits

KEEP = keeping((), (0, 2, 3, 5), (3, 4, 5), WHOLE)
TEMPLATE = "{% for m in messages %}<bos>{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def case(pico: Callable[..., Loaded], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pruned]:
    """A llama with a chat template and settings for generation, cut layer by layer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        made = pico("llama")
        made.tokenizer.chat_template = TEMPLATE
        made.model.generation_config = GenerationConfig(
            do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.2, eos_token_id=[2, 9], pad_token_id=0
        )
        yield Pruned(save_pico(made, folder / "original"), KEEP, folder / "pruned")


def test_tokenizer_template_and_settings_are_kept(case: Pruned) -> None:
    """As they are in the original's folder, by transformers alone."""
    source, folder = case.original.facts.source, case.folder
    before, after = (AutoTokenizer.from_pretrained(place) for place in (source, folder))
    turns = [{"role": "user", "content": "Why?"}]
    assert after.chat_template == TEMPLATE
    assert after.apply_chat_template(turns) == before.apply_chat_template(turns)
    assert after.get_vocab() == before.get_vocab()
    assert (after.padding_side, after.special_tokens_map) == (before.padding_side, before.special_tokens_map)
    one, other = (GenerationConfig.from_pretrained(place) for place in (source, folder))
    assert other.to_diff_dict() == one.to_diff_dict()
    assert (other.temperature, other.eos_token_id) == (0.6, [2, 9])


def test_large_weights_are_split(case: Pruned, tmp_path: Path) -> None:
    """Over files below the limit with an index, that Slim and transformers load as they load one file."""
    folder = prune(case.plan, tmp_path / "sharded", shard_bytes=60_000)
    files = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert all(file_bytes(file) <= 60_000 for file in files)
    assert sum(map(file_bytes, files)) == case.plan.after.bytes == index["metadata"]["total_size"]
    assert set(index["weight_map"].values()) == {file.name for file in files}
    ours = load_model(str(folder), device="cpu", dtype="float64")
    assert torch.equal(logits(ours), logits(case.loaded))
    plain = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float64).eval()
    with torch.no_grad():
        assert torch.equal(plain(IDS, use_cache=False).logits, logits(case.loaded))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_the_number_format_is_kept(pico: Callable[..., Loaded], tmp_path: Path, dtype: torch.dtype, told: bool) -> None:
    """That of the weights, also where the config does not tell it; and every size counts with it."""
    save_pico(pico("llama", dtype=dtype), tmp_path / "original")
    if not told:
        file = tmp_path / "original" / "config.json"
        raw = json.loads(file.read_text())
        assert raw.pop("dtype") == str(dtype).removeprefix("torch.")
        file.write_text(json.dumps(raw))
    facts = load_model(str(tmp_path / "original"), device="cpu").facts
    assert (facts.dtype, facts.itemsize) == (str(dtype).removeprefix("torch."), dtype.itemsize)
    made = plan_of(facts, KEEP)
    file = prune(made, tmp_path / "pruned") / "model.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {dtype}
    assert file_bytes(file) == made.after.bytes == made.after.parameters * dtype.itemsize
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["dtype"] == facts.dtype
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("original", "pruned"))
    assert torch.equal(
        after["model.layers.1.self_attn.k_proj.weight"], before["model.layers.1.self_attn.k_proj.weight"]
    )


def test_the_card_says_what_was_done_and_how_to_load_it(case: Pruned) -> None:
    """Figures and forecast; its code is run as it stands."""
    card = (case.folder / "README.md").read_text(encoding="utf-8")
    before, after = case.plan.before, case.plan.after
    for figure in (before.parameters, after.parameters, before.kv_bytes_per_token, after.kv_bytes_per_token):
        assert f"{figure:,}" in card
    assert "11 of 24 attention heads" in card
    assert "1 of 4 attention blocks" in card
    assert str(case.plan.reason) in card
    assert "base_model" not in card  # nobody else has that folder
    assert str(case.folder.parent) not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "trust_remote_code=True" in code
    names: dict[str, Any] = {}
    exec(code.replace('"PATH"', repr(str(case.folder))), names)  # noqa: S102  the card just written
    assert sum(p.numel() for p in names["model"].parameters()) == after.parameters
    assert names["tokenizer"]("Why?")["input_ids"] == case.original.tokenizer("Why?")["input_ids"]


def test_the_card_names_a_model_that_others_have_too(case: Pruned) -> None:
    """A Hub id or the bundled model, the forecast, and the warnings; a stock one needs no code."""
    forecast = Forecast(nats_per_token=0.25, low=0.2, high=0.3, sequences=8)
    facts = case.plan.model.model_copy(update={"source": "owner/name"})
    changed = {"model": facts, "forecast": forecast, "notes": ("it may well be useless",)}
    card = model_card(case.plan.model_copy(update=changed))
    assert "base_model: owner/name\n" in card
    assert "0.250 nats/token [0.200, 0.300]" in card
    assert "Warning: it may well be useless." in card
    bundled = facts.model_copy(update={"source": "bundled:smollm2-135m"})
    card = model_card(plan_of(bundled, keeping(None, *(WHOLE,) * 3), "layer"))
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in card
    assert "trust_remote_code" not in card
    assert "1 whole layers (0)" in card


def test_attentions_have_one_entry_per_layer(case: Pruned) -> None:
    """With their layer's heads, and with none where the attention is removed; by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(case.folder, trust_remote_code=True, attn_implementation="eager")
    with torch.no_grad():
        found = model(IDS, output_attentions=True).attentions
    length = IDS.shape[1]
    assert [tuple(one.shape[1:]) for one in found] == [(heads, length, length) for heads in (0, 4, 3, 6)]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers by an old name
def test_an_adapter_goes_on_top_of_layers_that_differ(case: Pruned, tmp_path: Path) -> None:
    """Attached, trained for a step, saved, put back on the folder, and merged: the same logits each time."""

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(case.folder, trust_remote_code=True, dtype=torch.float64)

    def answers(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=IDS, use_cache=False).logits

    parts = ["q_proj", "k_proj", "v_proj", "o_proj"]
    settings = LoraConfig(r=2, lora_alpha=8, target_modules=parts, task_type="CAUSAL_LM")
    model = get_peft_model(base(), settings)
    outputs = {
        int(name.split(".layers.")[1].split(".")[0]): len(parameter)
        for name, parameter in model.named_parameters()
        if "q_proj.lora_B" in name
    }
    assert outputs == {1: 4 * 8, 2: 3 * 8, 3: 6 * 8}  # the first layer has no attention
    before = answers(model)
    torch.testing.assert_close(before, logits(case.loaded), rtol=0, atol=1e-12)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    torch.optim.SGD(trained, lr=0.5).step()
    after = answers(model)
    assert (after - before).abs().max() > 1e-3
    with torch.no_grad():
        assert model(input_ids=IDS, labels=IDS).loss < loss

    model.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(base(), str(tmp_path / "adapter"))
    assert torch.equal(answers(again), after)
    merged: Any = again.merge_and_unload()
    torch.testing.assert_close(answers(merged), after, rtol=0, atol=1e-9)
    merged.save_pretrained(tmp_path / "merged")
    case.original.tokenizer.save_pretrained(tmp_path / "merged")
    remote = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=True, dtype=torch.float64)
    torch.testing.assert_close(answers(remote), after, rtol=0, atol=1e-9)
    ours = load_model(str(tmp_path / "merged"), device="cpu", dtype="float64")
    torch.testing.assert_close(logits(ours), after, rtol=0, atol=1e-9)
