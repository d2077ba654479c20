"""The stage of repair, and iterative pruning: from a calibrated model to a checkpoint that is better, and says so."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from slim.calibration.calibrate import calibrate
from slim.calibration.record import Calibration
from slim.calibration.request import CalibrateRequest
from slim.core.errors import Cancelled, InputError
from slim.core.markdown import escaped
from slim.core.reporter import Reporter
from slim.data import tasks
from slim.models.load import load_model
from slim.models.units import Keep
from slim.planning.budget import plan_by_budget
from slim.planning.files import save_plan
from slim.planning.record import Plan
from slim.pruning import checkpoint, held_out
from slim.pruning.history import ROLES, Recovery, RecoveryStep, load_recovery, role_of
from slim.recovery import iterative
from slim.recovery.context import RecoveryContext
from slim.recovery.iterative import Planner, Round, expanded
from slim.recovery.least_squares import FittedMatrix
from slim.recovery.prune import prune
from slim.recovery.repair import repair
from slim.recovery.request import PruneRequest, RepairRequest
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.surgery import WHOLE, logits

TRIAGE = "bundled:triage"
SAMPLES, MAX_LENGTH = 120, 48
FEW: dict[str, Any] = {"samples": SAMPLES, "max_length": MAX_LENGTH, "dtype": "float64"}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Of a pico llama in a folder, on a few rows of a real dataset."""
    folder = tmp_path_factory.mktemp("calibrated")
    save_pico(make_pico("llama"), folder / "model")
    few = {"samples": 12, "max_length": MAX_LENGTH, "dtype": "float64"}
    return calibrate(
        CalibrateRequest.asked(model=folder / "model", dataset=TRIAGE, output=folder / "calibration", **few)
    )


@pytest.fixture(scope="module")
def plan(calibration: Calibration) -> Plan:
    """Of two thirds of the heads."""
    return plan_by_budget(calibration, {"heads": 0.67})


def pruned(plan: Plan, output: Path, **asked: Any) -> Path:
    """The checkpoint that the stage makes of a plan."""
    file = save_plan(plan, output.with_name("plan.json"))
    return prune(PruneRequest.asked(plan=file, output=output, **FEW | asked))


def repaired(folder: Path, output: Path, **asked: Any) -> Path:
    """The checkpoint that the stage makes of another one."""
    return repair(RepairRequest.asked(folder=folder, output=output, **FEW | asked))


def step_of(folder: Path) -> RecoveryStep:
    (step,) = load_recovery(folder).steps
    return step


def test_a_repaired_checkpoint_is_better_and_says_so(plan: Plan, tmp_path: Path) -> None:
    cut = checkpoint.prune(plan, tmp_path / "cut")
    done = repaired(cut, tmp_path / "done")
    step = step_of(done)
    assert step.applied
    assert step.after.kl < step.before.kl
    assert step.dataset.source == TRIAGE
    assert step.settings["original"] == plan.model.source
    assert {FittedMatrix(**one).name for one in step.settings["matrices"]} == {"self_attn.o_proj", "mlp.down_proj"}
    assert checkpoint.recipe(done) == plan
    before, after = (load_model(str(folder), dtype="float64") for folder in (cut, done))
    assert not torch.equal(logits(before), logits(after))
    assert (
        f"| repair | {escaped(TRIAGE)} | {step.before.kl:.4f} → {step.after.kl:.4f} |"
        in (done / "README.md").read_text()
    )


def test_the_figures_are_of_rows_that_took_no_other_part(plan: Plan, calibration: Calibration, tmp_path: Path) -> None:
    """Recomputed from the definition on the rows whose role it is, without those of the calibration."""
    done = pruned(plan, tmp_path / "done")
    drawn = tasks.choose(tasks.load_task(TRIAGE), SAMPLES, 0)
    settings = calibration.facts.settings
    calibrated = tasks.choose(tasks.load_task(TRIAGE), settings.samples, settings.seed)
    told = [row for row in drawn if role_of(row) == "test" and row not in calibrated]
    original, better = (load_model(source, dtype="float64") for source in (plan.model.source, str(done)))
    nats = surprise = base = count = 0.0
    for row in tasks.encode(told, original.tokenizer, MAX_LENGTH).rows:
        with torch.no_grad():
            p, q = (one.model(row[None]).logits[0, :-1].log_softmax(-1) for one in (original, better))
        nats += float((p.exp() * (p - q)).sum())
        base, surprise = (
            total - float(one.gather(1, row[1:, None]).sum()) for total, one in ((base, p), (surprise, q))
        )
        count += len(row) - 1
    found = step_of(done).after
    assert (found.rows, found.predicted) == (len(told), count)
    assert found.kl == pytest.approx(nats / count, rel=1e-6)
    assert found.ratio == pytest.approx(2.718281828459045 ** ((surprise - base) / count), rel=1e-6)


def test_a_row_has_one_role_whatever_else_is_drawn() -> None:
    task = tasks.load_task(TRIAGE)
    roles = [role_of(example) for example in task.examples]
    assert [role_of(example) for example in tasks.choose(task, 50, 3)] == [
        roles[task.examples.index(example)] for example in tasks.choose(task, 50, 3)
    ]
    for role, share in ROLES.items():
        assert roles.count(role) / len(roles) == pytest.approx(share / sum(ROLES.values()), abs=0.06)


def test_later_evaluations_take_other_rows(plan: Plan, tmp_path: Path) -> None:
    done = pruned(plan, tmp_path / "done")
    task = tasks.load_task(TRIAGE)
    taken = {example for example in tasks.choose(task, SAMPLES, 0) if role_of(example) != "test"}
    kept, why = held_out.draw(task, 30, 0, [str(done)])
    assert not taken & set(kept)
    assert "outside the recovery's train" in why


def test_what_does_not_help_is_not_applied(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The acceptance split is made to see a repair that harms: a repair of real rows is never worse here."""

    def harm(*args: Any, **kwargs: Any) -> list[FittedMatrix]:
        student = args[1]
        for parameter in student.model.parameters():
            parameter.mul_(1.3)
        return [FittedMatrix(0, "mlp.down_proj", 1.0, 0.5)]

    monkeypatch.setattr("slim.recovery.repair.repair_weights", harm)
    cut = checkpoint.prune(plan, tmp_path / "cut")
    done = repaired(cut, tmp_path / "done")
    step = step_of(done)
    assert not step.applied
    assert step.after == step.before
    assert any("no better" in note for note in step.notes)
    assert torch.equal(*(logits(load_model(str(folder), dtype="float64")) for folder in (cut, done)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": 4}, "samples=4"),
        ({"dataset": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_used_is_named(plan: Plan, tmp_path: Path, change: dict[str, object], said: str) -> None:
    cut = checkpoint.prune(plan, tmp_path / "cut")
    with pytest.raises(InputError, match=said):
        repaired(cut, tmp_path / "done", **change)
    assert not (tmp_path / "done").exists()


def test_what_was_not_pruned_is_not_repaired(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no slim_plan\.json"):
        repaired(Path(plan.model.source), tmp_path / "done")


def test_without_its_calibration_a_dataset_must_be_named(tmp_path: Path) -> None:
    original = save_pico(make_pico("llama"), tmp_path / "model")
    cut = checkpoint.prune(plan_of(original.facts, keeping(WHOLE, (0, 3), WHOLE, WHOLE)), tmp_path / "cut")
    with pytest.raises(InputError, match=r"^dataset: "):
        repaired(cut, tmp_path / "done")
    assert step_of(repaired(cut, tmp_path / "done", dataset=TRIAGE)).applied


def test_an_expanded_checkpoint_computes_the_same(plan: Plan, tmp_path: Path) -> None:
    original = load_model(plan.model.source, dtype="float64")
    small = load_model(str(pruned(plan, tmp_path / "done")), dtype="float64")
    whole = expanded(original, Round(plan, small, Recovery()))
    assert whole.facts.heads == original.facts.heads
    assert torch.allclose(logits(whole), logits(small), atol=1e-10)


class Messages(Reporter):
    """Keeps what is said of the progress."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def progress(self, done: float, total: float, message: str) -> None:
        self.said.append(message)


def test_rounds_reach_the_budget_and_tell_of_each(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Keep] = []

    class Watched(Planner):
        def solve(self, limits: Mapping[str, float]) -> Keep:
            planned.append(super().solve(limits))
            return planned[-1]

    monkeypatch.setattr("slim.recovery.iterative.Planner", Watched)
    heard, file = Messages(), save_plan(plan, tmp_path / "plan.json")
    done = prune(PruneRequest.asked(plan=file, rounds=3, output=tmp_path / "done", **FEW), heard)
    steps = load_recovery(done).steps
    assert [step.method for step in steps] == ["repair"] * 3
    assert all(step.applied for step in steps)
    assert [number for number, _ in itertools.groupby(said.partition(":")[0] for said in heard.said)] == [
        "Round 1 of 3",
        "Round 2 of 3",
        "Round 3 of 3",
    ]
    gone = [_removed(keep) for keep in planned]
    assert len(gone) == 3
    assert all(one <= other for one, other in itertools.pairwise(gone))
    assert len(gone[-1]) >= 24 * 0.33
    assert checkpoint.recipe(done).keep == planned[-1]


def _removed(keep: Keep) -> set[tuple[int, int]]:
    return {(layer, head) for layer, kept in enumerate(keep) for head in WHOLE if head not in kept.heads}


def test_stopped_rounds_go_on_where_they_were(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pruned(plan, tmp_path / "whole", rounds=3)
    planned: list[float] = []

    class Interrupted(Planner):
        def solve(self, limits: Mapping[str, float]) -> Keep:
            planned.append(limits["heads"])
            if len(planned) == 2:
                raise Cancelled("cancelled")
            return super().solve(limits)

    monkeypatch.setattr("slim.recovery.iterative.Planner", Interrupted)
    with pytest.raises(Cancelled):
        pruned(plan, tmp_path / "broken", rounds=3)
    assert not (tmp_path / "broken").exists()
    broken = pruned(plan, tmp_path / "broken", rounds=3)
    assert planned == pytest.approx([0.89, 0.78, 0.78, 0.67])
    one, other = (load_model(str(folder), dtype="float64") for folder in (whole, broken))
    assert torch.equal(logits(one), logits(other))
    assert json.loads((broken / "slim_plan.json").read_text())["keep"] == [
        kept.model_dump(mode="json") for kept in checkpoint.recipe(whole).keep
    ]


def test_rounds_without_room_give_the_same(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the original's residuals are too large to keep, each round computes them."""
    asked: list[bool] = []
    repaired = iterative.repaired

    def watched(at: RecoveryContext, *rest: Any) -> Any:
        asked.append(at.residuals is not None)
        found = repaired(at, *rest)
        assert not at.residuals or len(at.residuals) == at.teacher.facts.layers
        return found

    monkeypatch.setattr(iterative, "repaired", watched)
    kept = pruned(plan, tmp_path / "kept", rounds=2)
    monkeypatch.setattr(iterative, "ROOM", 0)
    computed = pruned(plan, tmp_path / "computed", rounds=2)
    assert asked == [True, True, False, False]
    one, other = (load_model(str(folder), dtype="float64") for folder in (kept, computed))
    assert torch.equal(logits(one), logits(other))


def test_rounds_need_a_budget_of_size(plan: Plan, calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rounds=0"):
        pruned(plan, tmp_path / "done", rounds=0)
    with pytest.raises(InputError, match="rounds=2"):
        pruned(plan, tmp_path / "done", rounds=2, repair=False)
    with pytest.raises(InputError, match=r"rounds: .*--budget"):
        pruned(plan_by_budget(calibration, {"loss": 0.5}), tmp_path / "done", rounds=2)
    with pytest.raises(InputError, match="names no calibration"):
        pruned(plan.model_copy(update={"calibration": ""}), tmp_path / "done", rounds=2)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_taken_folder_is_refused_before_anything_runs(plan: Plan, tmp_path: Path, rounds: int) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").touch()
    with pytest.raises(InputError, match="taken"):
        pruned(plan, tmp_path / "taken", rounds=rounds)
