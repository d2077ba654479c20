"""The Prune page and a head's preview without a browser: budgets, saved plans compared, trying before cutting."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from slim import jobs
from slim.calibration.calibrate import calibrate
from slim.calibration.record import load_calibration
from slim.calibration.request import CalibrateRequest
from slim.core.run_index import runs
from slim.planning.after_repair import after_repair_sketch
from slim.planning.after_repair_record import FILE
from slim.planning.files import load_plan
from slim.planning.record import Plan
from slim.planning.valid_choices import check_valid
from slim.recovery.request import PruneRequest
from slim.targets.target import target
from tests import APP
from tests.pico import make_pico, save_pico

PATIENCE = 120.0
"""Seconds after which a test gives up; nothing is asserted about time."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with one calibration of a pico model."""
    folder = tmp_path_factory.mktemp("prune-page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        save_pico(make_pico("llama"), folder / "model")
        output = folder / "workspace" / "calibrations" / "task"
        short = {"dataset": "bundled:triage", "samples": 6, "max_length": 48}
        calibrate(CalibrateRequest.asked(model=folder / "model", output=output, **short))
        yield folder / "workspace"


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace as that of this process, without plans."""
    monkeypatch.setenv("SLIM_HOME", str(home))
    shutil.rmtree(home / "plans", ignore_errors=True)
    (home / "calibrations" / "task" / FILE).unlink(missing_ok=True)
    return home


def opened(page_file: str, title: str) -> AppTest:
    page = AppTest.from_file(APP, default_timeout=60).run()
    page.switch_page(page_file)
    page.run()
    assert not page.exception
    assert [found.value for found in page.title] == [title]
    return page


def budgeted(targets: Sequence[str] = (), **limits: float) -> AppTest:
    """The page after a budget was asked for."""
    page = opened("pages/prune.py", "Prune")
    page.segmented_control(key="prune-way").set_value("Budget").run()
    for name, value in limits.items():
        page.number_input(key=f"budget-{name}").set_value(value)
    page.multiselect(key="budget-targets").set_value(list(targets))
    next(button for button in page.button if button.label == "Find the cheapest plan").click()
    page.run()
    assert not page.exception
    return page


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def saved() -> Plan:
    (file,) = runs("plan")
    return load_plan(file)


def press(page: AppTest, label: str) -> AppTest:
    next(button for button in page.button if button.label == label).click().run()
    assert not page.exception
    return page


def test_a_plan_by_budget(here: Path) -> None:
    """The page shows the plan that it saves, and a saved plan can be compared."""
    page = budgeted(params=0.9)
    assert "Forecast loss" in metrics(page)
    press(page, "Save the plan")
    made = saved()
    assert made.after.parameters <= 0.9 * made.before.parameters
    assert metrics(page)["Parameters"] == f"{made.after.parameters / 1e6:,.1f} M"
    press(page, "Show the curve of 50 budgets")
    words = "\n".join(caption.value for caption in page.caption)
    assert f"Both remove {made.removed_heads} heads." in words


def test_a_plan_for_where_it_will_run(here: Path) -> None:
    """Valid there, with the size of the file that is served; a rule that no plan keeps is one sentence."""
    page = budgeted(["vllm:tp=2", "llama.cpp:q4_k_m"], heads=0.9)
    words = "\n".join(caption.value for caption in page.caption)
    assert "llama.cpp:q4_k_m: " in words
    assert "MB of tensors" in words
    made = saved() if press(page, "Save the plan") else None
    assert made is not None
    assert [one.target for one in made.targets] == ["vllm:tp=2", "llama.cpp:q4_k_m"]
    for one in made.targets:
        check_valid(made.model, made.keep, target(one.target))
    page = budgeted(["vllm:tp=7"], heads=0.9)
    assert len(page.error) == 1
    assert "7 devices need a multiple of 7 query heads" in page.error[0].value


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
    page = budgeted((), **limits)
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
    assert not runs("checkpoint")


def test_a_head_is_left_out_for_a_try(here: Path) -> None:
    """On Explore, for the head that is chosen."""
    page = opened("pages/explore.py", "Explore")
    page.toggle(key="without").set_value(True).run()
    page.button(key="explore-preview-ask").click().run()
    assert not page.exception
    kept: Any = page.session_state["explore-preview-answers"]
    assert sorted(len(layer.heads) for layer in kept[1]) == [5, 6, 6, 6]
    assert set(kept[3]) == {0, 1}


def asked(page: AppTest, monkeypatch: pytest.MonkeyPatch, label: str) -> PruneRequest:
    """The request of the one job that a button starts."""
    found: list[PruneRequest] = []
    monkeypatch.setattr(jobs, "start", found.append)
    press(page, label)
    (request,) = found
    return request


def test_pruning_repairs_unless_it_is_not_wanted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes there in rounds where the plan is for a size."""
    page = budgeted(heads=0.8)
    request = asked(page, monkeypatch, "Prune")
    assert request == PruneRequest(plan=request.plan)
    page.number_input(key="prune-rounds").set_value(3).run()
    assert asked(page, monkeypatch, "Prune").rounds == 3
    page.checkbox(key="prune-repair-True").uncheck().run()
    assert page.number_input(key="prune-rounds").disabled
    request = asked(page, monkeypatch, "Prune")
    assert (request.repair, request.rounds) == (False, 1)


def test_rounds_are_for_a_size_alone(here: Path) -> None:
    """Not for a limit of loss, and not for a threshold."""
    for page in (budgeted(loss=0.5), opened("pages/prune.py", "Prune")):
        assert "prune-rounds" not in [field.key for field in page.number_input]
        assert page.checkbox(key="prune-repair-True").value


def test_rows_that_are_gone_cannot_repair(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The box is off and says why; cutting is still there."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "Row {n} has words of its own."}}\n' for n in range(6)), encoding="utf-8")
    output = here / "calibrations" / "gone"
    model = here.parent / "model"
    calibrate(CalibrateRequest.asked(model=model, dataset=rows, samples=6, max_length=24, output=output))
    rows.unlink()
    try:
        page = opened("pages/prune.py", "Prune")
        page.selectbox(key="prune-calibration").set_value(output).run()
        box = page.checkbox(key="prune-repair-False")
        assert (box.value, box.disabled) == (False, True)
        assert any(caption.value.startswith("Not repaired: Dataset") for caption in page.caption)
        page.segmented_control(key="prune-way").set_value("Budget").run()
        page.number_input(key="budget-heads").set_value(0.8)
        press(page, "Find the cheapest plan")
        assert not asked(page, monkeypatch, "Prune").repair
    finally:
        shutil.rmtree(output)


def test_a_pruned_model_shows_what_its_repair_gave(here: Path) -> None:
    """With the steps that follow."""
    page = press(budgeted(heads=0.7), "Prune")
    job = ended("prune")
    page.run()
    said = "\n".join(str(found.value) for found in (*page.success, *page.warning)).replace("\\", "")
    assert f"Saved: {job.result}" in said
    assert "**Repair**" in said
    press(page, "Recover more of it")
    assert [found.value for found in page.title] == ["Recover"]
    assert str(page.selectbox(key="recover-checkpoint").value) == job.result
    jobs.forget(job.id)
    shutil.rmtree(str(job.result))


def ended(kind: str) -> jobs.Job:
    """The only job of a kind once it is done."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        (job,) = jobs.jobs(kind)
        if not job.unfinished:
            assert (job.state, job.error) == ("done", None)
            return job
        time.sleep(0.2)
    pytest.fail("the job did not end")


def test_a_plan_by_the_forecast_after_repair(here: Path) -> None:
    """It is measured once, and then plans are made by it; both forecasts are shown."""
    page = budgeted(heads=0.7)
    assert saved_plan_of(page).repaired is None
    assert page.checkbox(key="budget-repaired-False").disabled
    press(page, "Measure the forecast after repair")
    jobs.forget(ended("after-repair").id)
    page.run()
    assert page.checkbox(key="budget-repaired-True").value
    press(page, "Find the cheapest plan")
    made = saved_plan_of(page)
    assert made.forecast
    assert made.repaired
    folder = here / "calibrations" / "task"
    assert made.repaired == after_repair_sketch(load_calibration(folder)).forecast(made.keep, 0)
    assert metrics(page)["Forecast loss"] == (
        f"{made.forecast.nats_per_token:.3f} → {made.repaired.nats_per_token:.3f} nats"
    )
    assert any(f"forecast after repair, {made.repaired}" in caption.value for caption in page.caption)
    page.segmented_control(key="budget-unit").set_value("Layers")
    press(page, "Find the cheapest plan")
    assert saved_plan_of(page).repaired is None


def saved_plan_of(page: AppTest) -> Plan:
    """The plan that the page keeps."""
    kept: Any = page.session_state["budget-plan"]
    return Plan.model_validate_json(kept)
