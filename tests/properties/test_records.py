"""Whatever a record's file holds: a valid record that survives JSON, or one clean line."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from slim.calibration.check import measure_check
from slim.calibration.record import CHECK_FILE, Calibration, load_calibration, save_calibration, save_check
from slim.calibration.task_vs_general import of_same_model
from slim.core.records import DatasetFacts, Record
from slim.data.tasks import Encoded
from slim.evaluation.metrics import Figure
from slim.evaluation.record import TABLE, EvaluationFacts, MetricFacts, Score, figures_table, load_evaluation
from slim.judging import judge, votes
from slim.models.units import whole_model
from slim.planning.after_repair_record import FILE, AfterRepairSketch, load_after_repair, save_after_repair
from slim.planning.files import load_plan, save_plan
from slim.planning.record import ByBudget
from slim.planning.sizes import size_of
from slim.planning.threshold import plan_by_threshold
from slim.pruning.history import RECOVERY_FILE, CurvePoint, Quality, Recovery, RecoveryStep, load_recovery
from tests import FILES
from tests.fuzz import clean, damaged, edited, json_files, values
from tests.judgements import compared, judgement
from tests.pico import keeping, make_pico, plan_of, random_rows
from tests.reference import measured

KEEP = keeping((0, 3), (), None, (0, 1, 2, 3, 4, 5))
DATA = DatasetFacts(source="rows.csv", split="train", kind="text", rows=3, tokens=9, truncated_rows=0)


@dataclass(frozen=True)
class Place:
    """A folder with a good record of each kind, and the good content of every file in it."""

    folder: Path
    good: dict[str, bytes]

    def put(self, name: str, content: bytes) -> None:
        """Another content for one file; all others are good."""
        for file, was in self.good.items():
            (self.folder / file).write_bytes(content if file == name else was)

    def raw(self, name: str) -> Any:
        return json.loads(self.good[name])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Real ones of a pico model, and made by hand where making them takes long."""
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        made = measured(make_pico("llama"), random_rows((9, 12, 7, 20)), draws=2)
        check = measure_check(made, make_pico("llama"), Encoded(random_rows((6, 8), seed=2), 0), heads=4)
        saved = save_calibration(replace(made, check=check), folder / "kept")
        save_check(saved, check)
        facts, root = made.facts.model, saved.path or folder
        kept = [[*keeping((), (0, 3), tuple(range(6)))]] * 4
        effects = [np.ones((3, 5), np.float32)] * 4
        sketch = AfterRepairSketch(kept, effects, np.array([0, 0, 1, 1, 1]), np.array([4, 5]))
        save_after_repair(sketch, root)
        save_plan(plan_by_threshold(saved, 0.6), root / "plan.json")
        budget = plan_of(facts, KEEP).model_copy(update={"reason": ByBudget(limits={"params": 0.9})})
        save_plan(budget, root / "budget.json")
        good = {file.name: file.read_bytes() for file in root.iterdir()}
        old = FILES / "0.1.0" / "plan-heads.json"
        good["old.json"] = old.read_bytes()
        pairs = [compared("po", "one", "two"), compared("xx", "one", "two"), compared("pp", "a", "b")]
        judged = judgement(pairs)
        good["judged.json"] = judged.model_dump_json().encode()
        cast = {votes.key_of(pair): votes.Vote(choice="tie", blind=True, at="now") for pair in pairs}
        good["judged.votes.json"] = votes.Votes(votes=cast).model_dump_json().encode()
        quality = Quality(kl=0.1, perplexity=3.0, original=2.0, rows=2, predicted=9)
        step = RecoveryStep(
            method="kd",
            dataset=DATA,
            samples=4,
            seed=0,
            rows={"learn": 3},
            settings={"steps": 3, "rate": 0.1, "deep": [{"a": 1}]},
            before=quality,
            after=quality,
            applied=True,
            versions={"slim": "0.1.0"},
            device="cpu",
            started="2026-01-01",
            seconds=1.0,
            curve=(CurvePoint(step=1, training=1.0, validation=2.0, kl=0.1),),
        )
        good[RECOVERY_FILE] = Recovery(steps=(step,)).model_dump_json().encode()
    there = folder / "there"
    (there / "evaluation").mkdir(parents=True)
    good["evaluation/record.json"] = _evaluation(facts).model_dump_json().encode()
    rows = pd.DataFrame({"model": ["one", "two"], "task": ["", ""], "row": [0, 1], "kl": [0.1, 0.2]})
    rows.to_parquet(there / "evaluation" / TABLE)
    good[f"evaluation/{TABLE}"] = (there / "evaluation" / TABLE).read_bytes()
    return Place(there, good)


def _evaluation(facts: Any) -> EvaluationFacts:
    about = MetricFacts(task="", title="KL", unit="nats", higher_is_better=False, digits=2, rows=2)
    score = Score(figure=Figure(value=0.1, low=0.0, high=0.2), difference=Figure(value=0.0))
    timed = {"value": 1.0, "times": 1.0, "low": 0.9, "high": 1.1}
    pace = {"rows": 1, "prefill": timed, "decode": timed, "first_token": timed, "cache_bytes": 9}
    return EvaluationFacts.model_validate(
        {
            "dataset": DATA.model_dump(),
            "held_out": "no",
            "settings": {},
            "measures": {"kl": about},
            "tasks": {"arc": {"version": "1", "shots": 0, "rows": 2}},
            "models": [
                {"name": name, "model": facts, "scores": {"kl": score}, "pace": [pace], "footprint": None}
                for name in ("one", "two")
            ],
            "versions": {},
            "device": "cpu",
            "started": "now",
            "seconds": 1.0,
        }
    )


def survives(record: Record) -> None:
    """JSON gives it back as it was, and no number in it is one that cannot be computed with."""
    assert type(record).model_validate_json(record.model_dump_json()) == record
    for value in values(record.model_dump()):
        assert not isinstance(value, float) or isfinite(value)
        assert not isinstance(value, int) or abs(value) < 2**63


def check_json(place: Place, name: str, content: bytes, load: Callable[[], Any], *named: str) -> Any:
    """Reads everything again with one file changed."""
    place.put(name, content)
    return clean(load, str(place.folder), *named)


@pytest.mark.parametrize("name", ["plan.json", "budget.json", "old.json"])
def test_plans(place: Place, name: str) -> None:
    """A plan that is read has valid shapes, is of the size that it says, and what is shown of it can be made."""

    @given(content=json_files(place.raw(name)))
    def every(content: bytes) -> None:
        found = check_json(place, name, content, lambda: load_plan(place.folder / name))
        if found is not None:
            survives(found)
            assert found.after == size_of(found.model, found.keep)
            assert found.before == size_of(found.model, whole_model(found.model))
            assert str(found.reason)
            assert found.removed_heads >= 0

    every()


@pytest.mark.parametrize("name", ["record.json", CHECK_FILE])
def test_calibrations(place: Place, name: str) -> None:
    """Record and check; a plan can be made of what is read."""

    @given(content=json_files(place.raw(name)))
    def every(content: bytes) -> None:
        found = check_json(place, name, content, lambda: load_calibration(place.folder))
        if found is not None:
            survives(found.facts)
            if found.check is not None:
                survives(found.check)
            clean(lambda: plan_by_threshold(found, 0.6))
            of_same_model(found.facts.model, [place.folder])

    every()


def test_evaluations(place: Place) -> None:
    """A record that is read has all that its table of figures is made of."""
    name = "evaluation/record.json"

    @given(content=json_files(place.raw(name)))
    def every(content: bytes) -> None:
        found = check_json(place, name, content, lambda: load_evaluation(place.folder / "evaluation"))
        if found is not None:
            survives(found.facts)
            figures_table(found.facts)

    every()


def test_evaluation_tables(place: Place) -> None:
    """Parquet that is damaged."""
    name = f"evaluation/{TABLE}"

    @given(content=damaged(place.good[name]))
    def every(content: bytes) -> None:
        check_json(place, name, content, lambda: load_evaluation(place.folder / "evaluation"))

    every()


def test_judgements_and_votes(place: Place) -> None:
    """A record that is read can be reviewed: its votes, its queue."""
    file = place.folder / "judged.json"

    @given(content=json_files(place.raw("judged.json")))
    def every(content: bytes) -> None:
        found = check_json(place, "judged.json", content, lambda: judge.load_judgment(file))
        if found is not None:
            survives(found)
            votes.agreement(found, votes.load_votes(file))
            votes.queue(found)

    @given(content=json_files(place.raw("judged.votes.json")))
    def voted(content: bytes) -> None:
        found = check_json(place, "judged.votes.json", content, lambda: votes.load_votes(file))
        if found is not None:
            survives(found)
            votes.agreement(judge.load_judgment(file), found)

    every()
    voted()


def test_recoveries(place: Place) -> None:
    """Settings of any kind in it, but finite."""

    @given(content=json_files(place.raw(RECOVERY_FILE)))
    def every(content: bytes) -> None:
        found = check_json(place, RECOVERY_FILE, content, lambda: load_recovery(place.folder))
        if found is not None:
            survives(found)

    every()


ARRAYS = st.sampled_from(["float64", "float32", "float16", "int64", "int8", "uint64", "bool"])


@st.composite
def arrays(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """A safetensors file that is nearly the good one: arrays dropped, of other shapes, kinds and numbers; damaged."""
    found = {name: array.copy() for name, array in good.items()}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(found))) if found else ""
        action = draw(st.sampled_from(["drop", "kind", "shape", "number", "number", "cut", "rename", "empty"]))
        if action == "drop" or not found:
            found.pop(name, None)
        elif action == "kind":
            found[name] = np.nan_to_num(found[name]).astype(draw(ARRAYS))
        elif action == "shape":
            found[name] = found[name].reshape(
                draw(st.sampled_from([(-1,), (1, -1), (-1, 1, 1), found[name].shape[::-1]]))
            )
        elif action == "number" and found[name].size:
            odd = draw(st.sampled_from([np.nan, np.inf, -np.inf, -1, 0, 1, 1e30, 7]))
            kind = found[name].dtype.kind
            if kind == "f" or np.isfinite(odd):
                wide = odd if kind == "f" else int(np.clip(odd, 0 if kind in "ub" else -100, 100))
                found[name].reshape(-1)[draw(st.integers(0, found[name].size - 1))] = wide
        elif action == "cut":
            found[name] = found[name][:-1].copy() if found[name].ndim else found[name]
        elif action == "rename":
            found[draw(st.sampled_from(["x", "", "sketch.scores", "4.kept", "entropy.head.value"]))] = found.pop(name)
        elif action == "empty":
            found[name] = np.zeros((0, *found[name].shape[1:]), found[name].dtype)
    content = save({name: np.ascontiguousarray(array) for name, array in found.items()})
    return draw(damaged(content)) if draw(st.integers(0, 3)) == 0 else content


@st.composite
def headers(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file whose header is edited as JSON."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(draw(edited(json.loads(content[8 : 8 + length])))).encode()
    said = draw(st.sampled_from([len(header), len(header), len(header) + 1, 0, 2**60, 2**64 - 1]))
    return said.to_bytes(8, "little") + header + content[8 + length :]


@pytest.mark.parametrize("name", ["tensors.safetensors", FILE])
def test_arrays(place: Place, name: str) -> None:
    """Of a calibration and of a forecast after repair: arrays that are read are finite and of the right shapes."""
    (place.folder / name).write_bytes(place.good[name])
    good = load_file(place.folder / name)
    load = load_calibration if name == "tensors.safetensors" else load_after_repair

    @given(content=st.one_of(arrays(good), arrays(good), headers(place.good[name]), damaged(place.good[name])))
    def every(content: bytes) -> None:
        found = check_json(place, name, content, lambda: load(place.folder))
        if isinstance(found, Calibration):
            clean(lambda: plan_by_threshold(found, 0.6))
            for levels in found.metrics.values():
                assert all(np.isfinite(array).all() for array in levels.values())
            assert found.sketch is None or np.isfinite(found.sketch.scores).all()
        elif found is not None:
            assert all(np.isfinite(effect).all() for effect in found.effects)

    every()
