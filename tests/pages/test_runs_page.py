"""The Runs page without a browser: what it shows, the run that is chosen, and what is done with it."""

import io
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.views.run_detail import steps
from slim import jobs
from slim.core import workspace
from slim.runs import archive, lineage
from slim.runs.manage import rename, tag
from tests.pages.test_prune_page import APP, opened
from tests.pipeline import Pipeline

ODD = "<b>odd</b> *name* $x$ [link](http://x)"
"""A name that is HTML and Markdown."""


def page_of(path: Path | None = None, expanded: str = "") -> AppTest:
    """The page, with a run chosen as a click does it, and an expander opened."""
    page = opened("pages/runs.py", "Runs")
    if path is not None:
        page.session_state["runs-chosen"] = key_of(path)
    if expanded:
        page.session_state[expanded] = True
    page.run()
    assert not page.exception
    return page


def key_of(path: Path) -> str:
    return next(node.key for node in lineage.read_lineage().runs if node.path == path)


def html_of(page: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in page.get("html"))  # type: ignore[attr-defined]


def said(page: AppTest) -> str:
    kinds = ("caption", "info", "warning", "error", "success")
    return "\n".join(str(found.value) for kind in kinds for found in getattr(page, kind)).replace("\\", "")


def labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button]


def press(page: AppTest, key: str) -> None:
    page.button(key=key).click().run()
    assert not page.exception


def test_before_there_is_anything(own_workspace: Path) -> None:
    """The way to the first run, and in for those of another machine."""
    page = page_of()
    assert "There is no run yet." in said(page)
    assert labels(page) == ["Import"]


def test_what_it_shows(made: Pipeline) -> None:
    """The newest run in detail, with its neighbours in reach, and a table of all."""
    page = page_of()
    shown = html_of(page)
    assert "verdict" in shown
    assert str(made.judgement) in shown
    assert labels(page)[:2] == ["recovered better", "model model"]
    table: Any = next(frame.value for frame in page.dataframe if "Figures" in frame.value.columns)
    assert sorted(table["Kind"]) == sorted(made.runs)
    assert len(page.get("plotly_chart")) == 1
    press(page, str(next(button.key for button in page.button if button.label == "recovered better")))
    assert str(made.recovered) in html_of(page)
    assert page.query_params["run"] == key_of(made.recovered)


def test_a_link(made: Pipeline) -> None:
    """It opens the run that it names, and says so where that is not here."""
    page = AppTest.from_file(APP, default_timeout=60)
    page.query_params["run"] = key_of(made.plan)
    page.run().switch_page("pages/runs.py").run()
    assert str(made.plan) in html_of(page)
    page = AppTest.from_file(APP, default_timeout=60)
    page.query_params["run"] = "<b>gone"
    page.run().switch_page("pages/runs.py").run()
    assert "run '<b>gone' is not here" in said(page)


def test_a_name_is_text(made: Pipeline) -> None:
    """HTML and Markdown in a name, a tag or a note do not take effect."""
    found = lineage.read_lineage()
    node = found.nodes[key_of(made.checkpoint)]
    rename(found, node, ODD)
    tag(node, ODD)
    page = page_of(made.checkpoint)
    assert "<b>odd" not in html_of(page)
    assert "&lt;b&gt;odd" in html_of(page)
    page = page_of(made.recovered)
    label = next(label for label in labels(page) if "odd" in label)
    assert label.replace("\\", "") == f"checkpoint {ODD}"
    assert r"\<b\>" in label
    assert r"\*name\*" in label


def test_find_and_nearby(made: Pipeline) -> None:
    page = page_of(made.plan)
    page.text_input(key="runs-find").set_value("repair recovered").run()
    table: Any = next(frame.value for frame in page.dataframe if "Figures" in frame.value.columns)
    assert list(table["Name"]) == ["better"]
    page.text_input(key="runs-find").set_value("nothing like it").run()
    assert "No run matches." in said(page)
    assert not page.get("plotly_chart")
    page.text_input(key="runs-find").set_value("").run()
    page.session_state["runs-chosen"] = key_of(made.judgement)
    page.toggle(key="runs-near").set_value(True).run()
    table = next(frame.value for frame in page.dataframe if "Figures" in frame.value.columns)
    assert "evaluation" not in list(table["Kind"])
    assert not page.exception


def test_rename_and_tag(made: Pipeline) -> None:
    page = page_of(made.plan)
    key = key_of(made.plan)
    page.text_input(key=f"name-{key}").set_value("the good one")
    page.multiselect(key=f"tags-{key}").set_value([]).run()
    press(page, f"save-{key}")
    assert "the good one" in html_of(page)
    page.text_input(key=f"name-{key}").set_value("small")
    press(page, f"save-{key}")
    assert "name='small': the checkpoint" in said(page).lower()
    assert lineage.read_lineage().nodes[key].name == "the good one"


def test_delete_names_what_depends_on_it(made: Pipeline) -> None:
    page = page_of(made.checkpoint)
    key = key_of(made.checkpoint)
    assert "recovered better, evaluation both, judgement verdict" in said(page)
    assert "They stay" in said(page)
    page.checkbox(key=f"all-{key}").set_value(True).run()
    assert any(label.startswith("Delete 4 runs, ") for label in labels(page))
    press(page, f"delete-{key}")
    assert not made.recovered.exists()
    assert [node.stage for node in lineage.read_lineage().runs] == ["plan", "calibration"]


def test_delete_says_why_not(made: Pipeline) -> None:
    (made.calibration / "thesis.tex").write_text("years of work")
    page = page_of(made.calibration)
    press(page, f"delete-{key_of(made.calibration)}")
    assert "holds 'thesis.tex'" in said(page)
    assert made.calibration.exists()


def test_compare(made: Pipeline) -> None:
    """The chosen run beside another of its kind; what is the same only on demand."""
    page = page_of(made.recovered, "runs-comparing")
    key = key_of(made.recovered)
    assert page.selectbox(key=f"other-{key}").value == key_of(made.checkpoint)
    table: Any = next(frame.value for frame in page.dataframe if "Other" in frame.value.columns)
    assert "recovered by" in list(table[""])
    assert "unit" not in list(table[""])
    page.toggle(key="runs-same").set_value(True).run()
    table = next(frame.value for frame in page.dataframe if "Other" in frame.value.columns)
    assert "unit" in list(table[""])
    page.selectbox(key=f"other-{key}").set_value(key_of(made.judgement)).run()
    assert not page.exception


def test_clean_up(made: Pipeline) -> None:
    training = workspace.subfolder("trainings", "stopped")
    (training / "state.safetensors").write_bytes(b"0" * 2000)
    page = page_of(expanded="runs-care")
    assert page.button(key="runs-clean").disabled
    box = page.checkbox(key="clean-trainings")
    assert box.label.startswith("Trainings: 1, 2.0 kB")
    box.set_value(True).run()
    assert page.button(key="runs-clean").label == "Remove 2.0 kB"
    press(page, "runs-clean")
    assert not training.exists()


def test_import(made: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The imported run is opened; a file that is not an archive is refused in a sentence."""
    found = lineage.read_lineage()
    archive.export_runs(found, [found.nodes[key_of(made.plan)]], tmp_path / "plan.zip")
    monkeypatch.setenv("SLIM_HOME", str(tmp_path / "elsewhere"))
    page = page_of()
    page.file_uploader(key="runs-import-0").set_value(("bad.zip", b"hello", "application/zip")).run()
    press(page, "runs-import")
    assert "archive='bad.zip': it was not written by slim" in said(page).lower()
    page.file_uploader(key="runs-import-0").set_value(
        ("plan.zip", (tmp_path / "plan.zip").read_bytes(), "application/zip")
    ).run()
    press(page, "runs-import")
    (node,) = lineage.read_lineage().runs
    assert str(node.path) in html_of(page)
    assert "its calibration" in said(page).lower()


def test_where_the_work_goes_on(made: Pipeline) -> None:
    """Every page that a run leads to opens with it."""
    for node in lineage.read_lineage().runs:
        for words, _, page_file, chosen in steps(node):
            page = AppTest.from_file(APP, default_timeout=60).run()
            for name, value in chosen.items():
                page.session_state[name] = value
            page.switch_page(page_file).run()
            assert not page.exception, words
            for name, value in chosen.items():
                assert page.session_state[name] == value, words
    assert not jobs.jobs()


def test_what_is_downloaded(made: Pipeline) -> None:
    """It is an archive that another workspace takes in."""
    from pages.views.run_detail import _packed

    found = lineage.read_lineage()
    nodes = archive.with_ancestors(found, found.nodes[key_of(made.judgement)])
    taken = archive.import_runs(io.BytesIO(_packed(found, nodes)))
    assert len(taken) == len(nodes)
