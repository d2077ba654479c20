"""The real bundled model from calibration to a checkpoint that loads elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file
from torch import Tensor

from slim.calibration.ablation import Ablation, ablate
from slim.calibration.calibrate import calibrate
from slim.calibration.check import check
from slim.calibration.record import Calibration
from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.data.tasks import Encoded, batches, choose, encode, load_task
from slim.models import bundled
from slim.models.load import load_model
from slim.models.units import whole_model
from slim.planning.record import Plan
from slim.planning.slicing import is_stock
from slim.planning.threshold import plan_by_threshold
from slim.pruning.checkpoint import prune
from slim.pruning.trial import masked
from tests import ROOT, reference
from tests.pico import keeping, plan_of

pytestmark = pytest.mark.integration
PROMPT = "The capital of France is"

FRESH = """
import sys, torch
from safetensors.torch import load_file, save_file
from slim.models.load import load_model
torch.set_num_threads(1)
folder, given, taken = sys.argv[1:]
loaded = load_model(folder, device="cpu")
with torch.no_grad():
    logits = loaded.model(load_file(given)["ids"], use_cache=False).logits
save_file({"logits": logits}, taken)
"""

PLAIN = """
import importlib.util, json, sys, torch
assert importlib.util.find_spec("slim") is None and importlib.util.find_spec("peft") is None
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(2)
prompt, taken, *folders = sys.argv[1:]
logits = {}
for folder in folders:
    trusted = "auto_map" in json.load(open(folder + "/config.json"))
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusted, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt")
    with torch.no_grad():
        logits[folder] = model(**ids, use_cache=False).logits
    said = [model.generate(**ids, do_sample=False, max_new_tokens=6, use_cache=cached)[0] for cached in (True, False)]
    facts = {"class": type(model).__name__, "module": type(model).__module__, "said": [ids.tolist() for ids in said]}
    print(json.dumps(facts | {"parameters": sum(p.numel() for p in model.parameters())}))
save_file(logits, taken)
"""


@pytest.fixture(scope="module")
def calibration(shared_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Of the bundled model on two of the briefs."""
    output = tmp_path_factory.mktemp("real") / "calibration"
    return calibrate(CalibrateRequest.asked(samples=2, max_length=96, device="cpu", output=output))


@pytest.fixture(scope="module")
def plan(calibration: Calibration) -> Plan:
    """A plan that removes what the default threshold does, and the first attention block with it."""
    made = plan_by_threshold(calibration, 0.8)
    return plan_of(made.model, keeping((), *made.keep[1:]))


@pytest.fixture(scope="module")
def pruned(plan: Plan, shared_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's folder."""
    return prune(plan, tmp_path_factory.mktemp("real") / "pruned")


def real_ids(length: int = 96) -> Tensor:
    """Tokens of a brief that was not calibrated on.  # (1, T)"""
    tokenizer = load_model(device="cpu").tokenizer
    return encode(choose(load_task("bundled:briefs", split="test"), 1, 0), tokenizer, length).rows[0][None]


def test_the_bundled_model_is_unpacked_once(shared_workspace: Path) -> None:
    """A later call finds the folder and writes nothing."""
    folder = bundled.bundled_model()
    assert folder.is_relative_to(shared_workspace)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= before.keys()
    loaded = load_model(device="cpu")
    assert {file.name: file.stat().st_mtime_ns for file in bundled.bundled_model().iterdir()} == before
    facts = loaded.facts
    assert (facts.model_type, facts.layers, facts.heads, facts.kv_heads) == ("llama", 30, 9, 3)
    assert loaded.tokenizer.chat_template
    assert loaded.model.generation_config is not None
    assert loaded.model.generation_config.eos_token_id is not None


def test_the_bundled_model_knows_its_language(shared_workspace: Path) -> None:
    """Its weights are the real ones: it goes on as a language model would."""
    loaded = load_model(device="cpu")
    ids = loaded.tokenizer(PROMPT, return_tensors="pt")
    said = loaded.model.generate(**ids, do_sample=False, max_new_tokens=3)  # type: ignore[operator]
    assert "Paris" in str(loaded.tokenizer.decode(said[0]))


def test_the_calibration_is_of_the_real_model(calibration: Calibration) -> None:
    """Every metric at every head, all of them finite, and segments of the chosen rows."""
    assert set(calibration.metrics) == {
        "entropy",
        "entropy_norm",
        "kl_uniform",
        "kl_output",
        "variance",
        "block_influence",
        "magnitude",
    }
    for name, scores in calibration.metrics.items():
        for level, values in scores.items():
            assert (values >= 0).all(), (name, level)
            assert len(set(values.ravel().tolist())) == values.size, (name, level)
    assert calibration.metrics["kl_output"]["head"].shape == (30, 9)
    assert calibration.sketch is not None
    assert calibration.sketch.scores.shape == (12, 30, 11)
    assert calibration.sketch.tokens.tolist() == [95, 95]
    assert calibration.facts.dataset.tokens == 192


def test_exact_ablation_is_the_naive_loop(shared_workspace: Path) -> None:
    """Heads, a group and a block of the real model on real text in float32, within 1e-4 nats per token."""
    loaded, rows = load_model(device="cpu"), (real_ids(48)[0], real_ids(64)[0])
    units = {0: [(4,), (-2,)], 13: [(0,), (3, 4, 5)], 29: [(8,)]}
    chosen = [[Ablation("head", columns) for columns in units.get(layer, [])] for layer in range(30)]
    (batch,) = batches(Encoded(rows, 0), 2)
    for layer, costs in enumerate(list(ablate(loaded, batch, chosen))):
        for index, ablation in enumerate(chosen[layer]):
            naive = 0.0
            for row in rows:
                full = reference.log_probabilities(loaded, row)
                gates, scales = torch.ones(30, 9), torch.ones(30, 2)
                if ablation.columns == (-2,):
                    scales[layer, 0] = 0
                else:
                    gates[layer, list(ablation.columns)] = 0
                with reference.gated(loaded.model, gates, 64), reference.scaled_blocks(loaded.model, scales):
                    naive += reference.kl_sum(full, reference.log_probabilities(loaded, row))
            tokens = sum(len(row) - 1 for row in rows)
            assert naive / tokens > 1e-4
            assert abs(costs[:, index].sum() - naive) / tokens < 1e-4


def test_the_second_run_knows_everything(calibration: Calibration, shared_workspace: Path, tmp_path: Path) -> None:
    """The same calibration again: all of it from the workspace, and the same figures."""
    again = calibrate(CalibrateRequest.asked(output=tmp_path / "again", **calibration.facts.settings.model_dump()))
    assert again.facts.reused == 1
    for name, scores in calibration.metrics.items():
        for level, values in scores.items():
            assert (again.metrics[name][level] == values).all(), (name, level)


def test_a_check_tells_good_criteria_from_bad_ones(calibration: Calibration, shared_workspace: Path) -> None:
    """On rows it did not see, at the first tenth of the heads: the sketch's choice costs least, entropy's ruins it."""
    found = check(CheckRequest.asked(calibration=calibration.path, samples=1, heads=6)).check
    assert found is not None
    assert found.unseen
    assert 3 < found.perplexity < 300
    ruined, kept = (found.verdict(name) for name in ("entropy", "kl_output"))
    assert ruined is not None
    assert kept is not None
    assert kept.removals[1].heads == 27
    assert kept.removals[1].perplexity < 2 * found.perplexity < ruined.removals[1].perplexity
    assert found.correction is not None
    corrected = plan_by_threshold(replace(calibration, check=found), 0.8).forecast
    assert corrected is not None
    assert corrected.factor != 1


def test_the_planned_checkpoint_has_the_planned_size(plan: Plan, pruned: Path) -> None:
    """Weights in the file, each once: the embedding is tied."""
    made = sum(tensor.numel() for tensor in load_file(pruned / "model.safetensors").values())
    assert made == plan.after.parameters < plan.before.parameters == 134_515_008
    assert not is_stock(plan.model, plan.keep)
    assert plan.removed_heads > 9


def test_a_fresh_process_gives_the_same_logits(pruned: Path, tmp_path: Path) -> None:
    """Bit for bit. Both compute with one thread, because how sums are split among threads changes their last bits."""
    torch.set_num_threads(1)
    ids = real_ids()
    here = load_model(str(pruned), device="cpu")
    with torch.no_grad():
        expected = here.model(ids, use_cache=False).logits
    from safetensors.torch import save_file

    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("ids", "logits")]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(pruned), *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], expected)


def test_pruned_is_gated_on_real_text(plan: Plan, pruned: Path) -> None:
    """The original with its heads gated and its first block passed by, in float64."""
    ids = real_ids()
    smaller = load_model(str(pruned), device="cpu", dtype="float64")
    original = load_model(device="cpu", dtype="float64")
    with torch.no_grad():
        found = smaller.model(ids, use_cache=False).logits
        with masked(original, plan.keep):
            expected = original.model(ids, use_cache=False).logits
        whole = original.model(ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (whole - expected).abs().max() > 1


@pytest.fixture(scope="module")
def plain_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with torch, transformers and what they need, and nothing else; their files are this one's."""
    folder = tmp_path_factory.mktemp("plain") / "environment"
    venv.create(folder)
    (site,) = folder.glob("lib/*/site-packages")
    for distribution in needed("torch", "transformers"):
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(str(distribution.locate_file(name)))
    return folder / "bin" / "python"


def needed(*names: str) -> Iterator[metadata.Distribution]:
    """The distributions with these names, and all that they require here."""
    found, waiting = set[str](), list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            distribution = metadata.distribution(name)
            required = map(Requirement, distribution.requires or ())
            waiting += [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
            yield distribution


@pytest.fixture(scope="module")
def cut(plan: Plan, pruned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Plan, Path]]]:
    """The checkpoint whose layers differ, and two stock ones: without layers, and with a third fewer heads in all."""
    facts, place = plan.model, tmp_path_factory.mktemp("stock")
    whole = whole_model(facts)
    keeps = {
        "layers": keeping(*(None if layer in (11, 21) else kept for layer, kept in enumerate(whole))),
        "uniform": keeping(*(tuple(h for h in range(9) if (h + layer) % 3) for layer in range(30))),
    }
    made = {name: plan_of(facts, keep) for name, keep in keeps.items()}
    yield {"per layer": (plan, pruned)} | {name: (of, prune(of, place / name)) for name, of in made.items()}
    shutil.rmtree(place)


def test_they_load_where_slim_is_not_installed(
    cut: dict[str, tuple[Plan, Path]], plain_python: Path, tmp_path: Path
) -> None:
    """With transformers alone, stock ones without remote code, and say the same with a cache, without one, and here."""
    folders = [str(folder) for _, folder in cut.values()]
    done = subprocess.run(
        [str(plain_python), "-I", "-c", PLAIN, PROMPT, str(tmp_path / "logits.safetensors"), *folders],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    logits = load_file(tmp_path / "logits.safetensors")
    for (name, (made, folder)), answer in zip(cut.items(), answers, strict=True):
        stock = name != "per layer"
        assert answer["class"] == ("LlamaForCausalLM" if stock else "SlimLlamaForCausalLM")
        assert answer["module"].startswith("transformers.models" if stock else "transformers_modules")
        assert bool(list(folder.glob("*.py"))) != stock
        assert answer["parameters"] == made.after.parameters
        cached, uncached = answer["said"]
        assert cached == uncached
        here = load_model(str(folder), device="cpu")
        ids = here.tokenizer(PROMPT, return_tensors="pt")
        with torch.no_grad():
            expected = here.model(**ids, use_cache=False).logits
        torch.testing.assert_close(logits[str(folder)], expected, rtol=0, atol=1e-3)
        said = here.model.generate(**ids, do_sample=False, max_new_tokens=6)  # type: ignore[operator]
        assert said[0].tolist() == cached


def test_stock_checkpoints_are_the_gated_original(cut: dict[str, tuple[Plan, Path]]) -> None:
    """On real text, in float64."""
    ids, original = real_ids(48), load_model(device="cpu", dtype="float64")
    for name in ("layers", "uniform"):
        made, folder = cut[name]
        smaller = load_model(str(folder), device="cpu", dtype="float64")
        with torch.no_grad():
            found = smaller.model(ids, use_cache=False).logits
            with masked(original, made.keep):
                expected = original.model(ids, use_cache=False).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
