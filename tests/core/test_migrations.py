"""Records of other versions: older ones are brought up to date, newer ones name what they need, no file is changed.

`tests/files/0.1.0` holds what Slim 0.1.0 wrote for `make_pico("llama", layers=3, heads=4, kv_heads=2)`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slim.calibration.check_record import CriterionCheck
from slim.calibration.facts import CalibrationFacts
from slim.calibration.record import load_calibration
from slim.core.errors import InputError
from slim.core.migrations import STEPS, from_plain, read_record
from slim.core.records import Record
from slim.evaluation.record import EvaluationFacts, load_evaluation
from slim.judging import judge, votes
from slim.models.load import Loaded
from slim.models.units import whole_model
from slim.planning.files import load_plan
from slim.planning.record import Plan
from slim.planning.sizes import size_of
from slim.pruning.checkpoint import prune
from slim.pruning.history import RECOVERY_FILE, Recovery, load_recovery
from tests import FILES
from tests.commands import Run
from tests.pico import keeping, plan_of, save_pico, shorthand

OLD = FILES / "0.1.0"
PLANS = ("plan-heads.json", "plan-blocks.json")
WRITTEN: dict[type[Record], tuple[Callable[[Path], Any], str]] = {
    CalibrationFacts: (load_calibration, "record.json"),
    EvaluationFacts: (load_evaluation, "record.json"),
    judge.Judgment: (lambda folder: judge.load_judgment(folder / "judged.json"), "judged.json"),
    votes.Votes: (lambda folder: votes.load_votes(folder / "judged.json"), "judged.votes.json"),
    Plan: (lambda folder: load_plan(folder / "plan.json"), "plan.json"),
    Recovery: (load_recovery, RECOVERY_FILE),
}
"""The loader of each kind, and the file that it looks for in a folder."""


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_of_the_first_version_opens(name: str) -> None:
    """All that it said is there; the sizes that it did not know are those of what it keeps."""
    old = json.loads((OLD / name).read_text())
    found = load_plan(OLD / name)
    assert found.schema_version == 3
    assert found.reason.model_dump(exclude={"per_layer", "scores"}) == {
        "kind": "threshold",
        "threshold": old["threshold"],
        "weights": old["weights"],
    }
    assert shorthand(found.keep) == tuple(map(tuple, old["keep"]))
    assert (found.unit, found.calibration, found.model.fingerprint) == (
        old["unit"],
        old["calibration"],
        old["model"]["fingerprint"],
    )
    for size, kept in (("before", whole_model(found.model)), ("after", found.keep)):
        assert getattr(found, size) == size_of(found.model, kept)
        assert getattr(found, size).model_dump(include=set(old[size])) == old[size]
    assert found.forecast is not None
    assert found.forecast.model_dump(include=set(old["forecast"])) == old["forecast"]
    assert Plan.model_validate_json(found.model_dump_json()) == found


def test_a_plan_of_the_first_version_is_executed(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """The checkpoint is that of the same plan made today, and the old file is as it was."""
    original = save_pico(pico("llama", layers=3, heads=4, kv_heads=2), tmp_path / "original")
    old = json.loads((OLD / PLANS[0]).read_text())
    old["model"] |= {"source": original.facts.source, "fingerprint": original.facts.fingerprint}
    (tmp_path / "plan.json").write_text(json.dumps(old))
    before = (tmp_path / "plan.json").read_bytes()
    made = prune(load_plan(tmp_path / "plan.json"), tmp_path / "one")
    again = prune(plan_of(original.facts, keeping(*map(tuple, old["keep"]))), tmp_path / "other")
    assert (made / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert (tmp_path / "plan.json").read_bytes() == before


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "sizes": (lambda raw: raw["after"].update(parameters=1), "after: it is not the size"),
    "keep": (lambda raw: raw["keep"].__setitem__(0, [7]), r"keep\[0\]"),
    "no threshold": (lambda raw: raw.pop("threshold"), r"not a plan of schema version 1 \('threshold'\)"),
    "sizes of text": (lambda raw: raw.update(before="large"), "not a plan of schema version 1"),
    "family": (lambda raw: raw["model"].update(model_type="bloom"), "bloom"),
    "no model": (lambda raw: raw.pop("model"), "model"),
    "a later field": (lambda raw: raw.update(surprise=1), "surprise"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_plan_of_the_first_version_is_checked_like_any(name: str, tmp_path: Path) -> None:
    """An invalid edit of it is refused; the sentence names file and field."""
    edit, words = EDITS[name]
    raw = json.loads((OLD / PLANS[0]).read_text())
    edit(raw)
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=rf"plan\.json' is not valid.*{words}"):
        load_plan(tmp_path / "plan.json")


def test_a_calibration_of_the_first_version_says_what_reads_it() -> None:
    """Its figures and its sketch lack what is needed now: it is refused with the reason and both ways on."""
    with pytest.raises(InputError) as caught:
        load_calibration(OLD / "calibration")
    said = str(caught.value)
    assert repr(str(OLD / "calibration")) in said
    for words in ("schema version 1", "no intervals", "`slim calibrate` again", "Slim 0.1.0"):
        assert words in said


@pytest.mark.parametrize(("source", "notes"), [("/a/folder", 0), ("/a/model.gguf", 1), ("bundled:smollm2-135m", 1)])
def test_a_calibration_of_the_second_version_says_what_its_tokens_are(source: str, notes: int) -> None:
    """Of a GGUF file alone: its text was not cut as the file says."""
    raw = json.loads((FILES / "before-0.2" / "calibration" / "record.json").read_text())
    found = from_plain(CalibrationFacts, raw | {"model": raw["model"] | {"source": source}}, "calibration")
    assert found.tokenizer == ""
    assert sum("calibrate again" in note for note in found.notes) == notes


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.__name__)
def test_a_file_from_the_future_names_the_slim_it_needs(kind: type[Record], tmp_path: Path) -> None:
    """Whatever else stands in it, of every kind of record and by its own loader."""
    load, name = WRITTEN[kind]
    fields = kind.model_fields
    newer = {"kind": fields["kind"].default, "schema_version": fields["schema_version"].default + 3, "novel": [1]}
    for release, words in (({}, "a newer Slim "), ({"versions": {"slim": "9.1.0"}}, "a newer Slim, 9.1.0 ")):
        (tmp_path / name).write_text(json.dumps(newer | release))
        with pytest.raises(InputError) as caught:
            load(tmp_path)
        said = str(caught.value)
        assert f"was written by {words}(schema version {newer['schema_version']}, this one reads up to" in said
        assert said.endswith("update Slim.")
        assert str(tmp_path) in said


def test_the_commands_say_it_too(run: Run, tmp_path: Path) -> None:
    """In one line, as bad input."""
    raw = json.loads((OLD / PLANS[0]).read_text()) | {"schema_version": 7}
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    done = run("prune", tmp_path / "plan.json", "--output", tmp_path / "out")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "newer Slim (schema version 7, this one reads up to 3): update Slim." in done.err


@pytest.mark.parametrize("version", [0, -1, True, 2.0, "2", None, [2], {}])
def test_what_is_no_version_is_refused(tmp_path: Path, version: Any) -> None:
    """A version is a whole number from 1 on."""
    raw = json.loads((OLD / PLANS[0]).read_text()) | {"schema_version": version}
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"schema_version: .* is not a version"):
        load_plan(tmp_path / "plan.json")


def test_a_record_without_a_version_is_of_the_first(tmp_path: Path) -> None:
    """As records were before they said it; and one of another kind is not taken for it."""
    raw = json.loads((OLD / PLANS[0]).read_text())
    raw.pop("schema_version")
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    assert load_plan(tmp_path / "plan.json") == load_plan(OLD / PLANS[0])
    checked = {
        "rows": 2,
        "tokens": 9,
        "unseen": True,
        "perplexity": 3.0,
        "weights": {},
        "heads": [[0, 1]],
        "damage": [0.1],
        "verdicts": [],
        "correction": None,
        "seconds": 1.0,
    }
    assert from_plain(CriterionCheck, checked, "a check").schema_version == 1
    shutil.copy(OLD / "calibration" / "record.json", tmp_path / "plan.json")
    with pytest.raises(InputError, match="kind: it is 'calibration', not 'plan'"):
        load_plan(tmp_path / "plan.json")


def test_every_step_leads_to_a_version_that_is_read() -> None:
    """From the first version to the current one there is a step for each, of every kind."""
    expected = {
        (kind.model_fields["kind"].default, earlier)
        for kind in (*WRITTEN, CriterionCheck)
        for earlier in range(1, kind.model_fields["schema_version"].default)
    }
    assert set(STEPS) == expected


def test_numbers_that_nothing_can_be_computed_with_are_refused(tmp_path: Path) -> None:
    """Infinity in three spellings and whole numbers beyond 64 bits, named by their field."""
    text = (OLD / PLANS[0]).read_text()
    for number, words in (("1e999", "threshold: .*not finite"), ("NaN", "NaN|expected"), (str(2**63), "beyond 64")):
        (tmp_path / "plan.json").write_text(text.replace('"threshold": 0.5', f'"threshold": {number}'))
        with pytest.raises(InputError, match=words):
            load_plan(tmp_path / "plan.json")


def test_only_files_of_a_sensible_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that never ends is not waited for."""
    monkeypatch.setattr("slim.core.migrations.LARGEST", 10)
    with pytest.raises(ValueError, match="larger than"):
        read_record(Plan, OLD / PLANS[0], "plan")
    with pytest.raises(ValueError, match="not a file"):
        read_record(Plan, Path("/dev/zero"), "plan")
