"""The Recover page without a browser: what it shows of a checkpoint, what it starts, and where it has less to show."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from slim import jobs
from slim.calibration.calibrate import calibrate
from slim.calibration.request import CalibrateRequest
from slim.core.request import Request
from slim.core.run_index import runs
from slim.data.tasks import load_task
from slim.jobs.store import JobStore
from slim.planning.threshold import plan_by_threshold
from slim.pruning import checkpoint
from slim.pruning.history import RECOVERY_FILE, Recovery, load_recovery
from slim.recovery.finetune import finetune
from slim.recovery.repair import repair
from slim.recovery.request import FinetuneRequest, RepairRequest
from slim.recovery.settings import RepairSettings, TrainSettings
from tests.pages.test_prune_page import ended, opened, press
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.surgery import WHOLE

SMALL = {"samples": 60, "max_length": 48, "batch_size": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a plain checkpoint, one that was repaired, one that was trained, and one of unknown rows."""
    folder = tmp_path_factory.mktemp("recover-page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        original = save_pico(make_pico("llama"), folder / "model")
        made = folder / "workspace" / "checkpoints"
        save, rows = folder / "workspace" / "calibrations" / "task", {"dataset": "bundled:triage"}
        measured = calibrate(
            CalibrateRequest.asked(model=folder / "model", samples=6, max_length=48, output=save, **rows)
        )
        checkpoint.prune(plan_of(original.facts, keeping(WHOLE, (), WHOLE, WHOLE)), made / "foreign")
        checkpoint.prune(plan_by_threshold(measured, 0.7, "head"), made / "plain")
        repair(RepairRequest.asked(folder=made / "plain", output=made / "repaired", **SMALL))
        training = {"positions": "all", "steps": 4, "evaluations": 2, "rank": 2, "learning_rate": 0.01}
        finetune(FinetuneRequest.asked(folder=made / "repaired", output=made / "trained", **rows, **SMALL, **training))
        yield folder / "workspace"


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workspace as that of this process, without jobs and with the checkpoints it had."""
    monkeypatch.setenv("SLIM_HOME", str(home))
    known = set(runs("checkpoint"))
    yield home
    for job in jobs.jobs():
        jobs.cancel(job.id)
        jobs.forget(job.id)
    for path in set(runs("checkpoint")) - known:
        shutil.rmtree(path)


def page_of(here: Path, name: str) -> AppTest:
    """The page with a checkpoint chosen."""
    page = opened("pages/recover.py", "Recover")
    page.selectbox(key="recover-checkpoint").set_value(here / "checkpoints" / name).run()
    assert not page.exception
    return page


def words(page: AppTest) -> str:
    """All that is said, with Markdown's signs as they are read."""
    kinds = ("caption", "markdown", "success", "warning", "info", "error")
    return "\n".join(str(found.value) for kind in kinds for found in getattr(page, kind)).replace("\\", "")


def labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button]


def shown(page: AppTest) -> Any:
    return page.selectbox(key="recover-checkpoint").value


def choose_method(page: AppTest, method: str) -> None:
    next(control for control in page.segmented_control if control.label == "Method").set_value(method).run()


def set_small(page: AppTest, method: str) -> None:
    """A method with settings with which it takes a moment."""
    choose_method(page, method)
    for key, value in (("samples-True", 60), ("length-True", 48), ("batch-True", 4)):
        page.number_input(key=f"recover-{key}").set_value(value)
    page.radio(key=f"recover-positions-{method}").set_value("all")


def put(kind: str, state: Any, here: Path, **values: Any) -> jobs.Job:
    """A job as it would stand in the workspace."""
    arguments = {"folder": str(here / "checkpoints" / "plain"), "steps": 8} | values.pop("arguments", {})
    job = jobs.Job(id=f"{kind}-{state}", kind=kind, arguments=arguments, state=state, created=1.0, **values)
    with JobStore() as store:
        return store.put(job)


POINTS = (
    {"step": 0, "training": None, "validation": 1.5, "kl": 0.5},
    {"step": 4, "training": 1.4, "validation": 1.2, "kl": 0.25},
)


def test_before_there_is_a_checkpoint(own_workspace: Path) -> None:
    page = opened("pages/recover.py", "Recover")
    assert [found.value for found in page.info] == ["There is no pruned model yet."]
    assert not page.button


def test_a_plain_checkpoint_is_repaired_first(here: Path, home: Path) -> None:
    """The loss, the suggestion and its estimate are shown; one press later the repaired one is shown."""
    page = page_of(here, "plain")
    said = words(page)
    assert "heads go" in said
    assert "Next: repair." in said
    assert re.search(r"128 rows: \d+ train, \d+ validation, \d+ acceptance, \d+ test\.", said)
    assert {metric.label: metric.value for metric in page.metric}["Measured loss"] == "not yet"
    page.button(key="recover-next").click().run()
    assert not page.exception
    job = ended("repair")
    assert jobs.request_of(job) == RepairRequest(folder=str(here / "checkpoints" / "plain"))
    page.run()
    made = Path(str(job.result))
    assert shown(page) == made
    (step,) = load_recovery(made).steps
    said = words(page)
    if step.applied:
        assert f"KL to the original {step.before.kl:.3f} → {step.after.kl:.3f} nats/token" in said
        assert f"on {step.after.rows} test rows, which took no part in it" in said
    else:
        assert "was not applied" in said
    assert "Next: knowledge distillation." in said


def test_a_form_of_ones_own(here: Path) -> None:
    """Method, rows and steps; the curve of the training is in the job while it runs and in the record after it."""
    page = page_of(here, "plain")
    set_small(page, "lora")
    page.number_input(key="recover-steps").set_value(4)
    page.number_input(key="recover-looks").set_value(2).run()
    assert not page.exception
    page.button(key="recover-start").click().run()
    job = ended("finetune")
    assert (job.arguments["method"], job.arguments["dataset"]) == ("lora", "bundled:triage")
    (step,) = load_recovery(Path(str(job.result))).steps
    assert [point["step"] for point in job.curve] == [0, 2, 4]
    assert [point.model_dump() for point in step.curve] == list(job.curve)
    page.run()
    assert shown(page) == Path(str(job.result))
    assert "LoRA on the task" in words(page)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("repair", RepairSettings), ("local", TrainSettings), ("kd", TrainSettings), ("lora", TrainSettings)],
)
def test_untouched_settings_are_those_of_the_command_line(
    here: Path, method: str, settings: type[RepairSettings | TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever form was open before; the rows are at first those of the calibration."""
    page, found = page_of(here, "plain"), list[RepairRequest | FinetuneRequest]()
    monkeypatch.setattr(jobs, "start", found.append)
    choose_method(page, method)
    page.button(key="recover-start").click().run()
    assert not page.exception
    (request,) = found
    assert request.part(settings) == settings()
    assert getattr(request, "method", "repair") == method
    assert request.data is not None
    assert load_task(request.data) == load_task("bundled:triage")


def test_the_button_asks_for_the_defaults(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the rows of the calibration."""
    page, found = page_of(here, "repaired"), list[Request]()
    monkeypatch.setattr(jobs, "start", found.append)
    page.button(key="recover-next").click().run()
    assert not page.exception
    (request,) = found
    assert isinstance(request, FinetuneRequest)
    assert (request.method, request.part(TrainSettings)) == ("kd", TrainSettings())
    assert load_task(request.data) == load_task("bundled:triage")


def test_local_distillation(here: Path) -> None:
    """Is a training, too."""
    page = page_of(here, "plain")
    set_small(page, "local")
    page.number_input(key="recover-steps").set_value(2).run()
    page.button(key="recover-start").click().run()
    job = ended("finetune")
    assert load_recovery(Path(str(job.result))).steps[0].method == "local"


def test_each_step_is_shown(here: Path) -> None:
    """Before and after, the rows of each role, and whether it was applied."""
    page = page_of(here, "trained")
    steps = load_recovery(here / "checkpoints" / "trained").steps
    (table,) = page.dataframe
    lines: Any = table.value
    assert list(lines["step"]) == ["Repair", "Knowledge distillation"]
    assert lines["KL to the original, nats/token"][1] == f"{steps[1].before.kl:.4f} → {steps[1].after.kl:.4f}"
    assert list(lines["applied"]) == ["yes" if step.applied else "no: no better" for step in steps]
    said = words(page)
    for step in steps:
        assert f"{step.rows['acceptance']} acceptance, {step.rows['test']} test; on" in said
    assert "Next:" not in said
    assert len(page.get("plotly_chart")) == 2


def test_a_step_that_was_not_applied(here: Path) -> None:
    """Says so, and the weights are what they were."""
    file = here / "checkpoints" / "repaired" / RECOVERY_FILE
    kept = file.read_text()
    (step,) = Recovery.model_validate_json(kept).steps
    worse = step.model_copy(update={"applied": False, "after": step.before})
    try:
        file.write_text(Recovery(steps=(worse,)).model_dump_json())
        page = page_of(here, "repaired")
        assert [found.value for found in page.warning] == [
            "**Repair** was not applied: on the acceptance rows the model was no better after it, so its weights are "
            "as they were."
        ]
    finally:
        file.write_text(kept)


def test_a_checkpoint_whose_rows_are_not_known(here: Path) -> None:
    """The form takes any data; the one button is not there."""
    page = page_of(here, "foreign")
    assert "Dataset: the plan's calibration" in words(page)
    assert "Repair it" not in labels(page)
    assert "Start" in labels(page)


def test_too_few_rows(here: Path) -> None:
    """Are refused before anything starts."""
    page = page_of(here, "plain")
    page.number_input(key="recover-samples-False").set_value(4).run()
    (problem,) = page.error
    assert problem.value.replace("\\", "").startswith("Samples=4: none of 4 rows is left for the")
    assert page.button(key="recover-start").disabled


def test_a_damaged_record(here: Path) -> None:
    file = here / "checkpoints" / "repaired" / RECOVERY_FILE
    kept = file.read_text()
    try:
        file.write_text("{")
        page = page_of(here, "repaired")
        assert [f"its {RECOVERY_FILE} is damaged" in found.value.replace("\\", "") for found in page.error] == [True]
    finally:
        file.write_text(kept)


def test_a_failed_training_says_why_and_can_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it had been asked."""
    job = put("finetune", "failed", here, error="the loss is nan at step 3.", curve=POINTS, arguments={"method": "kd"})
    page = page_of(here, "repaired")
    assert [found.value.replace("\\", "") for found in page.error] == ["The loss is nan at step 3."]
    assert "KL to the original 0.500 → 0.250 nats/token" in words(page)
    asked: list[str] = []
    monkeypatch.setattr(jobs, "again", asked.append)
    press(page, "Go on")
    assert asked == [job.id]


def test_a_job_of_slim_0_1_can_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments had other names and stood in groups."""
    job = put("finetune", "failed", here, error="the loss is nan at step 3.")
    old = {"source": job.arguments["folder"], "method": "lora", "dataset": "bundled:triage", "settings": {"steps": 8}}
    with JobStore() as store:
        store.put(job.model_copy(update={"arguments": old}))
    page = page_of(here, "repaired")
    assert "LoRA on the task of plain" in words(page)
    assert not page.button(key="recover-start").disabled
    assert "Go on" in labels(page)


def test_a_job_that_cannot_be_read(here: Path) -> None:
    """Is one sentence, and the page is there."""
    put("finetune", "failed", here, arguments={"nowhere": 1})
    page = page_of(here, "plain")
    (problem,) = page.error
    assert problem.value.replace("\\", "").startswith("Nowhere: ")
    assert "Next: repair." in words(page)


def test_a_paused_training_keeps_what_it_learnt(here: Path) -> None:
    """Until it goes on, or is left."""
    put("finetune", "cancelled", here, curve=POINTS, arguments={"method": "lora"})
    page = page_of(here, "plain")
    assert any(found.value.startswith("Paused.") for found in page.info)
    press(page, "Leave it")
    assert "Go on" not in labels(page)
    assert not jobs.jobs()


def test_paused_and_resumed(here: Path, tmp_path: Path) -> None:
    """The second run starts from the first one's state: its curve has the points of both."""
    page = page_of(here, "plain")
    set_small(page, "kd")
    page.number_input(key="recover-steps").set_value(3000)
    page.number_input(key="recover-patience").set_value(1000)
    page.number_input(key="recover-looks").set_value(1000).run()
    page.button(key="recover-start").click().run()
    assert not page.exception
    (job,) = jobs.jobs("finetune")
    while len((jobs.state_of(job.id) or job).curve) < 3:
        assert (jobs.state_of(job.id) or job).unfinished, jobs.state_of(job.id)
    page.run()
    assert "Pause" in labels(page)
    press(page, "Pause")
    paused = jobs.state_of(job.id)
    assert paused is not None
    assert paused.state == "cancelled"
    press(page, "Go on")
    again = next(found for found in jobs.jobs("finetune") if found.id != job.id)
    while not (jobs.state_of(again.id) or again).curve:
        assert (jobs.state_of(again.id) or again).unfinished, jobs.state_of(again.id)
    resumed = jobs.state_of(again.id)
    assert resumed is not None
    count = len(paused.curve) - 1  # the last one may not have been saved
    assert resumed.curve[:count] == paused.curve[:count]
    assert len(resumed.curve) >= count


@pytest.mark.parametrize(
    ("label", "title", "key"),
    [
        ("Evaluate it", "Evaluate", "evaluate-checkpoints"),
        ("Compare its answers with the original's", "Compare", "compare-checkpoint"),
    ],
)
def test_it_leads_on(here: Path, label: str, title: str, key: str) -> None:
    """To where the work continues, with the checkpoint chosen."""
    page = press(page_of(here, "trained"), label)
    assert [found.value for found in page.title] == [title]
    path = here / "checkpoints" / "trained"
    value = page.multiselect(key=key).value if title == "Evaluate" else [str(page.selectbox(key=key).value)]
    assert value == [str(path)]
