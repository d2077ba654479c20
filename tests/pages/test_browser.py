"""The real app in a real browser, from the first page to two answers side by side. Pictures go to artifacts/."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.short_model import SHORT_OR_WHOLE, furnish
from tests.visitor import PAGES, Scheme, Visitor

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=SHORT_OR_WHOLE)
def workspace(request: pytest.FixtureRequest, shared_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace without runs, in which the bundled model is unpacked."""
    return furnish(tmp_path_factory.mktemp("browser") / "workspace", shared_workspace, request.param)


def test_a_direct_link_to_a_fresh_server(visitor: Visitor) -> None:
    """The very first visitor may follow a link to an inner page: it stands in the frame, with every page in reach."""
    visitor.open("prune")
    visitor.settle()
    for title in ("Home", "Calibrate", "Explore", "Prune", "Recover", "Evaluate", "Compare", "Runs"):
        expect(visitor.page.get_by_role("link", name=title, exact=True)).to_be_visible()
    expect(visitor.page.get_by_text("There is no calibration yet.")).to_be_visible()
    assert visitor.hosts <= {"127.0.0.1", ""}


def test_from_the_first_page_to_side_by_side_answers(visitor: Visitor, workspace: Path) -> None:
    """Calibrate, see the maps, drag the threshold, prune, compare: six clicks at most.

    The repair, which is on until it is left out and takes minutes, has its browser test in test_recover_browser.
    """
    page, began = visitor.page, time.monotonic()
    visitor.open()
    visitor.picture("1-home")
    visitor.click(page.get_by_role("button", name="Calibrate the bundled model"))

    bar = page.get_by_test_id("stProgress")
    expect(bar).to_contain_text("Watching every head and sketching the loss", timeout=180_000)
    expect(bar).to_contain_text(re.compile(r"about \d+ (s|min) left"))
    visitor.picture("2-calibrating")
    page.reload()
    expect(page.get_by_test_id("stProgress")).to_contain_text(re.compile(r"\d+%"))

    expect(page.get_by_text("Done:")).to_be_visible(timeout=600_000)
    for title in ("KL of the output", "Attention entropy", "Write variance", "Composite score"):
        expect(page.locator(".js-plotly-plot", has_text=title)).to_be_visible()
    visitor.settle()
    visitor.picture("3-maps")

    visitor.click(page.get_by_role("button", name="Choose what to prune"))
    weight = page.locator(".board [data-figure=parameters]")
    expect(weight).to_contain_text(" M")
    visitor.settle()
    before = weight.inner_text()
    drag_line(visitor, 0.8, 0.75, lambda: expect(weight).not_to_have_text(before, use_inner_text=True))
    expect(page.get_by_role("slider", name="Threshold", exact=True)).to_have_attribute(
        "aria-valuenow", re.compile(r"0\.7[45]")
    )
    expect(page.locator(".board[data-source=plan] [data-figure=loss]")).to_contain_text("nats")
    visitor.settle()
    visitor.picture("4-threshold")

    page.get_by_test_id("stCheckbox").filter(has_text="Repair").locator("label").click()
    visitor.settle()
    visitor.click(page.get_by_role("button", name="Prune", exact=True))
    expect(page.get_by_text("Saved:")).to_be_visible(timeout=600_000)
    visitor.picture("5-pruned")
    visitor.click(page.get_by_role("button", name="Compare its answers"))
    visitor.click(page.get_by_role("button", name="Answer with both"))
    expect(page.get_by_text(re.compile(r"\d+ tokens · [\d.]+ tokens/s"))).to_have_count(2, timeout=120_000)
    expect(page.get_by_role("button", name="Answer with both")).to_be_enabled()
    visitor.settle()
    visitor.picture("6-side-by-side")
    answers = [element.inner_text().strip() for element in page.get_by_test_id("stText").all()]
    assert len(answers) == 2
    least = 20 if (workspace / "models").is_symlink() else 0  # the first layers alone may have nothing to say
    assert len(answers) == 2
    assert all(len(answer) >= least for answer in answers)

    assert visitor.clicks <= 6
    print(f"\nfirst page to side by side: {visitor.clicks} clicks, {time.monotonic() - began:.0f} s")
    assert len(list((workspace / "checkpoints").glob("*/model.safetensors"))) == 1


def drag_line(visitor: Visitor, start: float, end: float, midway: Callable[[], None]) -> None:
    """Drags the board's line from one score to another with the mouse held down; `midway` looks before it is let go."""
    page, plot = visitor.page, visitor.page.locator(".board .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box
    y = box["y"] + box["height"] / 2
    visitor.clicks += 1
    page.mouse.move(box["x"] + box["width"] * start / 1.01, y)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(box["x"] + box["width"] * (start + (end - start) * step / 8) / 1.01, y)
        page.wait_for_timeout(30)
    midway()
    page.mouse.up()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.release)])
def test_every_page_is_whole(browser: Browser, app: str, scheme: Scheme) -> None:
    """No error, nothing wider than the window, no connection to another host; pictures of each to look at."""
    visitor = Visitor(browser, app, scheme)
    for name in PAGES:
        visitor.open(name)
        for look in visitor.looks(scheme):
            assert visitor.page.get_by_test_id("stException").count() == 0
            visitor.picture(f"{name or 'home'}-{look}")
    assert visitor.hosts <= {"127.0.0.1", ""}
    visitor.context.close()


def test_bad_input_is_one_sentence(visitor: Visitor) -> None:
    """An unknown dataset is named at once, an unknown model when its job fails; nothing that was typed is lost."""
    page = visitor.page
    visitor.open("calibrate")
    choose(visitor, "Task data", "nowhere.csv")
    alert = page.get_by_test_id("stAlert")
    expect(alert).to_contain_text("'nowhere.csv' was not found")
    choose(visitor, "Task data", "bundled:triage")
    choose(visitor, "Model", "no-such-model")
    page.get_by_role("button", name="Calibrate", exact=True).click()
    expect(page.get_by_test_id("stAlert")).to_contain_text("'no-such-model' was not found")
    expect(select_box(visitor, "Model")).to_have_value("no-such-model")
    expect(select_box(visitor, "Task data")).to_have_value("bundled:triage")
    assert page.get_by_test_id("stException").count() == 0
    visitor.picture("bad-input")


def test_cancel_ends_the_job(visitor: Visitor, workspace: Path) -> None:
    """Cancelling leaves the page ready for the next start and no half-written run."""
    page = visitor.page
    visitor.open("calibrate")
    page.get_by_role("button", name="Calibrate", exact=True).click()
    expect(page.get_by_test_id("stProgress")).to_contain_text(re.compile(r"\d+%"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled.")).to_be_visible()
    expect(page.get_by_role("button", name="Calibrate", exact=True)).to_be_enabled()
    assert not list((workspace / "calibrations").glob(".*partial*"))


def select_box(visitor: Visitor, label: str) -> Locator:
    return visitor.page.get_by_test_id("stSelectbox").filter(has_text=label).get_by_role("combobox")


def choose(visitor: Visitor, label: str, text: str) -> None:
    """Types an entry of its own into a select box."""
    box = select_box(visitor, label)
    box.click()
    box.fill(text)
    box.press("Enter")
    visitor.settle()
