"""`slim runs` on the command line: listed, shown, compared, named, deleted, taken along, cleaned up."""

import json
from pathlib import Path
from typing import Any

import pytest

from slim.core import workspace
from tests.commands import Run
from tests.pipeline import Pipeline


def told(run: Run, *arguments: object) -> dict[str, Any]:
    """The output of a command as a program reads it."""
    result = run("runs", *arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_list_and_show(made: Pipeline, run: Run) -> None:
    listed = run("runs", "list")
    assert listed.code == 0
    assert "6 runs" in listed.out
    assert "heads gone" in listed.out
    assert [one["stage"] for one in told(run, "list")["runs"]] == [*reversed(made.runs)]
    assert [one["name"] for one in told(run, "list", "--kind", "checkpoint")["runs"]] == ["better", "small"]
    assert [one["name"] for one in told(run, "list", "--kind", "recovered")["runs"]] == ["better"]
    one = told(run, "show", "better")
    assert [other["stage"] for other in one["made_from"]] == ["checkpoint", "plan", "calibration", "model"]
    assert {other["stage"] for other in one["used_by"]} == {"evaluation", "judgement"}
    shown = run("runs", "show", made.plan)
    assert f"Made from: calibration {made.calibration}" in shown.out
    assert f"Used by: checkpoint {made.checkpoint}" in shown.out


def test_before_there_is_anything(own_workspace: Path, run: Run) -> None:
    assert "0 runs, 0 bytes" in run("runs", "list").out
    result = run("runs", "show", "any")
    assert result.code == 2
    assert result.err.startswith("slim: run='any': it is not in the workspace")
    assert "There are no leftovers" in run("runs", "clean").out


def test_compare(made: Pipeline, run: Run) -> None:
    lines = told(run, "compare", "small", "better")["lines"]
    assert lines[0]["differs"]
    assert {"name": "unit", "one": "head", "other": "head", "differs": False} in lines
    assert "recovered by" in run("runs", "compare", "small", "better").out
    assert "Heads: both remove" in run("runs", "compare", made.plan, "small").out


def test_names_and_tags(made: Pipeline, run: Run) -> None:
    """A name with a console's markup in it is text."""
    assert told(run, "rename", "small", "[red]good[/red]")["name"] == "[red]good[/red]"
    assert "[red]good[/red]" in run("runs", "list").out
    assert told(run, "tag", "[red]good", "kept", "v1")["tags"] == ["kept", "v1"]
    assert [one["path"] for one in told(run, "list", "--tag", "kept")["runs"]] == [str(made.checkpoint)]
    assert told(run, "tag", "small", "kept", "--remove")["tags"] == ["v1"]
    assert told(run, "rename", "small", "")["name"] == "small"
    assert run("runs", "rename", "small", "x" * 100).code == 2


def test_delete_says_first_and_does_it_with_yes(made: Pipeline, run: Run) -> None:
    said = run("runs", "delete", "small")
    assert said.code == 0
    assert f"Would be deleted: checkpoint {made.checkpoint}" in said.out
    assert f"Depends on it and stays: recovered {made.recovered}" in said.out
    assert "Nothing was deleted. Add --yes" in said.out
    assert made.checkpoint.exists()
    assert told(run, "delete", "small")["deleted"] is False
    done = told(run, "delete", "small", "--with-dependents", "--yes")
    assert [one["stage"] for one in done["runs"]] == ["checkpoint", "recovered", "evaluation", "judgement"]
    assert not made.recovered.exists()
    assert [one["stage"] for one in told(run, "list")["runs"]] == ["plan", "calibration"]


def test_there_and_back(made: Pipeline, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with all it was made from, to another workspace."""
    file = tmp_path / "out.slim.zip"
    sent = told(run, "export", "verdict", "--with-lineage", "--output", file)
    assert [one["stage"] for one in sent["runs"]] == ["calibration", "plan", "checkpoint", "recovered", "judgement"]
    assert sent["bytes"] == file.stat().st_size
    assert run("runs", "export", "verdict", "--output", file).code == 2
    monkeypatch.setenv("SLIM_HOME", str(tmp_path / "elsewhere"))
    taken = told(run, "import", file)
    assert [one["stage"] for one in taken["runs"]] == [one["stage"] for one in sent["runs"]]
    assert not any(one["notes"] for one in taken["runs"])
    file.write_bytes(file.read_bytes()[:-1])
    result = run("runs", "import", file)
    assert result.code == 2
    assert f"slim: archive='{file}': it was not written by Slim" in result.err
    assert len(told(run, "list")["runs"]) == 5


def test_clean(made: Pipeline, run: Run) -> None:
    """Leftovers are listed with their bytes, and go only with --yes and by name."""
    training = workspace.subfolder("trainings", "stopped")
    (training / "state.safetensors").write_bytes(b"0" * 2000)
    (workspace.home() / "runs" / "ffffffffffffffff.json").write_text("{")
    said = run("runs", "clean")
    assert "trainings" in said.out
    assert "2.0 kB" in said.out
    assert "Nothing was removed" in said.out
    assert told(run, "clean", "--yes")["freed"] == 1
    assert training.exists()
    assert told(run, "clean", "trainings", "--yes")["freed"] == 2000
    assert not training.exists()
    result = run("runs", "clean", "everything", "--yes")
    assert result.code == 2
    assert "there is no such kind of leftover" in result.err
