"""A real pipeline on the Runs page, in a real browser, with the server killed under a job."""

import re
import shutil
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlparse

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from slim import jobs
from slim.calibration.calibrate import calibrate
from slim.calibration.request import CalibrateRequest
from slim.core.run_index import remember
from slim.core.workspace import Kind
from slim.judging import judge
from slim.judging.request import JudgeRequest
from slim.models import bundled
from slim.planning import budget
from slim.planning.files import load_plan, save_plan
from slim.pruning import checkpoint
from slim.recovery.repair import repair
from slim.recovery.request import RepairRequest
from slim.runs import lineage
from slim.runs.lineage import Node
from tests.browser_setup import served
from tests.judge_server import by_length, serving
from tests.short_model import SHORT_OR_WHOLE, furnish
from tests.slow_connection import line_to
from tests.visitor import Visitor, fill

pytestmark = pytest.mark.browser
MINUTES = 60_000
"""Milliseconds; after so many a test gives up, and nothing is asserted about time."""
LENGTH = 48
"""Tokens of a row: short, so that two slow cores are done in minutes."""


@pytest.fixture(scope="module", params=SHORT_OR_WHOLE)
def workspace(
    request: pytest.FixtureRequest, shared_workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A workspace with the bundled model or its first layers pruned, repaired and judged; nothing is evaluated yet."""
    home = tmp_path_factory.mktemp("runs") / "workspace"
    model = bundled.NAME
    furnish(home, shared_workspace, request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(home))
        made = home / "calibrations" / "briefs"
        measured = calibrate(CalibrateRequest.asked(model=model, samples=6, max_length=LENGTH, output=made))
        file = save_plan(budget.plan_by_budget(measured, {"heads": 0.95}), home / "plans" / "few-heads.json")
        small, better = home / "checkpoints" / "small", home / "checkpoints" / "better"
        checkpoint.prune(load_plan(file), small)
        repair(RepairRequest.asked(folder=small, samples=32, max_length=LENGTH, output=better))
        with serving(by_length) as server:
            judge.judge(
                JudgeRequest.asked(
                    original=model,
                    pruned=better,
                    samples=2,
                    max_new_tokens=8,
                    endpoint=server.url,
                    judge_model="pico-judge",
                    output=home / "judgements" / "verdict.json",
                )
            )
        yield home


def graph(page: Page) -> Locator:
    return page.get_by_test_id("stPlotlyChart").first


def click_node(visitor: Visitor, name: str) -> None:
    """Click a node above its label, and wait for the detail."""
    visitor.settle()
    label = graph(visitor.page).locator("text").filter(has_text=re.compile(f"^{re.escape(name)}$")).first
    label.scroll_into_view_if_needed()
    box = label.bounding_box()
    assert box
    place = box["x"] + box["width"] / 2, box["y"] - 12
    visitor.page.mouse.move(*place)
    visitor.page.wait_for_timeout(300)
    visitor.page.mouse.click(*place)
    expect(detail(visitor.page).locator(".run-head strong")).to_have_text(name)
    visitor.settle()


def detail(page: Page) -> Locator:
    return page.locator(".st-key-run-detail")


def kill_server(address: str) -> None:
    """SIGKILLs the process that listens at an address: no handler runs, nothing is closed."""
    port = int(address.rsplit(":", 1)[1])
    (server,) = {
        one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr[1:] == (port,)
    }
    process = psutil.Process(server)
    process.send_signal(signal.SIGKILL)
    process.wait(20)


def node_of(stage: str) -> Node:
    return next(node for node in lineage.read_lineage().runs if node.stage == stage)


def test_the_lineage_of_a_real_pipeline(browser: Browser, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen and clicked; its last stage is made by a job under which the server is killed, and which goes on."""
    monkeypatch.setenv("SLIM_HOME", str(workspace))
    with served(workspace) as address:
        visitor = Visitor(browser, address)
        page = visitor.page
        visitor.open("runs")
        click_node(visitor, "better")
        expect(detail(page)).to_contain_text("recovered by")
        assert urlparse(page.url).query == f"run={node_of('recovered').key}"
        expect(detail(page).get_by_role("button", name="checkpoint small")).to_be_visible()
        visitor.picture("runs-1-lineage")

        detail(page).get_by_role("button", name="Evaluate it").click()
        expect(page.get_by_role("heading", level=1, name="Evaluate")).to_be_visible()
        visitor.settle()
        page.get_by_text("Settings", exact=True).click()
        fill(visitor, "Rows", 8)
        fill(visitor, "Longest answer, tokens", 4)
        page.get_by_role("button", name="Evaluate", exact=True).click()
        expect(page.get_by_test_id("stProgress")).to_be_visible()
        (job,) = jobs.jobs("evaluate")
        while not (jobs.state_of(job.id) or job).pid:
            page.wait_for_timeout(100)
        kill_server(address)
        found = jobs.state_of(job.id)
        assert found is not None
        assert found.unfinished  # by its own process, which the server's end does not touch
        assert psutil.pid_exists(found.pid or 0)
        visitor.context.close()

    with served(workspace, port=int(address.rsplit(":", 1)[1])) as again:
        assert again == address
        visitor = Visitor(browser, again)
        page = visitor.page
        visitor.open("evaluate")
        expect(page.get_by_text("Beside the original")).to_be_visible(timeout=10 * MINUTES)
        done = jobs.state_of(job.id)
        assert done is not None
        assert done.state == "done"
        visitor.open("runs")
        evaluation = node_of("evaluation")
        detail(page).get_by_role("button", name="recovered better").click()
        expect(detail(page).locator(".run-head strong")).to_have_text("better")
        expect(detail(page).get_by_role("button", name=f"evaluation {evaluation.name}")).to_be_visible()
        whole = lineage.read_lineage()
        assert len(whole.nodes) == 7
        assert {node.stage: [parent.stage for parent in whole.parents(node.key)] for node in whole.nodes.values()} == {
            "model": [],
            "calibration": ["model"],
            "plan": ["calibration"],
            "checkpoint": ["plan"],
            "recovered": ["checkpoint"],
            "evaluation": ["recovered", "model"],
            "judgement": ["recovered", "model"],
        }
        assert not [node.notes for node in whole.nodes.values() if node.notes]
        click_node(visitor, "verdict")
        expect(detail(page)).to_contain_text("pico-judge")
        visitor.picture("runs-2-whole")

        detail(page).get_by_role("button", name="Export").click()
        with page.expect_download(timeout=3 * MINUTES) as started:
            page.get_by_text("With all that it was made from").click()
            expect(page.get_by_text("1 run,")).to_be_visible()
            page.get_by_role("button", name="Download", exact=True).click()
        file = Path(started.value.path())
        assert started.value.suggested_filename == "verdict.slim.zip"
        page.keyboard.press("Escape")
        visitor.settle()

        page.get_by_text("Import runs from another machine").click()
        named = file.with_name("verdict.slim.zip")
        file.rename(named)
        page.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(named)
        button = page.get_by_role("button", name="Import", exact=True)
        expect(button).to_be_enabled()
        button.click()
        expect(detail(page).locator(".run-head strong")).to_have_text("verdict-2")
        visitor.settle()
        assert len(lineage.read_lineage().runs) == 7

        detail(page).get_by_role("button", name="Delete", exact=True).click()
        page.get_by_role("button", name=re.compile("^Delete it, ")).click()
        expect(detail(page).locator(".run-head strong")).not_to_have_text("verdict-2")
        assert len(lineage.read_lineage().runs) == 6
        assert page.get_by_test_id("stException").count() == 0
        assert visitor.hosts <= {"127.0.0.1", ""}
        visitor.context.close()


def test_few_and_many_runs_fit(browser: Browser, workspace: Path, tmp_path: Path) -> None:
    """Nothing is wider than the window, no label lies on another in its row; pictures to look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(tmp_path / "many"))
        crowd(workspace, tmp_path / "many", 60)
        with served(tmp_path / "many") as address:
            visitor = Visitor(browser, address)
            visitor.open("runs")
            for look in visitor.looks():
                assert visitor.page.get_by_test_id("stException").count() == 0
                labels = graph(visitor.page).locator(".textpoint text")
                expect(labels).to_have_count(61)
                boxes = [label.bounding_box() for label in labels.all()]
                rows: dict[int, list[tuple[float, float]]] = {}
                for box in boxes:
                    assert box
                    rows.setdefault(round(box["y"]), []).append((box["x"], box["x"] + box["width"]))
                for row in rows.values():
                    ends = sorted(row)
                    assert all(left[1] <= right[0] for left, right in pairwise(ends))
                visitor.picture(f"runs-many-{look}")
            visitor.context.close()


def test_over_a_slow_connection_the_next_page_is_whole(workspace: Path, browser: Browser, app: str) -> None:
    """A job's progress asks for itself until the browser knows of the new page, which must not become empty by it."""
    job = jobs.start(RepairRequest.asked(folder=workspace / "checkpoints" / "small", samples=2000, max_length=512))
    try:
        with line_to(app) as line:
            visitor = Visitor(browser, line.address)
            visitor.open("recover?checkpoint=better")
            expect(visitor.page.get_by_test_id("stProgress")).to_be_visible()
            line.seconds = 2.5
            visitor.page.get_by_role("button", name="Compare its answers with the original's").click()
            title = visitor.page.get_by_role("heading", level=1, name="Compare")
            expect(title).to_be_visible()
            visitor.page.wait_for_timeout(4000)
            assert title.is_visible()
            visitor.context.close()
    finally:
        jobs.cancel(job.id)


def crowd(workspace: Path, home: Path, count: int) -> None:
    """A workspace with so many runs: plans, checkpoints and judgements of the real ones, copied under other names."""
    sources = {stage: workspace / place for stage, place in PLACES.items()}
    shutil.copytree(workspace / "calibrations", home / "calibrations")
    remember(home / "calibrations" / "briefs", "calibration")
    for number in range(count - 1):
        stage = list(PLACES)[number % 4]
        source, turn = sources[stage], number // 4
        place = home / f"{KINDS[stage]}s" / f"{source.stem}-of-a-long-name-{turn:03}{source.suffix}"
        if source.is_dir():
            place.mkdir(parents=True)
            for file in source.glob("*.json"):
                (place / file.name).write_bytes(file.read_bytes())
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(source.read_bytes())
        if stage == "judgement":
            judged = home / "checkpoints" / f"better-of-a-long-name-{turn:03}"
            found = judge.load_judgment(place).model_copy(update={"pruned_model": str(judged)})
            place.write_text(found.model_dump_json(), encoding="utf-8")
        remember(place, KINDS[stage])


KINDS: dict[str, Kind] = {
    "plan": "plan",
    "checkpoint": "checkpoint",
    "recovered": "checkpoint",
    "judgement": "judgement",
}
PLACES = {
    "plan": "plans/few-heads.json",
    "checkpoint": "checkpoints/small",
    "recovered": "checkpoints/better",
    "judgement": "judgements/verdict.json",
}
