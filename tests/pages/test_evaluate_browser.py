"""The Evaluate page in a real browser: two checkpoints evaluated to the end, read, drawn, and taken along as files."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Download, Locator, Page, expect

from slim.evaluation.record import EvaluationFacts
from slim.pruning import checkpoint
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.visitor import Visitor, chart, fill

pytestmark = pytest.mark.browser
ODD = "<i>odd & 'quoted'"
"""A folder's name that is HTML."""
WHOLE = (tuple(range(6)),) * 4
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with two checkpoints of one model."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        patch.setenv("OMP_NUM_THREADS", "1")
        facts = save_pico(make_pico("llama"), folder / "model").facts
        for name, keep in (("small", ((0, 1, 2), *WHOLE[1:])), (ODD, ((), (), *WHOLE[2:]))):
            checkpoint.prune(plan_of(facts, keeping(*keep)), folder / "workspace" / "checkpoints" / name)
        yield folder / "workspace"


@pytest.fixture
def visitor(visitor: Visitor) -> Visitor:
    """At the page."""
    visitor.open("evaluate")
    return visitor


def several(page: Page, label: str) -> Locator:
    """A box that takes several entries."""
    return page.get_by_test_id("stMultiSelect").filter(has_text=label).get_by_role("combobox")


def pick(visitor: Visitor, label: str, option: str) -> None:
    """Chooses from a select box by typing, as only the options in view are in the page."""
    box = visitor.page.get_by_test_id("stSelectbox").filter(has_text=label).get_by_role("combobox")
    box.click()
    box.fill(option)
    visitor.page.get_by_role("option", name=option, exact=True).click()
    visitor.settle()


def picture_of(page: Page, title: str) -> tuple[str, bytes]:
    """Name and bytes of the file that a chart's camera saves."""
    camera = chart(page, title).locator(".modebar-btn")
    expect(camera).to_be_visible()
    assert camera.get_attribute("data-title") == "Download plot as a PNG"
    assert float(camera.evaluate("button => getComputedStyle(button.closest('.modebar')).opacity")) == 1
    with page.expect_download() as started:
        camera.click()
    return started.value.suggested_filename, content(started.value)


def content(download: Download) -> bytes:
    return Path(download.path()).read_bytes()


def saved(page: Page, button: str) -> tuple[str, str]:
    """Name and text of the file that a button saves."""
    with page.expect_download() as started:
        page.get_by_role("button", name=button).click()
    return started.value.suggested_filename, content(started.value).decode()


def test_two_checkpoints_to_the_end(visitor: Visitor, workspace: Path, tmp_path: Path) -> None:
    """Chosen, watched, read in words, the scatter's axes changed, and CSV, JSON and PNG downloaded."""
    page = visitor.page
    expect(page.get_by_text("There is no evaluation yet")).to_be_visible()
    start = page.get_by_role("button", name="Evaluate", exact=True)
    expect(start).to_be_disabled()
    for name in ("small", ODD):
        several(page, "Checkpoints").click()
        page.get_by_role("option", name=name, exact=True).click()
        visitor.settle()
    several(page, "Checkpoints").press("Escape")
    expect(page.get_by_placeholder("The model they were cut from: ")).to_be_visible()
    data = page.get_by_test_id("stSelectbox").filter(has_text="Task data").get_by_role("combobox")
    data.fill("bundled:triage")
    data.press("Enter")
    expect(page.get_by_text("in split test of bundled:triage")).to_be_visible()
    page.get_by_text("Settings", exact=True).click()
    fill(visitor, "Rows", 12)
    fill(visitor, "Longest answer, tokens", 4)
    page.get_by_text("Speed and memory", exact=True).click()
    visitor.settle()
    several(page, "Rows timed").fill("3")
    several(page, "Rows timed").press("Enter")
    several(page, "Rows timed").press("Escape")
    visitor.settle()
    fill(visitor, "Prompt tokens", 16)
    fill(visitor, "Decoded tokens", 4)
    fill(visitor, "Repeats", 2)
    visitor.picture("evaluate-form")
    start.click()
    expect(page.get_by_test_id("stProgress")).to_be_visible()
    page.reload()

    expect(page.get_by_text("Speed, 3 rows at a time")).to_be_visible(timeout=180_000)
    visitor.settle()
    card = page.locator(".slim-cards > div").filter(has_text=ODD)
    expect(card).to_contain_text(
        re.compile(r"perplexity.*[+−][\d.,]+ \[[+−][\d.,]+, [+−][\d.,]+\].*(better|worse|no sure)")
    )
    expect(card).to_contain_text("less is better")
    assert page.locator(".slim-cards i, .slim-table i").count() == 0
    visitor.picture("evaluate-done")

    pick(visitor, "Horizontal axis", "decoding, 3 rows, tokens/s")
    pick(visitor, "Vertical axis", "KL to the original, nats/token")
    expect(chart(page, "KL to the original against decoding, 3 rows")).to_be_visible()
    asked = parse_qs(urlparse(page.url).query)
    assert asked["size"] == ["decoding, 3 rows, tokens/s"]
    page.reload()
    expect(chart(page, "KL to the original against decoding, 3 rows")).to_be_visible()
    visitor.settle()

    (folder,) = (workspace / "evaluations").iterdir()
    assert f"evaluation={folder.name}" in page.url
    name, image = picture_of(page, "KL to the original against")
    assert (name, image[:8]) == (f"{folder.name}-decode-3-kl.png", PNG)
    shown = chart(page, "KL to the original against").bounding_box()
    assert shown
    assert int.from_bytes(image[16:20]) == pytest.approx(2 * shown["width"], abs=2)
    _, bars = picture_of(page, "Difference to the original")
    page.get_by_text("Radar", exact=True).click()
    expect(chart(page, "outward is better")).to_be_visible()
    _, radar = picture_of(page, "outward is better")
    assert (bars[:8], radar[:8]) == (PNG, PNG)

    name, text = saved(page, "Record as JSON")
    facts = EvaluationFacts.model_validate(json.loads(text))
    assert name == f"{folder.name}.json"
    assert [one.name for one in facts.models] == ["model", "small", ODD]
    assert facts.model_dump_json(indent=1) == (folder / "record.json").read_text()
    name, text = saved(page, "Figures as CSV")
    assert name == f"{folder.name}.csv"
    lines = list(csv.DictReader(text.splitlines()))
    (line,) = (one for one in lines if (one["model"], one["measure"]) == (ODD, "perplexity"))
    change = facts.models[2].scores["perplexity"].difference
    assert change is not None
    assert float(line["difference"]) == pytest.approx(change.value)


def test_a_failed_evaluation_says_why_and_the_rest_stays(visitor: Visitor, workspace: Path) -> None:
    """A folder that is not there, typed by hand."""
    page = visitor.page
    page.get_by_text("A new evaluation").click()
    several(page, "Checkpoints").fill("no-such-folder")
    several(page, "Checkpoints").press("Enter")
    several(page, "Checkpoints").press("Escape")
    expect(page.get_by_text("name the model to compare with")).to_be_visible()
    baseline = page.get_by_label("Compare with", exact=True)
    baseline.fill(str(workspace.parent / "model"))
    baseline.press("Enter")
    visitor.settle()
    page.get_by_role("button", name="Evaluate", exact=True).click()
    alert = page.get_by_test_id("stAlert").filter(has_text="no-such-folder")
    expect(alert).to_contain_text("was not found")
    expect(page.locator(".slim-cards")).to_be_visible()
    visitor.picture("evaluate-failed")


def test_the_result_fits(visitor: Visitor) -> None:
    """Nothing is wider than the window; pictures to look at."""
    expect(chart(visitor.page, "Difference to the original")).to_be_visible()
    for look in visitor.looks():
        visitor.picture(f"evaluated-{look}")
