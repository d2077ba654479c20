"""The Evaluate page without a browser: what it asks, what it shows, and every state in which there is less to show."""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from slim import jobs
from slim.core.run_index import remember, runs
from slim.evaluation import speed
from slim.evaluation.evaluate import evaluate
from slim.evaluation.request import EvaluateRequest
from slim.evaluation.settings import SpeedSettings
from slim.jobs import Job
from slim.pruning import checkpoint
from tests.pages.test_prune_page import APP, opened, press
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.warm import Forker

PATIENCE = 120.0
"""Seconds after which a test gives up; nothing is asserted about time."""
ODD = "<b>odd & 'quoted'"
"""A folder's name that is HTML."""
WHOLE = (tuple(range(6)),) * 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with two checkpoints of one model, one of another, and two evaluations."""
    folder = tmp_path_factory.mktemp("evaluate-page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        patch.setattr(speed, "_peak_apart", lambda source, *asked: 2**28 + len(source))
        one = save_pico(make_pico("llama"), folder / "model").facts
        other = save_pico(make_pico("llama", seed=1), folder / "other").facts
        made = folder / "workspace" / "checkpoints"
        checkpoint.prune(plan_of(one, keeping((0, 1, 2), *WHOLE[1:])), made / "small")
        checkpoint.prune(plan_of(one, keeping((), (), *WHOLE[2:])), made / ODD)
        checkpoint.prune(plan_of(other, keeping((0, 1, 2), *WHOLE[1:])), made / "foreign")
        quick = {"dataset": "bundled:triage", "max_length": 64, "max_new_tokens": 3, "device": "cpu"}
        pace = {"speed_rows": (1, 3), "speed_tokens": 8, "speed_steps": 2, "repeats": 2}
        kept = folder / "workspace" / "evaluations"
        both = (made / "small", made / ODD)
        evaluate(EvaluateRequest.asked(checkpoints=both, samples=5, speed=True, output=kept / "timed", **quick, **pace))
        time.sleep(0.01)  # the newest is known by its folder's time
        evaluate(EvaluateRequest.asked(checkpoints=both[:1], samples=1, output=kept / "single", **quick))
        yield folder / "workspace"


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch, forker: Forker) -> Iterator[Path]:
    """The workspace as that of this process, without jobs; workers are forked, as the dashboard's are."""
    monkeypatch.setenv("SLIM_HOME", str(home))
    forker.ready()
    yield home
    for job in jobs.jobs():
        jobs.cancel(job.id)
        jobs.forget(job.id)


@pytest.fixture
def copied(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a copy of the timed evaluation, to be damaged."""
    place = tmp_path / "copied"
    monkeypatch.setenv("SLIM_HOME", str(place))
    shutil.copytree(home / "evaluations" / "timed", place / "evaluations" / "timed")
    remember(place / "evaluations" / "timed", "evaluation")
    return place / "evaluations" / "timed"


def page_of() -> AppTest:
    return opened("pages/evaluate.py", "Evaluate")


def tables(page: AppTest) -> str:
    """The HTML of all tables."""
    return "\n".join(str(element.proto.body) for element in page.get("html"))  # type: ignore[attr-defined]


def words(page: AppTest) -> str:
    """The text in small print, with Markdown's signs as they are read."""
    return "\n".join(caption.value for caption in page.caption).replace("\\", "")


def button(page: AppTest) -> Any:
    return next(found for found in page.button if found.label == "Evaluate")


def chosen(here: Path, *names: str) -> AppTest:
    """The page with these checkpoints chosen."""
    page = page_of()
    page.multiselect(key="evaluate-checkpoints").set_value([str(here / "checkpoints" / name) for name in names]).run()
    assert not page.exception
    return page


def shown_run(page: AppTest) -> str:
    """The name of the evaluation that is chosen."""
    path: Any = page.selectbox(key="evaluate-run").value
    return path.name


def finished(kind: str) -> Job:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        (job,) = jobs.jobs(kind)
        if not job.unfinished:
            return job
        time.sleep(0.2)
    pytest.fail("the job did not end")


def test_before_there_is_anything(own_workspace: Path) -> None:
    """It says what to do, and cannot be started."""
    page = page_of()
    assert "There is no evaluation yet" in words(page)
    assert button(page).disabled
    assert not page.error
    assert not tables(page)


def test_what_is_asked_is_what_the_job_gets(here: Path) -> None:
    """Rows of the test split unless another is chosen; the baseline is the model they were cut from."""
    page = chosen(here, "small", ODD)
    baseline = page.text_input(key="evaluate-baseline")
    assert not baseline.value
    assert str(here.parent / "model") in baseline.placeholder
    assert page.selectbox(key="evaluate-data-part").value == "test"
    page.number_input(key="evaluate-samples").set_value(2)
    page.number_input(key="evaluate-length").set_value(48)
    page.number_input(key="evaluate-answer").set_value(2)
    page.toggle(key="evaluate-speed").set_value(True).run()
    page.multiselect(key="evaluate-sizes").set_value(["2", "1"])
    page.number_input(key="evaluate-tokens").set_value(4)
    page.number_input(key="evaluate-steps").set_value(2)
    page.number_input(key="evaluate-repeats").set_value(1).run()
    press(page, "Evaluate")
    (job,) = jobs.jobs("evaluate")
    asked = EvaluateRequest.of_job(job.arguments)
    assert [Path(source).name for source in asked.checkpoints] == ["small", ODD]
    assert (asked.baseline, asked.dataset, asked.split) == (None, "bundled:briefs", "test")
    assert (asked.tasks, asked.speed) == ((), True)
    assert asked.pace == SpeedSettings(batch_sizes=(1, 2), tokens=4, steps=2, repeats=1)
    assert (asked.samples, asked.max_length, asked.max_new_tokens) == (2, 48, 2)
    assert finished("evaluate").state == "done"
    page.run()
    assert not page.exception
    made = runs("evaluation")[0]
    assert page.selectbox(key="evaluate-run").value == made
    assert page.query_params["evaluation"] == made.name
    assert "ROUGE-L" in tables(page)
    shutil.rmtree(made)


def test_an_untouched_form_asks_the_defaults_of_the_command(here: Path) -> None:
    """But the dataset, its columns and its split, which the page shows and so writes down."""
    press(chosen(here, "small"), "Evaluate")
    (job,) = jobs.jobs("evaluate")
    shown = {"checkpoints", "dataset", "split", "template", "columns", "prompt"}
    assert EvaluateRequest.of_job(job.arguments).changed().keys() == shown


def test_a_checkpoint_that_is_gone(here: Path) -> None:
    """The job fails with one sentence, and what was found before is still shown."""
    page = chosen(here, "small")
    gone = str(here / "checkpoints" / "gone")
    page.multiselect(key="evaluate-checkpoints").set_value([gone])
    page.text_input(key="evaluate-baseline").set_value(str(here.parent / "model")).run()
    press(page, "Evaluate")
    assert finished("evaluate").state == "failed"
    page.run()
    assert not page.exception
    (error,) = page.error
    assert "was not found" in error.value
    assert "gone" in error.value
    assert "Traceback" not in error.value
    assert "perplexity" in tables(page)


def test_what_is_cancelled_goes_on_later(here: Path) -> None:
    """The page says so, is ready for the next start, and nothing is half written."""
    page = press(chosen(here, "small"), "Evaluate")
    assert button(page).disabled
    (job,) = jobs.jobs("evaluate")
    jobs.cancel(job.id)
    assert finished("evaluate").state == "cancelled"
    page.run()
    assert not page.exception
    assert "goes on from there" in page.info[0].value
    assert not button(page).disabled
    assert {path.name for path in (here / "evaluations").iterdir()} == {"timed", "single"}


def test_the_newest_is_shown_and_the_link_opens_others(here: Path) -> None:
    """The address says which one is shown; one that is not here is said so."""
    page = page_of()
    assert shown_run(page) == "single"
    assert page.query_params["evaluation"] == "single"
    assert "one row, no interval" in tables(page)
    assert "unknown, one row" in tables(page)
    linked = linked_to("timed")
    assert shown_run(linked) == "timed"
    assert "Speed, 3 rows at a time" in [found.value for found in linked.subheader]
    missing = linked_to("nowhere")
    assert "nowhere" in missing.info[0].value
    assert shown_run(missing) == "single"


def linked_to(name: str, **typed: str) -> AppTest:
    """The page as a link opens it, with entries that AppTest cannot type into a select box."""
    page = AppTest.from_file(APP, default_timeout=60)
    page.switch_page("pages/evaluate.py")
    page.query_params["evaluation"] = name
    for key, text in typed.items():
        page.session_state[f"evaluate-{key}"] = text
    page.run()
    assert not page.exception
    assert [found.value for found in page.title] == ["Evaluate"]
    return page


def test_everything_measured_is_shown(here: Path) -> None:
    """Differences with intervals, ratios, sizes; names are text wherever they stand."""
    page = linked_to("timed")
    shown = tables(page)
    assert "&lt;b&gt;odd &amp; &#x27;quoted&#x27;" in shown
    assert "<b>odd" not in shown
    assert not [caption for caption in page.caption if "<b>odd" in caption.value]
    for word in ("perplexity", "macro-F1", "nats/token [", "× [", "is better", "peak memory, MB", "differs"):
        assert word in shown
    sizes = {"parameters", "file", "peak_memory", "load"}
    speeds = {f"{name}-{rows}" for name in ("prefill", "decode", "first_token", "cache") for rows in (1, 3)}
    assert len(page.selectbox(key="size").options) == len(sizes | speeds)
    assert page.selectbox(key="quality").options == [
        "perplexity",
        "KL to the original, nats/token",
        "accuracy, points",
        "macro-F1, points",
        "accuracy, likelihood per character, points",
        "accuracy, likelihood, points",
    ]
    page.selectbox(key="size").set_value("decode-3").run()
    page.selectbox(key="quality").set_value("kl").run()
    for way in ("Radar", "Bars"):
        page.segmented_control(key="evaluate-drawn").set_value(way).run()
        assert not page.exception
    page.segmented_control(key="evaluate-group-quality-speed-size").set_value("speed").run()
    assert not page.exception


def test_few_figures_are_no_radar(here: Path) -> None:
    """It says so; without timing there is one size to choose."""
    page = linked_to("single")
    assert page.selectbox(key="size").options == ["parameters, M"]
    assert "after an evaluation with speed" in words(page)


@pytest.mark.parametrize("damage", ["record", "table", "other"])
def test_a_damaged_evaluation_is_one_sentence(copied: Path, damage: str) -> None:
    """And another can be started."""
    if damage == "record":
        (copied / "record.json").write_text('{"kind": "evaluation"')
    elif damage == "table":
        (copied / "table.parquet").write_bytes(b"PAR1")
    else:
        (copied / "record.json").unlink()
    page = page_of()
    (error,) = page.error
    assert "timed" in error.value
    assert "slim evaluate" in error.value
    assert button(page).disabled
    assert not tables(page)


def test_standard_tasks_need_their_extra(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a sentence says how to get it, and an evaluation that asks for them cannot be started."""
    page = chosen(here, "small")
    assert not [info for info in page.info if "lm-evaluation-harness" in info.value]
    page.text_input(key="evaluate-standard").set_value("arc_easy, mine.yaml").run()
    assert not button(page).disabled
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    page.run()
    assert [info for info in page.info if "pip install 'slim[lm-eval]'" in info.value]
    assert button(page).disabled
    page.text_input(key="evaluate-standard").set_value("").run()
    assert not button(page).disabled


def test_the_baseline_must_be_known(here: Path) -> None:
    """Checkpoints of two models, or of none that says so: a sentence asks for the model to compare with."""
    page = chosen(here, "small", "foreign")
    (warning,) = page.warning
    assert "name the model to compare with" in warning.value
    page.text_input(key="evaluate-baseline").set_value(str(here.parent / "model")).run()
    assert not page.warning


def test_what_cannot_be_asked(here: Path) -> None:
    """One sentence each, below results that are still shown; nothing to measure cannot be started."""
    page = chosen(here, "small")
    page.toggle(key="evaluate-own").set_value(False).run()
    assert button(page).disabled
    page.toggle(key="evaluate-speed").set_value(True).run()
    assert not button(page).disabled
    for entry, sentence in (("many", "not a whole number"), ("0", "greater than or equal to 1")):
        page.multiselect(key="evaluate-sizes").set_value([entry]).run()
        assert sentence in page.error[0].value
        assert "perplexity" in tables(page)
        assert not page.exception
    page.multiselect(key="evaluate-sizes").set_value([]).run()
    assert len(page.error) == 1
    page = linked_to("timed", data="nowhere.csv")
    assert "was not found" in page.error[0].value
    assert "perplexity" in tables(page)
