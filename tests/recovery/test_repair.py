"""The stage of repair, and iterative pruning: from a calibrated model to a checkpoint that is better, and says so."""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from slim.calibration.calibrate import calibrate
from slim.calibration.facts import CalibrationSettings
from slim.calibration.record import Calibration
from slim.core.errors import Cancelled, InputError
from slim.core.records import Keep
from slim.data import tasks
from slim.models.load import load_model
from slim.planning.budget import plan_by_budget
from slim.planning.record import Plan
from slim.pruning import checkpoint, held_out
from slim.pruning.history import ROLES, Quality, RecoveryStep, load_recovery, role_of
from slim.pruning.surgery import prune
from slim.recovery.iterative import Planner, expanded, prune_in_rounds
from slim.recovery.least_squares import FittedMatrix
from slim.recovery.repair import RepairSettings, prune_and_repair, repair
from tests.pico import make_pico, plan_of, save_pico
from tests.surgery import WHOLE, logits

TRIAGE = "bundled:triage"
FEW = RepairSettings(samples=120, max_length=48, dtype="float64")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Of a pico llama in a folder, on a few rows of a real dataset."""
    folder = tmp_path_factory.mktemp("calibrated")
    save_pico(make_pico("llama"), folder / "model")
    settings = CalibrationSettings(samples=12, max_length=48, dtype="float64")
    return calibrate(str(folder / "model"), TRIAGE, settings=settings, output=folder / "calibration")


@pytest.fixture(scope="module")
def plan(calibration: Calibration) -> Plan:
    """Of two thirds of the heads."""
    return plan_by_budget(calibration, {"heads": 0.67})


def step_of(folder: Path) -> RecoveryStep:
    (step,) = load_recovery(folder).steps
    return step


def test_a_repaired_checkpoint_is_better_and_says_so(plan: Plan, tmp_path: Path) -> None:
    cut = prune(plan, tmp_path / "cut")
    done = repair(str(cut), settings=FEW, output=tmp_path / "done")
    step = step_of(done)
    assert step.applied
    assert step.after.kl < step.before.kl
    assert step.dataset.source == TRIAGE
    assert step.settings["original"] == plan.model.source
    assert {FittedMatrix(**one).name for one in step.settings["matrices"]} == {"self_attn.o_proj", "mlp.down_proj"}
    assert checkpoint.recipe(done) == plan
    before, after = (load_model(str(folder), dtype="float64") for folder in (cut, done))
    assert not torch.equal(logits(before), logits(after))
    assert f"| repair | {TRIAGE} | {step.before.kl:.4f} → {step.after.kl:.4f} |" in (done / "README.md").read_text()


def test_the_figures_are_of_rows_that_took_no_other_part(plan: Plan, calibration: Calibration, tmp_path: Path) -> None:
    """Recomputed from the definition on the rows whose role it is, without those of the calibration."""
    done = prune_and_repair(plan, FEW, output=tmp_path / "done")
    drawn = tasks.choose(tasks.load_task(TRIAGE), FEW.samples, FEW.seed)
    settings = calibration.facts.settings
    calibrated = tasks.choose(tasks.load_task(TRIAGE), settings.samples, settings.seed)
    told = [row for row in drawn if role_of(row) == "report" and row not in calibrated]
    original, repaired = load_model(plan.model.source, dtype="float64"), load_model(str(done), dtype="float64")
    nats = surprise = base = count = 0.0
    for row in tasks.encode(told, original.tokenizer, FEW.max_length).rows:
        with torch.no_grad():
            p, q = (one.model(row[None]).logits[0, :-1].log_softmax(-1) for one in (original, repaired))
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
    done = prune_and_repair(plan, FEW, output=tmp_path / "done")
    task = tasks.load_task(TRIAGE)
    taken = {example for example in tasks.choose(task, FEW.samples, FEW.seed) if role_of(example) != "report"}
    kept, why = held_out.draw(task, 30, 0, [str(done)])
    assert not taken & set(kept)
    assert "recovery did not learn" in why


def test_what_does_not_help_is_not_applied(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that decide are made to see a repair that harms: a repair of real rows is never worse here."""

    def harm(*args: Any, **kwargs: Any) -> list[FittedMatrix]:
        student = args[1]
        for parameter in student.model.parameters():
            parameter.mul_(1.3)
        return [FittedMatrix(0, "mlp.down_proj", 1.0, 0.5)]

    monkeypatch.setattr("slim.recovery.repair.repair_weights", harm)
    cut = prune(plan, tmp_path / "cut")
    done = repair(str(cut), settings=FEW, output=tmp_path / "done")
    step = step_of(done)
    assert not step.applied
    assert step.after == step.before
    assert any("no better" in note for note in step.notes)
    assert torch.equal(*(logits(load_model(str(folder), dtype="float64")) for folder in (cut, done)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": 4}, "samples=4: among 4 rows none is left to"),
        ({"dataset": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_used_is_named(plan: Plan, tmp_path: Path, change: dict[str, object], said: str) -> None:
    cut = prune(plan, tmp_path / "cut")
    settings = FEW.model_copy(update={name: value for name, value in change.items() if name == "samples"})
    dataset = change.get("dataset")
    with pytest.raises(InputError, match=said):
        repair(str(cut), dataset if isinstance(dataset, str) else None, settings, output=tmp_path / "done")
    assert not (tmp_path / "done").exists()


def test_what_was_not_pruned_is_not_repaired(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no slim_plan\.json"):
        repair(plan.model.source, output=tmp_path / "done")


def test_without_its_calibration_a_dataset_must_be_named(tmp_path: Path) -> None:
    original = save_pico(make_pico("llama"), tmp_path / "model")
    cut = prune(plan_of(original.facts, (WHOLE, (0, 3), WHOLE, WHOLE)), tmp_path / "cut")
    with pytest.raises(InputError, match="dataset: repair takes the rows of the plan's calibration"):
        repair(str(cut), settings=FEW, output=tmp_path / "done")
    assert step_of(repair(str(cut), TRIAGE, FEW, output=tmp_path / "done")).applied


def test_an_expanded_checkpoint_computes_the_same(plan: Plan, tmp_path: Path) -> None:
    original = load_model(plan.model.source, dtype="float64")
    done = prune_and_repair(plan, FEW, output=tmp_path / "done")
    assert torch.allclose(logits(expanded(original, done)), logits(load_model(str(done), dtype="float64")), atol=1e-10)


def test_rounds_reach_the_budget_and_tell_of_each(plan: Plan, tmp_path: Path) -> None:
    told: list[tuple[int, int, Quality]] = []
    plans: list[Plan] = []

    def tell(number: int, folder: Path) -> None:
        made, step = checkpoint.recipe(folder), load_recovery(folder).steps[-1]
        plans.append(made)
        told.append((number, made.removed_heads, step.after))

    done = prune_in_rounds(plan, 3, FEW, tmp_path / "done", told=tell)
    steps = load_recovery(done).steps
    assert [number for number, _, _ in told] == [1, 2, 3]
    removed = [heads for _, heads, _ in told]
    assert removed == sorted(removed)
    assert removed[-1] >= 24 * 0.33
    assert [step.after for step in steps] == [after for _, _, after in told]
    assert checkpoint.recipe(done).removed_heads == removed[-1]
    gone = [_removed(made) for made in plans]
    assert all(one <= other for one, other in itertools.pairwise(gone))


def _removed(plan: Plan) -> set[tuple[int, int]]:
    return {(layer, head) for layer, kept in enumerate(plan.keep) for head in WHOLE if head not in (kept or ())}


def test_stopped_rounds_go_on_where_they_were(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prune_in_rounds(plan, 3, FEW, tmp_path / "whole")
    planned: list[float] = []

    class Interrupted(Planner):
        def solve(self, limits: Mapping[str, float]) -> Keep:
            planned.append(limits["heads"])
            if len(planned) == 2:
                raise Cancelled("cancelled")
            return super().solve(limits)

    monkeypatch.setattr("slim.recovery.iterative.Planner", Interrupted)
    with pytest.raises(Cancelled):
        prune_in_rounds(plan, 3, FEW, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    broken = prune_in_rounds(plan, 3, FEW, tmp_path / "broken")
    assert planned == pytest.approx([0.89, 0.78, 0.78, 0.67])
    one, other = (load_model(str(folder), dtype="float64") for folder in (whole, broken))
    assert torch.equal(logits(one), logits(other))
    assert json.loads((broken / "slim_plan.json").read_text())["keep"] == [
        list(kept) if kept is not None else None for kept in checkpoint.recipe(whole).keep
    ]


def test_rounds_need_a_budget_of_size(plan: Plan, calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rounds=1"):
        prune_in_rounds(plan, 1, FEW, tmp_path / "done")
    with pytest.raises(InputError, match="rounds: they approach a size"):
        prune_in_rounds(plan_by_budget(calibration, {"loss": 0.5}), 2, FEW, tmp_path / "done")
    with pytest.raises(InputError, match="names no calibration"):
        prune_in_rounds(plan.model_copy(update={"calibration": ""}), 2, FEW, tmp_path / "done")


@pytest.mark.parametrize(
    "make", [prune_and_repair, lambda plan, settings, output: prune_in_rounds(plan, 2, settings, output)]
)
def test_a_taken_folder_is_refused_before_anything_runs(plan: Plan, tmp_path: Path, make: Callable[..., Path]) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").touch()
    with pytest.raises(InputError, match="taken"):
        make(plan, FEW, output=tmp_path / "taken")
