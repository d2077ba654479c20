"""Fine-tuning: what is learnt, from which positions, what stops it, what goes on, and the checkpoint it leaves."""

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer

from slim.core import workspace
from slim.core.errors import Cancelled, InputError, SlimError
from slim.core.reporter import Reporter
from slim.core.run_index import runs
from slim.data.tasks import Example, encode, load_task
from slim.models.architectures import decoder_layers
from slim.models.load import Loaded, load_model
from slim.pruning.checkpoint import prune, recipe
from slim.pruning.history import RecoveryStep, TriedAnswers, load_recovery, role_of
from slim.recovery import context
from slim.recovery import finetune as stage
from slim.recovery.finetune import finetune
from slim.recovery.lora import adapted, matrices, without_dropout
from slim.recovery.loss import Loss
from slim.recovery.request import FinetuneRequest
from slim.recovery.trainer import RecoveryTrainer, Rows, arguments
from tests.pico import FAMILIES, keeping, plan_of, save_pico
from tests.surgery import IDS, WHOLE, logits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks by an old name
KEEP = keeping((), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5), (3, 4, 5))
SETTINGS: dict[str, Any] = {
    "steps": 6,
    "samples": 60,
    "batch_size": 4,
    "micro_batch": 4,
    "max_length": 64,
    "evaluations": 3,
    "learning_rate": 0.02,
    "rank": 4,
    "dtype": "float64",
    "device": "cpu",
}


@dataclass(frozen=True)
class Case:
    """A pico model, the checkpoint that was cut from it, and rows to learn from."""

    original: Loaded
    pruned: Path
    rows: Path

    def run(self, output: Path, method: Any = "kd", **settings: Any) -> RecoveryStep:
        finetune(self.asked(output, method, **settings))
        return load_recovery(output).steps[-1]

    def asked(self, output: Path, method: Any = "kd", **settings: Any) -> FinetuneRequest:
        given = {"folder": self.pruned, "dataset": self.rows} | SETTINGS | settings
        return FinetuneRequest.asked(method=method, output=output, **given)


@pytest.fixture(scope="module")
def case(pico: Callable[..., Loaded], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("finetune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        original = save_pico(pico("llama", dtype=torch.float32), folder / "original")
        prune(plan_of(original.facts, KEEP), folder / "pruned")
        yield Case(original, folder / "pruned", written(folder / "rows.jsonl"))


def written(file: Path, rows: int = 60) -> Path:
    """Sums with their results, of different lengths."""
    lines = [{"question": f"{'and ' * (n % 5)}{n} + {n * n}?", "answer": f"{n + n * n} is it."} for n in range(rows)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def role(row: dict[str, str]) -> str:
    """The split of a row of the file."""
    return role_of(Example(row["question"], row["answer"]))


def stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit for bit."""
    mine, yours = stored(one), stored(other)
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


def states() -> list[Path]:
    """Checkpoints that unfinished trainings left in the workspace."""
    return sorted(workspace.subfolder("trainings").glob("*/checkpoint-*"))


def test_what_the_original_predicts_is_learnt(case: Case, tmp_path: Path) -> None:
    """The checkpoint is nearer to the original, loads with and without Slim, and says what was done."""
    step = case.run(tmp_path / "better")
    assert step.applied
    assert step.after.kl < 0.9 * step.before.kl
    assert sum(step.rows.values()) == 60
    assert min(step.rows.values()) > 0
    assert step.before.rows == step.after.rows == step.rows["test"]
    assert [point.step for point in step.curve] == [0, 2, 4, 6]
    assert step.curve[-1].validation < step.curve[0].validation
    assert step.curve[-1].kl < step.curve[0].kl
    assert step.settings["original"] == case.original.facts.source
    assert not states()
    loaded = load_model(str(tmp_path / "better"), device="cpu", dtype="float64")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "better", trust_remote_code=True, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(plain.eval()(IDS, use_cache=False).logits, logits(loaded))
    assert recipe(tmp_path / "better") == recipe(case.pruned)
    assert {tensor.dtype for tensor in stored(tmp_path / "better").values()} == {torch.float32}
    assert runs("checkpoint")[0] == tmp_path / "better"
    card = (tmp_path / "better" / "README.md").read_text(encoding="utf-8")
    assert f"{step.before.kl:.4f} → {step.after.kl:.4f}" in card
    assert card.index("## Recovery") < card.index("## Load it")


def test_steps_add_up(case: Case, tmp_path: Path) -> None:
    """A recovered checkpoint learns on from its own weights; the record keeps both steps, the card too."""
    case.run(tmp_path / "one", "lora")
    case.run(tmp_path / "two", folder=tmp_path / "one", weights="full", learning_rate=0.002)
    first, second = load_recovery(tmp_path / "two").steps
    assert (first.method, second.method) == ("lora", "kd")
    assert second.before.kl == pytest.approx(first.after.kl, rel=1e-12)  # what was measured is what was stored
    assert second.before.perplexity == pytest.approx(first.after.perplexity, rel=1e-12)
    assert (tmp_path / "two" / "README.md").read_text(encoding="utf-8").count(f"| {first.rows['test']} | yes |") == 2


def test_the_tasks_own_tokens_are_learnt(case: Case, tmp_path: Path) -> None:
    step = case.run(tmp_path / "tuned", "lora")
    assert step.after.perplexity < 0.9 * step.before.perplexity


def test_adapter_and_merged_weights_say_the_same(case: Case, tmp_path: Path) -> None:
    """The adapter is loaded by peft on top of the checkpoint, which is as it was."""
    case.run(tmp_path / "merged", dtype="float32")
    step = case.run(tmp_path / "adapter", dtype="float32", merge=False)
    (other,) = load_recovery(tmp_path / "merged").steps
    assert step.curve == other.curve
    assert step.after.kl == pytest.approx(other.after.kl, rel=1e-4)
    base = AutoModelForCausalLM.from_pretrained(case.pruned, trust_remote_code=True, dtype=torch.float64).eval()
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = load_model(str(tmp_path / "merged"), device="cpu", dtype="float64")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, use_cache=False).logits, logits(merged), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(logits(load_model(str(case.pruned), device="cpu", dtype="float64")), logits(merged))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    with pytest.raises(InputError, match=r"is an adapter .*`merge_and_unload"):
        load_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize("method", ["lora", "kd"])
def test_what_is_no_better_is_not_kept(case: Case, tmp_path: Path, method: Any) -> None:
    """The training does not help on the acceptance split: the weights are as they were, and the record says so."""
    little = keeping(WHOLE, WHOLE, WHOLE, (0, 1, 3, 4))
    prune(plan_of(case.original.facts, little), tmp_path / "pruned")
    rows = [json.loads(line) for line in case.rows.read_text(encoding="utf-8").splitlines()]
    right = [row | {"answer": "aaaaaaaa"} for row in rows]
    wrong = [row | {"answer": "zqj"} for row in rows]
    told = [row for row in right if role(row) in ("train", "validation")]
    lines = [json.dumps(row) for row in (*told, *(row for row in wrong if role(row) in ("acceptance", "test")))]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    mine = replace(case, pruned=tmp_path / "pruned", rows=tmp_path / "rows.jsonl")
    step = mine.run(tmp_path / "same", method, task_weight=1.0)
    assert not step.applied
    assert step.after == step.before
    assert any("its weights are as they were" in note for note in step.notes)
    assert same(tmp_path / "same", mine.pruned)
    assert not mine.run(tmp_path / "idle", method, task_weight=1.0, merge=False).applied
    base = AutoModelForCausalLM.from_pretrained(mine.pruned, trust_remote_code=True, dtype=torch.float64).eval()
    with torch.no_grad():
        wanted = base(IDS, use_cache=False).logits
        found = PeftModel.from_pretrained(base, tmp_path / "idle").eval()(IDS, use_cache=False).logits
    assert torch.equal(found, wanted)


def test_a_model_learns_where_its_answers_end(case: Case, tmp_path: Path) -> None:
    """Without a chat template too: the end token follows the answer, so that the trained model stops behind it."""
    rows = [{"question": f"which boat {n}", "answer": "red"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    mine = replace(case, rows=tmp_path / "rows.jsonl")
    step = mine.run(tmp_path / "tuned", "lora", rank=16, steps=24, batch_size=8, dtype="float32")
    one, other = step.before.answers, step.after.answers
    assert one is not None
    assert other is not None
    assert (one.stopped, other.stopped) == (0, other.rows)
    assert other.rows == step.rows["test"]
    assert f"{step.stopped} |" in (tmp_path / "tuned" / "README.md").read_text(encoding="utf-8")
    assert step.stopped == f"0 → {other.rows} of {other.rows}"


def test_a_training_that_breaks_stopping_is_not_kept(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much better the loss: the weights are as they were, and the record says why."""
    told = iter([16, 15, 12, 3])  # of the acceptance and test rows, before and after

    def counted(*_: Any) -> TriedAnswers:
        return TriedAnswers(rows=16, stopped=next(told), max_new_tokens=24)

    monkeypatch.setattr(context, "tried", counted)
    step = case.run(tmp_path / "same")
    assert not step.applied
    assert step.unchanged == (
        "on the acceptance rows clearly fewer answers ended by themselves after it (16 of 16 before, 12 of 16 after), "
        "so its weights are as they were"
    )
    assert step.unchanged in step.notes
    assert step.stopped == "15 → 15 of 16"
    assert same(tmp_path / "same", case.pruned)


def test_an_original_learns_the_task_by_the_same_steps(case: Case, tmp_path: Path) -> None:
    """It teaches itself; perplexity decides."""
    source = case.original.facts.source
    step = case.run(tmp_path / "tuned", folder=source)
    assert (step.before.kl, step.before.ratio) == (0, 1)
    assert step.after.kl > 0
    assert step.after.ratio < 1
    assert "## Recovery" in (tmp_path / "tuned" / "README.md").read_text(encoding="utf-8")


def trainer_of(loaded: Loaded, rows: Path, folder: Path, micro_batch: int = 8) -> RecoveryTrainer:
    """All weights learn the rows' own tokens."""
    examples = load_task(str(rows)).examples[:8]
    taken = Rows(encode(examples, loaded.tokenizer, 64, "answer"))
    made = arguments(
        folder, steps=2, every=2, device=torch.device("cpu"), per_device_train_batch_size=8, learning_rate=0.01
    )
    loaded.model.requires_grad_(True)
    return RecoveryTrainer(loaded.model, made, taken, taken, Loss(), patience=1, micro_batch=micro_batch)


def test_only_answers_count(pico: Callable[..., Loaded], case: Case, tmp_path: Path) -> None:
    """The loss of a batch is the mean over a mask made by hand of the texts, and so is its gradient."""
    loaded = pico("llama")
    trainer = trainer_of(loaded, case.rows, tmp_path)
    loss = trainer._gradients(loaded.model, list(range(8)))
    found = [parameter.grad.clone() for parameter in loaded.model.parameters() if parameter.grad is not None]
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for example in load_task(str(case.rows)).examples[:8]:
        ids = torch.tensor(loaded.tokenizer(f"{example.prompt}\n{example.answer}<eos>")["input_ids"])
        answer = len(example.answer.encode()) + 1  # the tokenizer's tokens are bytes
        said = loaded.model(ids[None], use_cache=False).logits[0].log_softmax(-1)
        for place in range(len(ids) - answer, len(ids)):
            total = total - said[place - 1, ids[place]]
            count += 1
    wanted = torch.autograd.grad(total / count, [p for p in loaded.model.parameters() if p.grad is not None])
    assert float(loss) == pytest.approx((total / count).item(), rel=1e-6)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_micro_batches_change_nothing(pico: Callable[..., Loaded], case: Case, tmp_path: Path) -> None:
    """One of eight rows, four of two, eight of one: the same gradients."""
    found = []
    for size in (8, 2, 1):
        loaded = pico("llama")
        trainer_of(loaded, case.rows, tmp_path, micro_batch=size)._gradients(loaded.model, list(range(8)))
        found.append([p.grad for p in loaded.model.parameters() if p.grad is not None])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_half_the_precision_learns_too(case: Case, tmp_path: Path) -> None:
    """Products in bfloat16 give about the weights that float32 gives; the record says which it was."""
    first = case.run(tmp_path / "whole", dtype="float32", precision="float32")
    other = case.run(tmp_path / "half", dtype="float32", precision="bfloat16")
    assert (first.settings["precision"], other.settings["precision"]) == ("float32", "bfloat16")
    assert not same(tmp_path / "whole", tmp_path / "half")
    assert other.after.kl == pytest.approx(first.after.kl, rel=0.1)
    weights = {"weights": "full", "learning_rate": 0.002, "dtype": "float32", "precision": "bfloat16"}
    told = case.run(tmp_path / "full", **weights).after
    again = replace(case, pruned=tmp_path / "full").run(tmp_path / "again", **weights).before
    assert again.kl == pytest.approx(told.kl, rel=1e-5)  # figures are taken in float32
    assert case.run(tmp_path / "auto").settings["precision"] == "float32"  # for weights in float64


def test_checkpointing_changes_nothing(case: Case, tmp_path: Path) -> None:
    """Less is kept of the forward; the weights are those of a run that keeps all."""
    case.run(tmp_path / "kept")
    case.run(tmp_path / "again", checkpointing=True)
    for name, tensor in stored(tmp_path / "kept").items():
        torch.testing.assert_close(stored(tmp_path / "again")[name], tensor, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_halved(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of a step stays what it was, so the weights are those of a run with small micro-batches."""
    counted = stage.RecoveryTrainer._loss

    def scarce(self: Any, model: Any, rows: Any, batch: Any, places: list[int]) -> Tensor:
        if len(places) > 1 and self.state.global_step >= 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        return counted(self, model, rows, batch, places)

    case.run(tmp_path / "fits", micro_batch=1)
    with monkeypatch.context() as patch:
        patch.setattr(stage.RecoveryTrainer, "_loss", scarce)
        step = case.run(tmp_path / "halved")
    assert "4 rows at a time did not fit in memory, so it went on with 2" in step.notes
    assert "2 rows at a time did not fit in memory, so it went on with 1" in step.notes
    for name, tensor in stored(tmp_path / "fits").items():
        torch.testing.assert_close(stored(tmp_path / "halved")[name], tensor, rtol=1e-4, atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(stage.RecoveryTrainer, "_loss", lambda *args: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(SlimError, match="out of memory on a single training row"):
            case.run(tmp_path / "none", seed=3)


class Stopped(Reporter):
    """Ends a training at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def progress(self, done: float, total: float, message: str) -> None:
        if message.startswith(f"Training, step {self.at} "):
            raise Cancelled("cancelled")


def test_a_stopped_run_goes_on_and_ends_the_same(case: Case, tmp_path: Path) -> None:
    """Cancelled between two saved states, over an epoch's end too: weights and curve are those of a run in one go."""
    long = {
        "steps": 9,
        "evaluations": 9,
        "patience": 9,
        "samples": 60,
        "batch_size": 8,
        "task_weight": 0.5,
        "temperature": 2.0,
    }
    unbroken = case.run(tmp_path / "unbroken", **long)
    for stop_at in (3, 8):
        with pytest.raises(Cancelled):
            finetune(case.asked(tmp_path / "resumed", **long), Stopped(stop_at))
        assert states()[-1].name == f"checkpoint-{stop_at - 1}"
        assert not (tmp_path / "resumed").exists()
    (states()[-1] / "slim.json").unlink()  # as if it had been killed while this one was saved
    resumed = case.run(tmp_path / "resumed", **long)
    assert same(tmp_path / "resumed", tmp_path / "unbroken")
    assert resumed.curve == unbroken.curve
    assert not states()


def test_a_loss_that_is_no_number_stops_the_run(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named with its step and rows; the state before it stays."""
    counted = stage.RecoveryTrainer._loss

    def poisoned(self: Any, model: Any, rows: Any, batch: Any, places: list[int]) -> Tensor:
        loss = counted(self, model, rows, batch, places)
        return loss * torch.nan if self.state.global_step == 4 else loss

    monkeypatch.setattr(stage.RecoveryTrainer, "_loss", poisoned)
    with pytest.raises(
        SlimError, match=r"the loss is nan at step 5, on the training rows \d+(, \d+){3}: .*smaller"
    ) as e:
        case.run(tmp_path / "none")
    kept = states()[-1]
    assert kept.name == "checkpoint-4"
    assert str(kept) in str(e.value)
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "adapter_model.safetensors").values())


def test_a_full_disk_stops_the_run_and_it_goes_on_later(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state that does not fit leaves nothing behind, the one before it stays and is gone on from."""
    save = Trainer._save_rng_state

    def full(self: Any, output_dir: str) -> None:
        if self.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_rng_state", full)
        with pytest.raises(SlimError, match=r"step 4 could not be saved .*No space left.*free some space.*from step 2"):
            case.run(tmp_path / "made")
    assert [state.name for state in states()] == ["checkpoint-2"]
    case.run(tmp_path / "made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(tmp_path / "other"))
        case.run(tmp_path / "unbroken")
    assert same(tmp_path / "made", tmp_path / "unbroken")


def test_it_stops_early(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the second look in turn without a better loss; the weights of the best one are taken.

    The losses of the looks are given, because which way a training turns depends on the machine.
    """
    losses, seen = [5.0, 4.0, 3.0, 3.5, 3.25], list[dict[str, Tensor]]()
    evaluate, loss = RecoveryTrainer.evaluate, Loss.__call__

    def look(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({name: weight.float() for name, weight in self.model.named_parameters()})
        return evaluate(self, *args, **kwargs)

    def counted(self: Loss, logits: Tensor, tokens: Tensor, soft: Any) -> Tensor:
        if torch.is_grad_enabled():
            return loss(self, logits, tokens, soft)
        return logits.new_tensor(losses[len(seen) - 1] * len(tokens))

    monkeypatch.setattr(RecoveryTrainer, "evaluate", look)
    monkeypatch.setattr(Loss, "__call__", counted)
    step = case.run(
        tmp_path / "made", steps=40, evaluations=20, patience=2, weights="full", learning_rate=0.002, seed=1
    )
    assert [(point.step, point.validation) for point in step.curve] == [*zip((0, 2, 4, 6, 8), losses, strict=True)]
    assert "stopped at step 8: 2 evaluations gave no better validation loss" in step.notes
    assert "the weights of step 4 had the best validation loss" in step.notes
    assert step.applied
    for name, tensor in stored(tmp_path / "made").items():
        assert torch.equal(tensor, seen[2][name])


def test_rows_are_cut_or_left_out_and_it_says_so(case: Case, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in case.rows.read_text(encoding="utf-8").splitlines()]
    rows[3]["answer"] = "long " * 20
    rows[5]["question"] = "long " * 20
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    step = case.run(tmp_path / "made", dataset=file)
    assert any("1 row was read in part: cut at 64 tokens, " in note for note in step.notes)
    assert "1 row was left out: nothing of the answer is within 64 tokens (row 6)" in step.notes
    assert sum(step.rows.values()) == 59


def test_plain_text_counts_every_position(case: Case, tmp_path: Path) -> None:
    """A text file asks nothing: all of its tokens are learnt."""
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"Line {n} of a text." for n in range(60)), encoding="utf-8")
    step = case.run(tmp_path / "made", "lora", dataset=file)
    assert 16 <= step.before.predicted / step.before.rows <= 17  # a token is a byte


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"samples": 3}, "samples=3"),
        ({"samples": 4}, "samples=4"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"task_weight": 1.5}, "task_weight=1.5"),
        ({"temperature": 0}, "temperature=0"),
        ({"weights": "full", "merge": False}, "merge=False"),
    ],
)
def test_what_cannot_be_is_refused(case: Case, tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        case.run(tmp_path / "none", **given)
    assert not (tmp_path / "none").exists()


def test_a_teacher_with_another_tokenizer_is_refused(pico: Callable[..., Loaded], case: Case, tmp_path: Path) -> None:
    """By name, before anything is trained."""
    save_pico(pico("llama", vocab_size=90), tmp_path / "stranger")
    with pytest.raises(InputError, match=r"stranger': its tokenizer is not that of .*pruned"):
        case.run(tmp_path / "none", original=tmp_path / "stranger")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_a_layer_has_an_adapter(pico: Callable[..., Loaded], family: str) -> None:
    """And nothing outside the layers; at first it changes nothing; merged it says what it said."""
    loaded = pico(family)
    names, before = matrices(decoder_layers(loaded.model, loaded.architecture)), logits(loaded)
    inside = [
        name
        for name, parameter in loaded.model.named_parameters()
        if parameter.ndim == 2 and name.startswith(f"{loaded.architecture.layers}.") and "norm" not in name
    ]
    model = adapted(loaded, 3)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(inside) == 2 * 4 * len(names)
    assert all(f"{loaded.architecture.layers}." in name for name in trained)
    with torch.no_grad():
        assert torch.equal(model(IDS, use_cache=False).logits, before)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        wanted = model(IDS, use_cache=False).logits
        found = model.merge_and_unload()(IDS, use_cache=False).logits  # type: ignore[operator]
    assert not torch.allclose(wanted, before)
    torch.testing.assert_close(found, wanted)


def test_dropout_is_off(pico: Callable[..., Loaded]) -> None:
    """Whether a module drops out by itself or by one of torch's."""
    for family in ("gpt2", "opt", "llama"):
        extra = {"attention_dropout": 0.5} if family == "llama" else {}
        loaded = pico(family, **extra)
        loaded.model.train()
        assert not torch.equal(logits(loaded), logits(loaded))
        without_dropout(loaded.model)
        noisy = logits(loaded)
        loaded.model.eval()
        assert torch.equal(noisy, logits(loaded))
