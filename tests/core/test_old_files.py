"""Files of the build before 0.2 still open and works: `tests/files/before-0.2`, of `make.py` beside it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from slim import jobs
from slim.calibration.record import Calibration, load_calibration
from slim.core.records import Record
from slim.evaluation.record import TABLE, figures_table, load_evaluation
from slim.jobs.job import Job
from slim.jobs.store import JobStore
from slim.judging import judge, votes
from slim.models.load import load_model
from slim.planning.after_repair_record import AfterRepairSketch, load_after_repair
from slim.planning.board_choice import from_query
from slim.planning.budget import plan_by_budget
from slim.planning.files import load_plan
from slim.planning.record import ByThreshold, Pins, Plan
from slim.planning.threshold import plan_by_threshold
from slim.pruning.checkpoint import prune, recipe
from slim.pruning.history import load_recovery
from slim.runs import lineage
from slim.runs.archive import import_runs
from tests import FILES
from tests.commands import Run
from tests.pico import keeping, random_rows, shorthand
from tests.pipeline import ARROWS

IDS = torch.stack(random_rows((14, 14)))
PINS = Pins(keep=((0, 1),), drop=((2, 4),), protect=(3,))
MADE: dict[str, Callable[[Calibration, AfterRepairSketch], Plan]] = {
    "heads": lambda measured, left: plan_by_threshold(measured, 0.6, "head", pins=PINS),
    "groups": lambda measured, left: plan_by_threshold(measured, 0.6, "group"),
    "blocks": lambda measured, left: plan_by_threshold(measured, 0.6, "block"),
    "layers": lambda measured, left: plan_by_threshold(measured, 0.6, "layer"),
    "uniform": lambda measured, left: plan_by_threshold(measured, 0.6, "head", uniform=True),
    "thresholds": lambda measured, left: plan_by_threshold(
        measured, 0.9, "head", {"kl_output": 1.0, "entropy": 0.3}, per_layer={1: 0.4}
    ),
    "budget": lambda measured, left: plan_by_budget(measured, {"bytes": 0.95, "kv": 0.9}, "head"),
    "after-repair": lambda measured, left: plan_by_budget(measured, {"heads": 0.8}, "head", absorbed=left),
}
"""The plans, by what they were made with."""
ROLES = {"learn": "train", "choose": "validation", "decide": "acceptance", "report": "test"}
"""Splits of the rows of a recovery, by their old names."""


@dataclass(frozen=True)
class Old:
    """Where the files lie, each as it was and where it was."""

    home: Path

    def __getattr__(self, name: str) -> Path:
        return self.home / "workspace" / PLACES[name]


PLACES = {
    "calibration": "calibrations/task",
    "checkpoint": "checkpoints/better",
    "evaluation": "evaluations/both",
    "judgement": "judgements",
    "plans": "plans",
}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    """All of it in a folder of its own, which its files name as theirs."""
    home = tmp_path_factory.mktemp("old")
    for path in (FILES / "before-0.2").iterdir():
        target = home / "workspace" / PLACES[path.name] if path.name in PLACES else home / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    for file in home.rglob("*.json"):
        file.write_text(file.read_text(encoding="utf-8").replace('"OLD/', f'"{home}/'), encoding="utf-8")
    return Old(home)


@pytest.fixture(scope="module")
def calibration(old: Old) -> Calibration:
    return load_calibration(old.calibration)


def named(record: Record, raw: dict[str, Any]) -> dict[str, Any]:
    """The values in a record of all fields that its file names, at every depth: later versions have more."""
    found = record.model_dump(mode="json")

    def kept(one: Any, other: Any) -> Any:
        if isinstance(one, dict) and isinstance(other, dict):
            return {name: kept(value, other[name]) for name, value in one.items() if name in other}
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            return [kept(*pair) for pair in zip(one, other, strict=True)]
        return one

    return kept(found, raw)


def test_the_calibration_opens(old: Old, calibration: Calibration) -> None:
    """Every figure and interval, the sketch, the check with its correction, and what is known of a repair."""
    tensors = load_file(old.calibration / "tensors.safetensors")
    record = json.loads((old.calibration / "record.json").read_text())
    assert named(calibration.facts, record) == record | {"schema_version": 3}
    figures = {name for name in tensors if not name.startswith("sketch.")}
    for name in figures:
        metric, level, part = name.split(".")
        found = getattr(calibration.estimates[metric][level], part)
        np.testing.assert_array_equal(found, tensors[name])
    assert len(figures) == 3 * sum(len(levels) for levels in calibration.estimates.values())
    sketch = calibration.sketch
    assert sketch is not None
    for part in ("scores", "sequence", "tokens"):
        np.testing.assert_array_equal(getattr(sketch, part), tensors[f"sketch.{part}"])
    check = json.loads((old.calibration / "faithfulness.json").read_text())
    assert calibration.check is not None
    assert calibration.check.model_dump(mode="json", include=set(check)) == check
    left, kept = load_after_repair(old.calibration), load_file(old.calibration / "absorbed.safetensors")
    for layer, (options, effects) in enumerate(zip(left.kept, left.effects, strict=True)):
        np.testing.assert_array_equal(effects, kept[f"{layer}.effects"])
        masks = [[head in option.heads for head in range(6)] for option in options]
        np.testing.assert_array_equal(masks, kept[f"{layer}.kept"])


@pytest.mark.parametrize("name", MADE)
def test_a_plan_opens(old: Old, name: str) -> None:
    """With all that it says: what it keeps, its sizes, forecasts, reason and pins."""
    raw = json.loads((old.plans / f"{name}.json").read_text())
    found = named(load_plan(old.plans / f"{name}.json"), raw)
    assert found.pop("schema_version") == 1 + raw.pop("schema_version")
    keep = keeping(*(None if heads is None else tuple(heads) for heads in raw.pop("keep")))
    assert found.pop("keep") == [kept.model_dump(mode="json") for kept in keep]
    assert found == raw


@pytest.mark.parametrize("name", MADE)
def test_a_plan_is_made_again(old: Old, calibration: Calibration, name: str) -> None:
    """By the same arguments from the old calibration: the same in everything, scores but for their last digit."""
    found, made = load_plan(old.plans / f"{name}.json"), MADE[name](calibration, load_after_repair(old.calibration))
    assert made.keep == found.keep
    assert (made.before, made.after, made.changes) == (found.before, found.after, found.changes)
    assert (made.unit, made.uniform, made.pins, made.notes) == (found.unit, found.uniform, found.pins, found.notes)
    for one, other in ((made.forecast, found.forecast), (made.repaired, found.repaired)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.model_dump(exclude_none=True) == pytest.approx(other.model_dump(exclude_none=True), rel=1e-9)
    if isinstance(made.reason, ByThreshold) and isinstance(found.reason, ByThreshold):
        np.testing.assert_allclose(made.reason.scores, found.reason.scores, rtol=1e-12, atol=1e-15)
        assert made.reason.model_dump(exclude={"scores"}) == found.reason.model_dump(exclude={"scores"})
    else:
        assert made.reason == found.reason


def test_the_checkpoint_opens(old: Old) -> None:
    """Its recipe and recovery, and the answers that its weights give in transformers, by the code that it carries."""
    plan = json.loads((old.checkpoint / "slim_plan.json").read_text())
    assert shorthand(recipe(old.checkpoint).keep) == tuple(map(tuple, plan["keep"]))
    recovery = json.loads((old.checkpoint / "slim_recovery.json").read_text())
    for step in recovery["steps"]:
        step["rows"] = {ROLES[role]: count for role, count in step["rows"].items()}
    found = named(load_recovery(old.checkpoint), recovery)
    assert found.pop("schema_version") == 1 + recovery.pop("schema_version")
    assert found == recovery
    ours: Any = load_model(str(old.checkpoint), device="cpu", dtype="float64").model
    plain: Any = AutoModelForCausalLM.from_pretrained(old.checkpoint, trust_remote_code=True, dtype="auto").eval()
    assert type(plain).__module__.startswith("transformers_modules")
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    with torch.no_grad():
        assert torch.equal(ours(IDS, use_cache=False).logits, plain(IDS, use_cache=False).logits)
        assert torch.equal(ours.generate(IDS, **options), plain.generate(IDS, **options))


def test_the_checkpoint_is_repaired_again(old: Old, run: Run, tmp_path: Path) -> None:
    """By the rows of its calibration, towards its original; the step before stays in its history."""
    done = run("repair", old.checkpoint, "--samples", "60", "--max-length", "48", "--output", tmp_path / "done")
    assert done.code == 0, done.err
    before, after = load_recovery(old.checkpoint), load_recovery(tmp_path / "done")
    assert after.steps[: len(before.steps)] == before.steps
    assert [step.method for step in after.steps] == ["repair", "repair"]
    assert after.steps[-1].dataset.source == "bundled:triage"
    assert recipe(tmp_path / "done") == recipe(old.checkpoint)


def test_the_evaluation_opens(old: Old) -> None:
    """Record, table, and the same figures as in the table of scores beside them."""
    found = load_evaluation(old.evaluation)
    record = json.loads((old.evaluation / "record.json").read_text())
    assert named(found.facts, record) == record
    pd.testing.assert_frame_equal(found.table, pd.read_parquet(old.evaluation / TABLE))
    scores = StringIO(figures_table(found.facts).to_csv(index=False))
    pd.testing.assert_frame_equal(pd.read_csv(scores), pd.read_csv(old.evaluation / "scores.csv"))


def test_the_judgement_opens(old: Old, tmp_path: Path) -> None:
    """With its votes, and another one may be cast."""
    shutil.copytree(old.judgement, tmp_path / "judgements")
    file = tmp_path / "judgements" / "verdict.json"
    found = judge.load_judgment(file)
    record = json.loads(file.read_text())
    assert named(found, record) == record
    assert votes.file_of(file).is_file()
    assert votes.load_votes(file) == votes.Votes()
    one = found.comparisons[0]
    votes.cast(file, one, "A", votes.pruned_is_a(found, one))
    assert [*votes.load_votes(file).votes] == [votes.key_of(one)]


def test_the_archive_comes_in(old: Old, own_workspace: Path, tmp_path: Path) -> None:
    """The lineage is whole, and the archived plan, carried out today, gives the archived checkpoint's weights."""
    taken = import_runs(old.home / "all.slim.zip")
    found = lineage.read_lineage()
    assert len(taken) == len(found.runs) == 6
    assert {node.stage: [parent.stage for parent in found.parents(node.key)] for node in found.nodes.values()} == ARROWS
    assert not [node.notes for node in found.nodes.values() if node.notes]
    paths = {node.stage: node.path for node in found.runs if node.path}
    assert all(path.is_relative_to(own_workspace) for path in paths.values())
    plan = load_plan(paths["plan"])
    assert recipe(paths["checkpoint"]) == recipe(paths["recovered"]) == plan
    moved = plan.model_copy(update={"model": plan.model.model_copy(update={"source": str(old.home / "model")})})
    made, kept = (
        load_file(folder / "model.safetensors") for folder in (prune(moved, tmp_path / "cut"), paths["checkpoint"])
    )
    assert made.keys() == kept.keys()
    assert all(np.array_equal(made[name], kept[name]) for name in kept)


def test_the_link_is_followed(old: Old, calibration: Calibration) -> None:
    """Without a note, and its plan is the one that it gave."""
    choice, notes = from_query(json.loads((old.home / "link.json").read_text()), calibration)
    assert notes == ()
    assert (choice.threshold, choice.per_layer, choice.pins) == (0.65, {1: 0.4}, PINS)
    made, found = choice.plan(calibration), load_plan(old.home / "link-plan.json")
    assert made.keep == found.keep
    assert (made.after, made.changes, made.forecast) == (found.after, found.changes, found.forecast)


def test_the_jobs_are_listed(old: Old) -> None:
    """As they were, the newest first; and each can be asked for again."""
    found = json.loads((old.home / "jobs.json").read_text())
    with JobStore() as store:
        for one in found:
            job = store.put(Job.model_validate(one))
            assert job.model_dump(mode="json", include=set(one)) == one
    assert [(job.kind, job.state, job.arguments) for job in jobs.jobs()] == [
        (one["kind"], "done", one["arguments"]) for one in found
    ]
    asked = {job.kind: jobs.request_of(job) for job in jobs.jobs()}
    prune, calibrate = (one["arguments"] for one in found)
    assert asked["prune"].changed() == {"plan": prune["plan"]} | prune["settings"]
    assert asked["calibrate"].changed() == {
        "model": calibrate["model"],
        "dataset": "bundled:triage",
        "samples": 4,
        "max_length": 48,
    }
