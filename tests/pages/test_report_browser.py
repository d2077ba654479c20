"""The report in a real browser: from a file, with no network, in light and dark, and taken along from the dashboard."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from slim.runs.report.write import text, write
from tests.hostile import EVIL, ODD, Made, pipeline
from tests.visitor import Scheme, Visitor, take_picture

pytestmark = pytest.mark.browser
CHARTS = 17
"""Of the whole pipeline: eight maps, two of blocks, the check, the plan, two of recovery, three of the evaluation."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The runs of a pipeline, in a workspace of their own."""
    folder = tmp_path_factory.mktemp("report-browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("SLIM_JUDGE_KEY", raising=False)
        yield pipeline(folder)


@pytest.fixture(scope="module")
def workspace(made: Made) -> Path:
    return made.plan.parent.parent / "workspace"


@pytest.fixture(scope="module")
def file(made: Made, workspace: Path) -> Path:
    return write(made.tuned, workspace.parent / "report.html")


class Reader:
    """A browser without a network that opens a file; everything that it asks for or complains of is noted."""

    def __init__(self, browser: Browser, file: Path, scheme: Scheme, width: int) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
        self.asked: list[str] = []
        self.context.route("**/*", self._refuse)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(file.as_uri())
        expect(self.page.locator("html[data-drawn]")).to_have_count(1, timeout=120_000)

    def _refuse(self, route: Route) -> None:
        if route.request.url.startswith("file:") and route.request.is_navigation_request():
            route.continue_()
            return
        self.asked.append(route.request.url)
        route.abort()

    def ink(self) -> str:
        """The colour of a chart's title."""
        return self.page.locator(".gtitle").first.evaluate("element => getComputedStyle(element).fill")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 900, 400])
def test_it_opens_without_a_network(browser: Browser, file: Path, width: int, scheme: Scheme) -> None:
    """Every chart is drawn, nothing is asked for or complained of, nothing that was said ran; a picture to look at."""
    reader = Reader(browser, file, scheme, width)
    page = reader.page
    assert page.locator(".chart").count() == CHARTS
    assert page.locator(".chart.js-plotly-plot .main-svg").count() >= CHARTS
    assert (reader.asked, reader.said) == ([], [])
    assert page.evaluate("window.hit") is None
    expect(page.get_by_role("heading", level=1)).to_have_text(ODD)
    expect(page.get_by_text(EVIL).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert reader.ink() == ("rgb(226, 232, 240)" if scheme == "dark" else "rgb(30, 41, 59)")
    take_picture(page, f"report-{scheme}-{width}", whole=True)
    reader.context.close()


def test_a_smuggled_script_would_not_run(browser: Browser, file: Path, tmp_path: Path) -> None:
    """The file's own policy stops what a text might smuggle in, and whatever it wanted to fetch."""
    evil = "<script>window.hit=1</script><img src=x onerror='window.hit=2'><img src='http://evil.example/i.png'></h1>"
    page = file.read_text(encoding="utf-8")
    assert "</h1>" in page
    broken = tmp_path / "broken.html"
    broken.write_text(page.replace("</h1>", evil, 1), encoding="utf-8")
    reader = Reader(browser, broken, "light", 1440)
    assert reader.page.evaluate("window.hit") is None
    assert any("Content Security Policy" in said for said in reader.said)
    assert reader.asked == []
    reader.context.close()


def test_paper_is_white(browser: Browser, file: Path) -> None:
    """In the dark, charts are printed in dark ink on no more than the paper's width, and are light again afterwards."""
    reader = Reader(browser, file, "dark", 1440)
    page = reader.page
    light, dark = reader.ink(), "rgb(30, 41, 59)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("() => document.querySelector('.main-svg').clientWidth <= 680")
    assert reader.ink() == dark
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function(f"() => getComputedStyle(document.querySelector('.gtitle')).fill === '{light}'")
    assert page.locator(".wide .main-svg").first.evaluate("element => element.clientWidth") > 680
    reader.context.close()


def test_it_is_taken_along_from_the_dashboard(browser: Browser, app: str, made: Made) -> None:
    """Under an evaluation and under a judgement: the same file as the command's."""
    visitor = Visitor(browser, app)
    page = visitor.page
    visitor.open("evaluate")
    visitor.settle()
    with page.expect_download(timeout=120_000) as started:
        page.get_by_role("button", name="Report as HTML").click()
    assert started.value.suggested_filename == "scored.html"
    assert Path(started.value.path()).read_text(encoding="utf-8") == text(made.evaluation, "html")
    visitor.picture("evaluate-report")
    visitor.open("compare")
    page.get_by_role("radio", name="Judge", exact=True).click()
    visitor.settle()
    with page.expect_download(timeout=120_000) as started:
        page.get_by_role("button", name="Model card as Markdown").click()
    assert started.value.suggested_filename == "judged.md"
    assert Path(started.value.path()).read_text(encoding="utf-8") == text(made.judgement, "md")
    assert page.get_by_test_id("stException").count() == 0
    visitor.context.close()
