"""The Prune page and a head's preview without a browser: budgets, saved plans compared, trying before cutting."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from slim import calibrate, plan, workspace
from slim.records import Plan, Settings
from tests.pico import make_pico, save_pico

APP = str(Path(__file__).resolve().parent.parent / "app.py")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with one calibration of a pico model."""
    folder = tmp_path_factory.mktemp("prune-page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        save_pico(make_pico("llama"), folder / "model")
        settings = Settings(samples=6, max_length=48)
        output = folder / "workspace" / "calibrations" / "task"
        calibrate.calibrate(str(folder / "model"), "bundled:triage", settings=settings, output=output)
        yield folder / "workspace"


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace as that of this process, without plans."""
    monkeypatch.setenv("SLIM_HOME", str(home))
    shutil.rmtree(home / "plans", ignore_errors=True)
    return home


def opened(page_file: str, title: str) -> AppTest:
    page = AppTest.from_file(APP, default_timeout=60).run()
    page.switch_page(page_file)
    page.run()
    assert not page.exception
    assert [found.value for found in page.title] == [title]
    return page


def budgeted(**limits: float) -> AppTest:
    """The page after a budget was asked for."""
    page = opened("pages/prune.py", "Prune")
    page.segmented_control(key="prune-way").set_value("Budget").run()
    for name, value in limits.items():
        page.number_input(key=f"budget-{name}").set_value(value)
    next(button for button in page.button if button.label == "Find the cheapest plan").click()
    page.run()
    assert not page.exception
    return page


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def saved() -> Plan:
    (file,) = workspace.runs("plan")
    return plan.load(file)


def press(page: AppTest, label: str) -> AppTest:
    next(button for button in page.button if button.label == label).click().run()
    assert not page.exception
    return page


def test_a_plan_by_budget(here: Path) -> None:
    """What the page shows is the plan that it saves, and a saved plan can be compared."""
    page = budgeted(params=0.9)
    assert "Forecast loss" in metrics(page)
    press(page, "Save the plan")
    made = saved()
    assert made.after.parameters <= 0.9 * made.before.parameters
    assert metrics(page)["Parameters"] == f"{made.after.parameters / 1e6:,.1f} M"
    press(page, "Show the curve of 50 budgets")
    words = "\n".join(caption.value for caption in page.caption)
    assert f"Both remove {made.removed_heads} heads." in words


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "it is empty"),
        ({"params": 0.01}, "the least is"),
        ({"params": 0.9, "loss": 1e-9}, "the least forecast loss"),
    ],
)
def test_budgets_that_cannot_be(here: Path, limits: dict[str, float], words: str) -> None:
    """One sentence, and no plan."""
    page = budgeted(**limits)
    assert len(page.error) == 1
    assert words in page.error[0].value.replace("\\", "")
    assert not metrics(page)


def test_a_plan_is_tried_before_it_is_cut(here: Path) -> None:
    """Two answers to the prompt, and nothing is written."""
    page = budgeted(params=0.85)
    page.text_area(key="preview-prompt").set_value("The harbour").run()
    page.button(key="preview-ask").click().run()
    assert not page.exception
    kept: Any = page.session_state["preview-answers"]
    assert kept[2] == "The harbour"
    assert set(kept[3]) == {0, 1}
    assert kept[3][0].text != kept[3][1].text
    assert not workspace.runs("checkpoint")


def test_a_head_is_left_out_for_a_try(here: Path) -> None:
    """On Explore, for the head that is chosen."""
    page = opened("pages/explore.py", "Explore")
    page.toggle(key="without").set_value(True).run()
    page.button(key="explore-preview-ask").click().run()
    assert not page.exception
    kept: Any = page.session_state["explore-preview-answers"]
    assert sorted(len(heads) for heads in kept[1]) == [5, 6, 6, 6]
    assert set(kept[3]) == {0, 1}
