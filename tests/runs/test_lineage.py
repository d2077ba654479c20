"""The parents of each run: of a real pipeline, of runs that moved, and of records that are gone or broken."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from slim.core import workspace
from slim.core.run_index import reference, remember, runs
from slim.planning.files import load_plan, save_plan
from slim.planning.record import Plan
from slim.pruning import checkpoint
from slim.runs import facts, lineage
from slim.runs.facts import Stage
from slim.runs.lineage import Lineage, Node
from slim.runs.lineage_chart import chart, columns, lines, places, short
from tests.pipeline import ARROWS, Pipeline


@pytest.fixture
def here(whole: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pipeline]:
    """The pipeline at another place, which a test may damage. The places that its records name are gone."""
    home, copied = whole.calibration.parent.parent, tmp_path / "copy"
    shutil.copytree(home, copied)
    monkeypatch.setenv("SLIM_HOME", str(copied))
    shutil.rmtree(copied / "runs")
    moved = {name: copied / path.relative_to(home) for name, path in whole.runs.items()}
    for name, path in moved.items():
        remember(path, "checkpoint" if name == "recovered" else name)  # type: ignore[arg-type]
    away = home.rename(home.with_name("away"))
    yield Pipeline(whole.model, **moved)
    away.rename(home)


def named(found: Lineage, key: str) -> list[str]:
    return [node.stage for node in found.parents(key)]


def node_of(found: Lineage, path: Path) -> Node:
    return next(node for node in found.runs if node.path == path)


def test_a_whole_pipeline(whole: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arrow, by what the records say, with figures and without a note."""
    monkeypatch.setenv("SLIM_HOME", str(whole.calibration.parent.parent))
    found = lineage.read_lineage()
    parents = {node.stage: named(found, node.key) for node in found.nodes.values()}
    assert parents == ARROWS
    assert not [node.notes for node in found.nodes.values() if node.notes]
    figures = {node.stage: node.figures for node in found.nodes.values()}
    cut = load_plan(whole.plan)
    assert figures["calibration"]["data"] == "bundled:triage"
    assert figures["plan"]["heads gone"] == f"{cut.removed_heads} of 24"
    assert figures["checkpoint"]["parameters"] == f"{cut.after.parameters / cut.before.parameters:.1%}"
    assert figures["recovered"]["recovered by"] == "repair"
    assert "×" in figures["evaluation"]["perplexity of small"]
    assert figures["judgement"]["judged"] == "100% of 3"
    weights = sum(file.stat().st_size for file in whole.checkpoint.iterdir())
    assert node_of(found, whole.checkpoint).bytes == weights
    recovered = node_of(found, whole.recovered)
    assert [node.stage for node in found.ancestors(recovered.key)] == ["checkpoint", "plan", "calibration", "model"]
    assert {node.stage for node in found.dependents(node_of(found, whole.plan).key)} == {
        "checkpoint",
        "recovered",
        "evaluation",
        "judgement",
    }


def test_runs_that_moved_find_each_other(here: Pipeline) -> None:
    """With the places gone that the records name, calibration, plan and checkpoints are known by what they hold."""
    found = lineage.read_lineage()
    parents = {node.stage: named(found, node.key) for node in found.nodes.values()}
    assert parents["plan"] == ["calibration"]
    assert parents["checkpoint"] == ["plan"]
    assert parents["recovered"] == ["checkpoint"]
    assert parents["evaluation"] == ["checkpoint", "recovered", "model"]
    assert parents["judgement"] == ["recovered", "model"]


@pytest.mark.parametrize(
    ("gone", "left", "expected", "note"),
    [
        ("calibration", "plan", ["model"], "its calibration"),
        ("plan", "checkpoint", ["calibration"], "its plan is gone"),
        ("checkpoint", "recovered", ["plan"], ""),
        ("recovered", "judgement", ["model"], "'"),
    ],
)
def test_a_parent_that_is_gone(here: Pipeline, gone: str, left: str, expected: list[str], note: str) -> None:
    """Its children are joined to the nearest that is left. Repair may have been done on the way, so no note."""
    path = here.runs[gone]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = lineage.read_lineage()
    node = node_of(found, here.runs[left])
    assert named(found, node.key) == expected
    assert [said.startswith(note) and said.endswith("is gone") for said in node.notes] == [True] * bool(note)


@pytest.mark.parametrize("kind", ["calibration", "plan", "checkpoint", "evaluation", "judgement"])
@pytest.mark.parametrize("content", ["{", "[]", "null", "\x00", '{"schema_version": 99}'])
def test_a_broken_record_is_shown_with_its_reason(here: Pipeline, kind: str, content: str) -> None:
    """It stays among the runs, and all others are there."""
    path = here.runs[kind]
    file = path if path.is_file() else path / ("slim_plan.json" if kind == "checkpoint" else "record.json")
    file.write_text(content)
    found = lineage.read_lineage()
    assert len(found.runs) == 6
    node = node_of(found, path)
    assert len(node.notes) == 1
    assert str(path) in node.notes[0] or file.name in node.notes[0]
    chart(found, node.key)


def test_a_damaged_reference_is_passed_over(here: Pipeline) -> None:
    """Neither the list of runs nor the graph is lost to it, nor does one speak for another's key."""
    folder = workspace.home() / "runs"
    entry = next(folder.glob("*.json")).read_text()
    (folder / "0000000000000000.json").write_text(entry)
    (folder / "1111111111111111.json").write_text('{"kind": "plan"}')
    (folder / "2222222222222222.json").write_text("{")
    assert len(lineage.read_lineage().runs) == 6
    assert len(runs("checkpoint")) == 2


def test_an_older_reference_is_read(here: Pipeline) -> None:
    """One that was written before runs had names."""
    entry = reference(remember(here.plan, "plan").key)
    assert entry
    file = workspace.home() / "runs" / f"{entry.key}.json"
    file.write_text(json.dumps({"kind": "plan", "path": entry.path, "created": "2026-01-01T00:00:00+00:00"}))
    node = node_of(lineage.read_lineage(), here.plan)
    assert (node.name, node.tags, node.created) == ("eight", (), "2026-01-01T00:00:00+00:00")


def test_a_run_made_anew_keeps_its_name(here: Pipeline) -> None:
    entry = remember(here.plan, "plan", "the good one", ("kept",))
    again = remember(here.plan, "plan")
    assert (again.name, again.tags) == (entry.name, entry.tags) == ("the good one", ("kept",))
    assert remember(here.plan, "judgement").name is None


def test_a_plan_of_another_content_is_not_the_parent(here: Pipeline) -> None:
    """A plan file that was made again no longer made the checkpoint."""
    cut = load_plan(here.plan)
    (other,) = [Plan.model_validate(cut.model_dump() | {"reason": cut.reason.model_dump() | {"threshold": 0.61}})]
    save_plan(other, here.plan)
    found = lineage.read_lineage()
    node = node_of(found, here.checkpoint)
    assert named(found, node.key) == ["calibration"]
    assert "its plan is gone" in node.notes


def test_twins_are_told_apart_by_time(here: Pipeline) -> None:
    """Of two checkpoints by one plan, the one that was there before the recovered one is its parent."""
    twin = checkpoint.prune(load_plan(here.plan), here.checkpoint.with_name("twin"))
    found = lineage.read_lineage()
    (parent,) = found.parents(node_of(found, here.recovered).key)
    assert parent.path == here.checkpoint != twin
    assert named(found, node_of(found, twin).key) == ["plan"]


def test_facts_are_read_again_when_a_record_changes(here: Pipeline) -> None:
    before = facts.run_facts("plan", here.plan)
    assert facts.run_facts("plan", here.plan) is before
    cut = load_plan(here.plan)
    save_plan(cut.model_copy(update={"notes": ("another",)}), here.plan)
    assert facts.run_facts("plan", here.plan).cut != before.cut


def test_the_chart_has_a_place_of_its_own_for_each(here: Pipeline) -> None:
    """Columns grow along every edge, no two nodes share a place, and names are text."""
    remember(here.checkpoint, "checkpoint", "<b>bold & odd</b>")
    found = lineage.read_lineage()
    column, at = columns(found), places(found)
    assert all(column[parent] < column[child] for parent, child in found.edges)
    assert len(set(at.values())) == len(found.nodes)
    judgement = next(node for node in found.runs if node.stage == "judgement")
    assert column[judgement.key] == max(column.values())
    figure: Any = chart(found, judgement.key)
    clickable = [key for trace in figure.data if trace.customdata is not None for (key,) in trace.customdata]
    assert sorted(clickable) == sorted(found.nodes)
    assert "<b>bold" not in str(figure.to_json()).replace("\\u003c", "<")
    assert "&lt;b&gt;bold" in str(figure.to_json()).replace("\\u003c", "<").replace("\\u0026", "&")


def test_what_other_ways_say_is_not_drawn(here: Pipeline) -> None:
    """The evaluation is joined to what it compared, not once more to the model these came from."""
    found = lineage.read_lineage()
    drawn = lines(found)
    evaluation = node_of(found, here.evaluation).key
    assert {found.nodes[parent].stage for parent, child in drawn if child == evaluation} == {"recovered"}


def forged(*parents: tuple[str, tuple[str, ...]]) -> Lineage:
    return Lineage(
        {key: Node(key=key, stage="checkpoint", name=key, path=Path(key), parents=above) for key, above in parents}
    )


def test_a_circle_of_edited_records_ends() -> None:
    """Each is found once, and drawn; the circle is cut, so that all lines go to the right."""
    found = forged(("a", ("c",)), ("b", ("a",)), ("c", ("b",)), ("d", ("d", "c")))
    assert [node.key for node in found.ancestors("a")] == ["c", "b"]
    assert [node.key for node in found.dependents("a")] == ["b", "c", "d"]
    column = columns(found)
    assert len(set(places(found).values())) == 4
    assert len(lines(found)) == 3
    assert all(column[parent] < column[child] for parent, child in lines(found))
    chart(found, "a")


def staged(*nodes: tuple[str, Stage, str]) -> Lineage:
    """Nodes by key, stage and the keys of their parents, the first of them made first."""
    return Lineage(
        {
            key: Node(key=key, stage=stage, name=key, created=str(place), parents=tuple(parents))
            for place, (key, stage, parents) in reversed(list(enumerate(nodes)))
        }
    )


def test_the_places_of_a_workspace() -> None:
    """By hand: a stage is a column, a way is a row, and what compares models stands right of all others."""
    found = staged(
        ("m", "model", ""),
        ("c", "calibration", "m"),
        ("p", "plan", "c"),
        ("q", "plan", "c"),
        ("k", "checkpoint", "p"),
        ("r", "recovered", "k"),
        ("e", "evaluation", "rkm"),
        ("j", "judgement", "km"),
        ("l", "checkpoint", "q"),
        ("n", "model", ""),
    )
    assert places(found) == {
        "m": (0, 0),
        "c": (1, 0),
        "p": (2, 0),
        "k": (3, 0),
        "r": (4, 0),
        "e": (5, 0),
        "j": (6, 1),
        "q": (2, 2),
        "l": (3, 2),
        "n": (0, 3),
    }
    assert set(lines(found)) == {tuple(edge) for edge in ("mc", "cp", "cq", "pk", "kr", "re", "kj", "ql")}


def test_what_is_made_of_a_pruned_model_stands_right_of_it() -> None:
    """A checkpoint that was calibrated again: its stages move on. A stage that nothing is of has no column."""
    found = staged(("m", "model", ""), ("k", "checkpoint", "m"), ("c", "calibration", "k"), ("e", "evaluation", "km"))
    assert columns(found) == {"m": 0, "k": 1, "c": 2, "e": 3}
    assert columns(staged()) == places(staged()) == {}


def test_a_long_line_of_runs_is_laid_out() -> None:
    """However many steps were taken after each other."""
    names = [f"k{number}" for number in range(1200)]
    found = forged((names[0], ()), *((child, (parent,)) for parent, child in pairwise(names)))
    assert places(found) == {name: (number, 0) for number, name in enumerate(names)}


def test_a_part_stays_joined() -> None:
    """Over what is left out."""
    found = forged(("a", ()), ("b", ("a",)), ("c", ("b",)), ("d", ("c", "a")))
    assert found.part({"a", "c"}).edges == [("a", "c")]
    assert set(found.part({"a", "d"}).edges) == {("a", "d")}


def test_names_are_cut_in_the_middle() -> None:
    assert short("short", 9) == "short"
    assert short("smollm2-135m-20260101-120000", 11) == "smoll…20000"
