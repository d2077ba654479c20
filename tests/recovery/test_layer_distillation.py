"""Local distillation: each layer comes closer to what the original has, alone, and a stopped run ends the same."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slim import cli
from slim.core import workspace
from slim.core.errors import Cancelled, InputError, SlimError
from slim.core.reporter import SILENT, Reporter
from slim.models.load import Loaded
from slim.models.units import NO_LAYER, Keep
from slim.pruning.checkpoint import prune
from slim.pruning.history import RecoveryStep, load_recovery
from slim.recovery import layer_distillation
from slim.recovery.finetune import finetune
from slim.recovery.layer_distillation import DistilledLayer, distill, error_of
from slim.recovery.request import FinetuneRequest
from slim.recovery.settings import TrainSettings
from tests.pico import FAMILIES, keeping, make_pico, plan_of, save_pico
from tests.recovery.test_finetune import same, written
from tests.recovery.test_least_squares import fit_and_choose, lost, removable
from tests.reference import layers_of
from tests.surgery import FULL, WHOLE, Pruned, logits

BATCH = 16
SETTINGS = TrainSettings(
    steps=12,
    batch_size=BATCH,
    evaluations=4,
    weights="full",
    learning_rate=0.003,
    patience=9,
    device="cpu",
    dtype="float64",
)


@pytest.fixture
def cut(tmp_path: Path) -> Callable[..., Pruned]:
    """A pico model, as it is or changed, and its checkpoint with `keep` left."""

    def make(keep: Keep, loaded: Loaded | None = None) -> Pruned:
        original = save_pico(loaded or make_pico("llama"), tmp_path / "original")
        unit = "layer" if NO_LAYER in keep else "head"
        return Pruned(original, keep, tmp_path / "cut", unit)

    return make


def taught(case: Pruned, folder: Path, settings: TrainSettings = SETTINGS) -> list[DistilledLayer]:
    return distill(case.original, case.loaded, case.plan.keep, *fit_and_choose(BATCH), settings, folder)


@torch.no_grad()
def residuals(loaded: Loaded) -> list[list[Tensor]]:
    """Inputs of each layer and outputs of the last, on the validation split, by hooks on a plain forward.

    # (n, E) of each batch
    """
    layers = layers_of(loaded.model)
    found: list[list[Tensor]] = [[] for _ in range(len(layers) + 1)]
    valid = fit_and_choose(BATCH)[1][0].valid

    def entered(place: int) -> Any:
        return lambda module, args, kwargs: found[place].append((args[0] if args else kwargs["hidden_states"])[valid])

    def left(module: Any, args: Any, output: Any) -> None:
        found[-1].append((output[0] if isinstance(output, tuple) else output)[valid])

    handles = [layer.register_forward_pre_hook(entered(at), with_kwargs=True) for at, layer in enumerate(layers)]
    handles.append(layers[-1].register_forward_hook(left))
    for batch in fit_and_choose(BATCH)[1]:
        valid = batch.valid
        loaded.model(**batch.inputs(), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def apart(wanted: list[Tensor], found: list[Tensor]) -> float:
    """Mean over tokens of the squared distance over the squared size of what is wanted."""
    one, other = torch.cat(wanted), torch.cat(found)
    return float(((one - other).norm(dim=-1) / one.norm(dim=-1)).square().mean())


@pytest.mark.parametrize("weights", ["adapter", "full"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_layer_of_every_family_comes_closer(
    model_type: str, weights: str, cut: Callable[..., Pruned], tmp_path: Path
) -> None:
    """The errors told are those of plain forwards of both models, and the predictions come closer, too."""
    case = cut(removable(model_type), make_pico(model_type))
    before = lost(logits(case.original), logits(case.loaded))
    found = taught(case, tmp_path, SETTINGS.model_copy(update={"weights": weights}))
    assert [one.layer for one in found] == [0, 1, 2, 3][-len(found) :]
    assert all(one.step > 0 and one.after < one.before for one in found)
    last = apart(residuals(case.original)[-1], residuals(case.loaded)[-1])
    assert found[-1].after == pytest.approx(last, rel=1e-6)
    assert lost(logits(case.original), logits(case.loaded)) < before
    assert not any("lora" in name for name, _ in case.loaded.model.named_modules())


def test_a_layer_aims_where_its_output_is_read_next(cut: Callable[..., Pruned], tmp_path: Path) -> None:
    """At what enters the next layer that stays, past one that is gone."""
    case = cut(keeping(WHOLE, None, (0, 1, 3, 4), WHOLE))
    wanted, before = residuals(case.original), residuals(case.loaded)
    found = taught(case, tmp_path)
    after = residuals(case.loaded)
    assert [one.layer for one in found] == [0, 1, 2]
    assert found[0].before == pytest.approx(apart(wanted[2], before[1]))
    for one, at in zip(found, (2, 3, 4), strict=True):
        assert one.after == pytest.approx(apart(wanted[at], after[one.layer + 1]))


def test_a_token_counts_by_the_share_that_is_wrong() -> None:
    """However large it is; padding counts nothing."""
    goal = torch.tensor([[[1000.0, 0.0], [0.0, 2.0], [7.0, 7.0]]])
    left = torch.tensor([[[1000.0, 100.0], [0.0, 1.0], [0.0, 0.0]]])
    assert error_of(left, goal, torch.tensor([[True, True, False]])).item() == pytest.approx(0.01 + 0.25)


def test_a_head_that_has_a_twin_is_made_up_for(cut: Callable[..., Pruned], tmp_path: Path) -> None:
    """Heads 1 and 4 see and say what 0 and 3 do: little of what their removal cost is left."""
    original = make_pico("llama")
    attention = layers_of(original.model)[3].self_attn
    size = original.facts.head_dim
    with torch.no_grad():
        for twin in (1, 4):
            rows = attention.q_proj.weight
            rows[twin * size : (twin + 1) * size] = rows[(twin - 1) * size : twin * size]
    case = cut(keeping(WHOLE, WHOLE, WHOLE, (0, 2, 3, 5)), original)
    before = lost(logits(original), logits(case.loaded))
    settings = SETTINGS.model_copy(update={"steps": 100, "weights": "adapter", "learning_rate": 0.01})
    found = taught(case, tmp_path, settings)
    assert found[0].after < 0.1 * found[0].before
    assert lost(logits(original), logits(case.loaded)) < 0.1 * before


@pytest.mark.parametrize("weights", ["adapter", "full"])
def test_one_layer_at_a_time_has_gradients(
    weights: str, cut: Callable[..., Pruned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only parameters of the layer at hand ask for them, only they get them, and none before it is touched."""
    case = cut(keeping(WHOLE, (0, 1, 3, 4), WHOLE, WHOLE))
    seen: list[tuple[set[str], set[str]]] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any) -> Any:
        named = list(case.loaded.model.named_parameters())
        asks = {name for name, parameter in named if parameter.requires_grad}
        seen.append((asks, {name for name, parameter in named if parameter.grad is not None}))
        assert all(parameter.grad is None for parameter in case.original.model.parameters())
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    before = {name: weight.clone() for name, weight in case.loaded.model.named_parameters()}
    found = taught(case, tmp_path, SETTINGS.model_copy(update={"weights": weights}))
    assert [one.layer for one in found] == [1, 2, 3]
    assert len(seen) == 3 * SETTINGS.steps
    for number, (asks, has) in enumerate(seen):
        layer = f"model.layers.{1 + number // SETTINGS.steps}."
        assert asks
        assert asks == has
        assert all(name.startswith(layer) for name in asks)
        assert all("lora_" in name for name in asks) == (weights == "adapter")
    changed = {name for name, weight in case.loaded.model.named_parameters() if not torch.equal(weight, before[name])}
    assert {name.split(".")[2] for name in changed if name.startswith("model.layers.")} == {"1", "2", "3"}
    assert all(name.startswith("model.layers.") for name in changed)
    assert not any(parameter.requires_grad for parameter in case.loaded.model.parameters())


def test_nothing_changes_where_nothing_was_removed(cut: Callable[..., Pruned], tmp_path: Path) -> None:
    """All layers but the last are passed by, and that has nothing to learn."""
    case = cut(FULL)
    found = taught(case, tmp_path)
    assert [(one.step, one.before, one.after) for one in found] in ([], [(0, 0.0, 0.0)])
    assert torch.equal(logits(case.original), logits(case.loaded))


def test_a_layer_that_gets_no_better_stays_as_it_was(cut: Callable[..., Pruned], tmp_path: Path) -> None:
    """With steps far too large, bit for bit."""
    case = cut(keeping(WHOLE, WHOLE, WHOLE, (0, 1, 3, 4)))
    before = logits(case.loaded)
    for weights in ("adapter", "full"):
        wild = SETTINGS.model_copy(update={"weights": weights, "learning_rate": 1.0, "steps": 8, "patience": 2})
        found = taught(case, tmp_path / weights, wild)
        assert [(one.step, one.after) for one in found] == [(0, found[0].before)]
        assert torch.equal(logits(case.loaded), before)


@dataclass(frozen=True)
class Case:
    """A checkpoint, and rows to learn from."""

    pruned: Path
    rows: Path

    def run(self, output: Path, reporter: Reporter = SILENT, **settings: Any) -> RecoveryStep:
        given = SETTINGS.model_dump() | {
            "samples": 60,
            "batch_size": 4,
            "steps": 6,
            "evaluations": 3,
            "max_length": 64,
            "weights": "adapter",
            "rank": 4,
            "learning_rate": 0.02,
        }
        asked = {"folder": self.pruned, "dataset": self.rows, "method": "local"} | given | settings
        finetune(FinetuneRequest.asked(output=output, **asked), reporter)
        return load_recovery(output).steps[-1]


class Progress(Reporter):
    """Keeps how far the work was, and ends it at a step of a layer, both counted from 1."""

    def __init__(self, layer: int = 0, step: int = 0) -> None:
        self.last = f"Layer {layer} of 4, step {step} "
        self.said: list[str] = []
        self.seen: list[tuple[float, float]] = []

    def progress(self, done: float, total: float, message: str) -> None:
        self.said.append(message)
        self.seen.append((done, total))
        if message.startswith(self.last):
            raise Cancelled("cancelled")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        original = save_pico(make_pico("llama", dtype=torch.float32), folder / "original")
        prune(plan_of(original.facts, keeping((), (0, 2, 3, 5), WHOLE, (3, 4, 5))), folder / "pruned")
        yield Case(folder / "pruned", written(folder / "rows.jsonl"))


def finished() -> list[str]:
    """The layers that unfinished runs left in the workspace."""
    return sorted(file.name for file in workspace.subfolder("trainings").glob("*/layer-*"))


def test_a_checkpoint_comes_closer_and_says_how(case: Case, tmp_path: Path) -> None:
    step = case.run(tmp_path / "better")
    assert (step.method, step.applied, step.curve) == ("local", True, ())
    assert step.after.kl < 0.9 * step.before.kl
    assert sum(step.rows.values()) == 60
    layers = step.settings["layers"]
    assert [layer["layer"] for layer in layers] == [0, 1, 2, 3]
    assert all(layer["after"] < layer["before"] for layer in layers)
    assert "4 of 4 layers came closer to the original's output" in step.notes
    assert not finished()


@pytest.mark.parametrize("weights", ["adapter", "full"])
def test_a_stopped_run_goes_on_and_ends_the_same(case: Case, tmp_path: Path, weights: str) -> None:
    """Cancelled twice in the middle of a layer: layers before it are not learnt again, and the weights are the same."""
    unbroken = case.run(tmp_path / "unbroken", weights=weights, learning_rate=0.01)
    for layer in (2, 4):
        stopped = Progress(layer, step=3)
        with pytest.raises(Cancelled):
            case.run(tmp_path / "resumed", stopped, weights=weights, learning_rate=0.01)
        assert finished() == [f"layer-{index}.safetensors" for index in range(layer - 1)]
        assert not (tmp_path / "resumed").exists()
    assert "Layer 1 of 4 was saved before" in stopped.said
    assert not any(message.startswith("Layer 1 of 4, step") for message in stopped.said)
    resumed = case.run(tmp_path / "resumed", weights=weights, learning_rate=0.01)
    assert same(tmp_path / "resumed", tmp_path / "unbroken")
    assert not same(tmp_path / "resumed", case.pruned)
    assert (resumed.settings, resumed.after) == (unbroken.settings, unbroken.after)
    assert not finished()


def test_work_that_is_told_is_all_the_work(case: Case, tmp_path: Path) -> None:
    """The work done never falls and ends at the total, early stops included."""
    told = Progress()
    case.run(tmp_path / "made", told, steps=9, patience=1)
    mine = [(done, total) for done, total in told.seen if total == told.seen[-1][1]]
    assert [done for done, _ in mine] == sorted(done for done, _ in mine)
    assert mine[-1][0] == pytest.approx(mine[-1][1], rel=0.05)


def test_a_loss_that_is_no_number_stops_the_run(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named with its layer and step; the layers before it are kept, whole."""
    counted, taken = layer_distillation._Learner._gradients, [0, 0, 0, 0]

    def poisoned(self: Any, places: Any) -> float:
        taken[self.now.index] += 1
        return float("nan") if taken == [6, 6, 5, 0] else counted(self, places)

    monkeypatch.setattr(layer_distillation._Learner, "_gradients", poisoned)
    with pytest.raises(SlimError, match=r"the loss is nan in layer 3 at step 5: choose a smaller learning_rate"):
        case.run(tmp_path / "none", seed=5)
    assert finished() == ["layer-0.safetensors", "layer-1.safetensors"]
    for file in workspace.subfolder("trainings").glob("*/layer-*"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())
        file.unlink()


def test_what_does_not_fit_in_memory_is_said(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_distillation._Learner, "_gradients", lambda *given: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(SlimError, match="out of memory while a layer was trained; choose a smaller micro_batch"):
        case.run(tmp_path / "none", seed=6)


def test_as_a_command(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = {"--method": "local", "--rows": "60", "--steps": "3", "--batch-size": "4", "--rank": "2", "--device": "cpu"}
    command = ["slim", "finetune", str(case.pruned), "--dataset", str(case.rows), *chain(*given.items()), "--json"]
    monkeypatch.setattr("sys.argv", [*command, "--output", str(tmp_path / "made")])
    cli.main()
    told = json.loads(capfd.readouterr().out)
    assert (told["method"], len(told["settings"]["layers"])) == ("local", 4)
    assert load_recovery(tmp_path / "made").steps[0].method == "local"


def test_what_cannot_be_is_refused(case: Case, tmp_path: Path) -> None:
    """An adapter of a model that is merged layer by layer, and a model that was never cut."""
    with pytest.raises(InputError, match="merge=False"):
        case.run(tmp_path / "none", merge=False)
    with pytest.raises(InputError, match=r"method='local': .* has no slim_plan\.json"):
        case.run(tmp_path / "none", folder=case.pruned.parent / "original")
    assert not (tmp_path / "none").exists()
