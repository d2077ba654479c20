"""The Recover page in a real browser: the bundled model, pruned, is repaired and distilled in sight."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Locator, Page, expect

from slim.calibration.calibrate import calibrate
from slim.calibration.request import CalibrateRequest
from slim.planning import budget
from slim.pruning import checkpoint
from slim.pruning.history import load_recovery
from tests.short_model import SHORT_OR_WHOLE, furnish
from tests.visitor import Visitor, chart, fill

pytestmark = pytest.mark.browser
MINUTES = 60_000
"""Milliseconds; after so many a test gives up, and nothing is asserted about time."""
ROWS, LENGTH = 64, 64
"""Few and short, so that two slow cores are done in minutes."""
STEPS = 40
"""Enough to be paused among them."""


@pytest.fixture(scope="module", params=SHORT_OR_WHOLE)
def workspace(
    request: pytest.FixtureRequest, shared_workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A workspace with the bundled model or its first layers, and a checkpoint of it that lacks three heads in ten."""
    home = furnish(tmp_path_factory.mktemp("recover") / "workspace", shared_workspace, request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(home))
        save = home / "calibrations" / "briefs"
        measured = calibrate(CalibrateRequest(samples=8, max_length=LENGTH, output=save))
        plan = budget.plan_by_budget(measured, {"heads": 0.7})
        checkpoint.prune(plan, home / "checkpoints" / "small")
        yield home


def choose(person: Visitor, method: str) -> Locator:
    """Opens the form with a method and few, short rows, and gives the button that starts it."""
    page = person.page
    page.get_by_text("Choose the method, the data and the settings").click()
    page.get_by_role("radio", name=method, exact=True).or_(
        page.get_by_role("button", name=method, exact=True)
    ).first.click()
    person.settle()
    fill(person, "Rows", ROWS)
    fill(person, "Longest row, tokens", LENGTH)
    return page.get_by_role("button", name="Start", exact=True)


def newest(workspace: Path, page: Page) -> Path:
    """The checkpoint that the page shows, by its address."""
    (name,) = parse_qs(urlparse(page.url).query)["checkpoint"]
    return workspace / "checkpoints" / name


def test_from_a_pruned_to_a_recovered_checkpoint(visitor: Visitor, workspace: Path) -> None:
    """Repaired, then distilled with the curve falling in sight, paused, gone on with, and led on to Evaluate."""
    page = visitor.page
    visitor.open("recover")
    expect(page.get_by_text("Next: repair.")).to_be_visible()
    expect(page.get_by_role("button", name="Repair it")).to_be_enabled()
    visitor.picture("recover-1-pruned")
    start = choose(visitor, "Repair")
    expect(page.get_by_text(re.compile(rf"{ROWS} rows: \d+ train"))).to_be_visible()
    start.click()
    expect(page.get_by_test_id("stProgress")).to_be_visible(timeout=3 * MINUTES)
    page.reload()
    expect(page.get_by_text("Next: knowledge distillation.")).to_be_visible(timeout=10 * MINUTES)
    visitor.settle()
    (repaired,) = load_recovery(newest(workspace, page)).steps
    assert repaired.applied
    assert repaired.after.kl < repaired.before.kl
    expect(page.get_by_text(f"{repaired.before.kl:.3f} → {repaired.after.kl:.3f} nats/token")).to_be_visible()
    visitor.picture("recover-2-repaired")

    start = choose(visitor, "Knowledge distillation")
    fill(visitor, "Steps", STEPS)
    fill(visitor, "Rows of a step", 2)
    page.get_by_text("More settings").click()
    page.get_by_test_id("stRadio").filter(has_text="Trained on and counted").get_by_text("Every token").click()
    visitor.settle()
    start.click()
    expect(chart(page, "KL to the original, nats/token").filter(has_text="Training")).to_be_visible(timeout=5 * MINUTES)
    expect(page.get_by_test_id("stProgress")).to_contain_text("tokens/s")
    visitor.picture("recover-3-learning")
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_text("Paused.")).to_be_visible()
    page.get_by_role("button", name="Go on", exact=True).click()
    expect(page.get_by_role("button", name="Evaluate it")).to_be_visible(timeout=10 * MINUTES)
    expect(page.get_by_text(re.compile("Knowledge distillation(: KL to| was not applied)"))).to_be_visible(
        timeout=10 * MINUTES
    )
    visitor.settle()
    made = newest(workspace, page)
    _, distilled = load_recovery(made).steps
    assert distilled.method == "kd"
    assert distilled.after.kl <= distilled.before.kl < repaired.before.kl
    assert any(point.training is not None for point in distilled.curve)
    expect(chart(page, "Change by each step")).to_have_count(1)  # for a moment the last run's stands there too
    visitor.picture("recover-4-recovered")

    page.get_by_role("button", name="Evaluate it").click()
    expect(page.get_by_role("heading", level=1, name="Evaluate")).to_be_visible()
    expect(page.get_by_test_id("stMultiSelect").filter(has_text="Checkpoints")).to_contain_text(made.name)


def test_the_result_fits(visitor: Visitor) -> None:
    """Nothing is wider than the window; pictures to look at."""
    visitor.open("recover")
    expect(chart(visitor.page, "Change by each step")).to_be_visible()
    visitor.page.get_by_text("Choose the method, the data and the settings").click()
    for look in visitor.looks():
        visitor.picture(f"recover-{look}")
