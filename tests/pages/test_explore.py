"""The Explore page: every view of every kind of calibration, links, and real clicks on heads."""

import ast
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest

from pages.views.criteria import correction_in_words, in_words
from slim import jobs
from slim.calibration import scores
from slim.calibration.calibrate import calibrate
from slim.calibration.check import check
from slim.calibration.check_record import Correction, CriterionCheck, Removal, Verdict
from slim.calibration.head_scores import costs, head_scores
from slim.calibration.record import CHECK_FILE, Calibration, load_calibration, save_check
from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.core.request import Request
from tests import APP, ROOT
from tests.pico import make_pico, save_pico
from tests.visitor import Visitor

VIEWS = ("Maps", "Distributions", "Scatter", "Criterion check", "Task vs general", "Table")
MADE = ("task", "prose", "bare", "single")
SHORT: dict[str, Any] = {"max_length": 40, "batch_size": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with four calibrations, the newest first in MADE's order.

    `task` is checked, `prose` is the same model on other text, `bare` is without KL, `single` another model's on a
    single row, and that model is gone.
    """
    folder = tmp_path_factory.mktemp("explore")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        text = folder / "prose.txt"
        text.write_text("\n".join(f"The {n}th ship left the harbour before dawn on day {3 * n}." for n in range(40)))
        for name, seed in (("model", 0), ("gone", 1)):
            save_pico(make_pico("llama", seed=seed), folder / name)
        save = {name: folder / "workspace" / "calibrations" / name for name in MADE}

        def made(name: str, model: str, data: str, **settings: Any) -> Calibration:
            chosen = {"samples": 6} | SHORT | settings
            return calibrate(CalibrateRequest.asked(model=folder / model, dataset=data, output=save[name], **chosen))

        made("single", "gone", str(text), samples=1)
        shutil.rmtree(folder / "gone")
        made("bare", "model", "bundled:triage", kl="none")
        made("prose", "model", str(text), max_length=32)
        check(CheckRequest(calibration=made("task", "model", "bundled:triage"), samples=2, heads=9))
        (folder / "workspace" / "models").mkdir(exist_ok=True)
        yield folder / "workspace"


@pytest.fixture
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace as that of this process."""
    monkeypatch.setenv("SLIM_HOME", str(workspace))
    return workspace


def opened(name: str = "task", **link: str) -> AppTest:
    """The page as a link opens it."""
    page = AppTest.from_file(APP, default_timeout=60).run()
    page.query_params["calibration"] = name
    for key, value in link.items():
        page.query_params[key] = value
    page.switch_page("pages/explore.py")
    return healthy(page.run())


def healthy(page: AppTest) -> AppTest:
    """No exception, and it is the page that is meant."""
    assert not page.exception
    assert [title.value for title in page.title] == ["Explore"]
    return page


def test_strings_that_document_the_code_are_not_shown(here: Path) -> None:
    """Streamlit writes a bare string of a page's script onto the page unless its configuration says otherwise."""
    script = ast.parse((ROOT / "pages" / "explore.py").read_text())
    bare = {
        node.value.value for node in script.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    assert len(bare) > 1, "the script's own, and one at least of a constant"
    assert not bare & {element.value for element in opened().markdown}


def chosen(page: AppTest) -> str:
    """The name of the calibration that is shown."""
    path: Any = page.selectbox(key="explore-calibration").value
    return path.name


def heading(page: AppTest) -> str:
    """The chosen head."""
    return next(title.value for title in page.subheader if title.value.startswith("Layer"))


def said(page: AppTest) -> str:
    """All text of the page."""
    parts = [*page.markdown, *page.caption, *page.info, *page.warning, *page.error]
    return "\n".join(part.value for part in parts)


def charts_of(page: AppTest) -> list[dict[str, Any]]:
    """The figures on the page."""
    return [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")]  # type: ignore[reportAttributeAccessIssue]


def titles(page: AppTest) -> list[str]:
    """The titles of the figures on the page."""
    return [chart["layout"]["title"]["text"] for chart in charts_of(page)]


def read(here: Path, name: str) -> Calibration:
    return load_calibration(here / "calibrations" / name)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_of_every_calibration(here: Path, view: str, name: str) -> None:
    """No exception whatever is missing, and the head's detail stands beside each."""
    page = opened(name, view=view)
    assert chosen(page) == name
    assert heading(page)
    assert not page.error
    words = said(page)
    if view == "Maps":
        count = len(head_scores(read(here, name), scores.default_weights(read(here, name)))) - (name == "task")
        assert len(titles(page)) == count + 2
    elif view == "Criterion check":
        assert ("orders the heads best" in words) == (name == "task")
        assert ("Not checked yet" in words) == (name != "task")
    elif view == "Task vs general":
        compared = "Cost on general text over cost on this task" in titles(page)
        assert compared == (name in ("task", "prose"))
        assert ("made without KL" in words) == (name == "bare")
        assert ("no second calibration" in words) == (name == "single")
    elif view == "Table":
        (table,) = page.dataframe
        assert len(table.value) == 24
    else:
        assert len(titles(page)) == 1
    assert ("no interval" in words) == (name in ("single", "task", "prose", "bare"))  # magnitude never has one
    assert ("No forecast" in words) == (name == "bare")


def test_without_a_calibration_the_page_leads_on(own_workspace: Path) -> None:
    """One sentence and a link."""
    page = AppTest.from_file(APP, default_timeout=60).run()
    page.switch_page("pages/explore.py")
    healthy(page.run())
    assert "There is no calibration yet." in page.info[0].value


def test_the_detail_is_that_of_the_record(here: Path) -> None:
    """Value, interval and place of each figure, and the costs."""
    page, record = opened(head="2.3"), read(here, "task")
    assert heading(page) == "Layer 2, head 3"
    words = said(page)
    for name, measure in head_scores(record, scores.default_weights(record)).items():
        estimate, place = measure.estimate, measure.place(2, 3)
        if name == "damage" or place is None:
            continue
        line = next(line for line in words.splitlines() if line.startswith(f"| {measure.title} "))
        assert f"**{estimate.value[2, 3]:.3g}**" in line
        assert line.endswith(f"| {place[0]} |")
        if np.isfinite(estimate.low[2, 3]):
            assert rf"\[{estimate.low[2, 3]:.3g}, {estimate.high[2, 3]:.3g}\]" in line
    for cost in costs(record, 2, 3):
        assert f"| {cost.what} | **{cost.value:.3g}**" in words


def test_a_link_reproduces_what_is_seen(here: Path) -> None:
    """Calibration, view, axes and head; the link follows what is chosen."""
    page = opened("prose", view="Scatter", x="Write variance", y="Composite score", head="1.4")
    assert chosen(page) == "prose"
    assert heading(page) == "Layer 1, head 4"
    assert titles(page) == ["Composite score against write variance"]
    page.number_input(key="explore-layer").set_value(3).run()
    assert heading(healthy(page)) == "Layer 3, head 4"
    assert page.query_params["head"] == "3.4"
    assert page.query_params["calibration"] == "prose"


def test_a_link_of_slim_0_1_opens_its_view(here: Path) -> None:
    """By the name that the view had."""
    page = opened("task", view="faithfulness".capitalize())
    assert page.segmented_control(key="view").value == "Criterion check"
    page.segmented_control(key="view").set_value("Scatter").run()
    assert not page.exception
    assert page.segmented_control(key="view").value == "Scatter"
    page.run()
    assert page.segmented_control(key="view").value == "Scatter"


def test_another_calibration_may_lack_the_figure_that_was_chosen(here: Path) -> None:
    """The axis falls back to one that there is."""
    page = opened("task", view="Scatter", x="Measured damage", y="KL of the output", head="2.3")
    assert titles(page) == ["KL of the output against measured damage"]
    page.selectbox(key="explore-calibration").set_value(here / "calibrations" / "bare").run()
    assert titles(healthy(page)) == ["Write variance against attention entropy"]
    assert heading(page) == "Layer 2, head 3"


@pytest.mark.parametrize("head", ["", "9.9", "1", "a.b", "1.2.3", "-1.0"])
def test_a_link_to_a_head_that_is_not_there(here: Path, head: str) -> None:
    """The page opens at the head whose loss costs most."""
    page, values = opened(head=head), read(here, "task").level("head")["kl_output"]
    layer, place = np.unravel_index(values.argmax(), values.shape)
    assert heading(page) == f"Layer {layer}, head {place}"


def test_a_link_to_a_calibration_that_is_gone(here: Path) -> None:
    """The newest is shown."""
    assert chosen(opened("nowhere")) == "task"


def test_the_attention_on_a_row(here: Path) -> None:
    """The map, the row's text, shaded; another row and one token's view of it."""
    page = opened("prose", attention="true", view="Table", head="1.2")
    assert titles(page) == ["Attention"]
    (spec,) = charts_of(page)
    assert len(spec["data"]) == 1
    first = shaded(page)
    assert first.count("<span") == 32
    page.number_input(key="row").set_value(4).run()
    assert shaded(healthy(page)) != first
    page.button_group(key="explore-shade").set_value("One token").run()
    page.slider(key="explore-query-3").set_value(10).run()
    assert shaded(healthy(page)).count("opacity:.35") == 21
    assert "Token 10 gives the first token" in said(page)


def shaded(page: AppTest) -> str:
    """The row's text as HTML."""
    texts = [block.proto.body for block in page.get("html")]  # type: ignore[reportAttributeAccessIssue]
    return next(text for text in texts if "<span" in text)


def test_a_model_that_is_gone_costs_only_the_attention(here: Path) -> None:
    """One sentence; the rest of the page is there."""
    page = opened("single", attention="true", view="Maps")
    (warning,) = page.warning
    assert "was not found" in warning.value
    assert len(titles(page)) > 5
    assert "Attention" not in titles(page)


def test_weights_change_the_score(here: Path) -> None:
    """On the map and in the detail; all 0 means the first ones."""
    page, record = opened(head="2.3"), read(here, "task")
    page.slider(key="weight-head-variance").set_value(0.5).run()
    expected = scores.composite(record, {"kl_output": 1.0, "variance": 0.5}, "head")
    assert f"| Composite score | **{expected[2, 3]:.3g}**" in said(healthy(page))
    page.slider(key="weight-head-variance").set_value(0.0).run()
    page.slider(key="weight-head-kl_output").set_value(0.0).run()
    expected = scores.composite(record, scores.default_weights(record), "head")
    assert f"| Composite score | **{expected[2, 3]:.3g}**" in said(healthy(page))


def test_other_weights_are_held_against_the_check(here: Path) -> None:
    """At once, beside what was measured with the check's own."""
    page = opened(view="Criterion check")
    (bars,) = charts_of(page)[0]["data"]
    assert "Composite, weights now" not in bars["y"]
    page.slider(key="weight-head-entropy").set_value(1.0).run()
    (bars,) = charts_of(healthy(page))[0]["data"]
    assert "Composite, weights now" in bars["y"]


def started(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests of the jobs that the page starts, in place of starting them."""
    found: list[Request] = []
    monkeypatch.setattr(jobs, "start", found.append)
    return found


def test_the_check_is_started_with_the_weights(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this calibration."""
    found, page = started(monkeypatch), opened("prose", view="Criterion check")
    page.slider(key="weight-head-entropy").set_value(0.5).run()
    next(button for button in page.button if button.label == "Check the criteria").click().run()
    healthy(page)
    weights = {"kl_output": 1.0, "entropy": 0.5, "variance": 0.25}
    assert found == [CheckRequest(calibration=str(here / "calibrations" / "prose"), weights=weights)]
    assert re.search(r"Takes about \d+ (s|min)", said(page))


def test_general_text_is_calibrated_with_the_same_settings(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model on the bundled prose."""
    found, page = started(monkeypatch), opened("task", view="Task vs general")
    next(button for button in page.button if button.label == "Calibrate on general text").click().run()
    healthy(page)
    record = read(here, "task").facts
    settings = record.settings.model_dump()
    assert found == [CalibrateRequest(model=record.model.source, dataset="bundled:general", **settings)]


def test_what_is_not_measured_alike_is_said(here: Path) -> None:
    """The other calibration cut its rows shorter."""
    assert "longest row, tokens: 40 and 32" in said(opened("task", view="Task vs general"))


def test_a_damaged_other_calibration_is_one_sentence(here: Path) -> None:
    """The detail stays."""
    tensors = here / "calibrations" / "prose" / "tensors.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:100])
    (tensors.parent / "record.json").touch()  # so that nothing kept of it is used
    try:
        page = opened("task", view="Task vs general")
        assert "cannot be read" in page.error[0].value
        assert heading(page)
    finally:
        tensors.write_bytes(whole)
        (tensors.parent / "record.json").touch()


def test_a_check_is_seen_as_soon_as_it_is_there(here: Path) -> None:
    """Though the record beside it is kept in memory."""
    page = opened("prose", view="Criterion check")
    assert "Not checked yet" in said(page)
    found = read(here, "task").check
    assert found is not None
    folder = here / "calibrations" / "prose"
    before = folder.stat()
    save_check(read(here, "prose"), found)
    try:
        assert "orders the heads best" in said(healthy(page.run()))
    finally:
        (folder / CHECK_FILE).unlink()
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))  # the newest run stays the newest


def record_of(**perplexity: float) -> CriterionCheck:
    """A check in which the criteria differ by their perplexity at 10%, the first correlates best."""

    def verdict(place: int, name: str, value: float) -> Verdict:
        removals = tuple(
            Removal(share=share, heads=3, forecast=0.1, kl=0.1, perplexity=value * share * 10)
            for share in (0.05, 0.1, 0.2, 0.3)
        )
        return Verdict(criterion=name, correlation=0.9 - place, low=None, high=None, removals=removals)

    return CriterionCheck(
        rows=1,
        tokens=10,
        unseen=True,
        perplexity=9,
        weights={"kl_output": 1.0},
        heads=((0, 0),),
        damage=(0.1,),
        verdicts=tuple(verdict(place, name, value) for place, (name, value) in enumerate(perplexity.items())),
        correction=None,
        seconds=1,
    )


def test_the_words_follow_the_record() -> None:
    """Best and worst are those of the figures, whatever they are called."""
    words = in_words(record_of(entropy=12.0, random=20.0, kl_output=900.0))
    assert "**Attention entropy** orders the heads best (+0.90)" in words
    assert "**KL of the output** worst (−1.10)" in words
    assert "a perplexity of 9.0 into 900.0; **Attention entropy** makes it 12.0, chance 20.0" in words
    assert "Worse than chance at 10%: **KL of the output**." in words
    words = in_words(record_of(kl_output=12.0, random=20.0))
    assert "**Chance** worst" in words
    assert "Worse than chance" not in words


def test_the_correction_in_words() -> None:
    """Factors at both ends, or that there are too few."""
    correction = Correction(intercept=np.log(2), slope=0, smallest=0.01, largest=1, spread=0, removals=7)
    words = correction_in_words(record_of(random=1.0).model_copy(update={"correction": correction}))
    assert "0.01 nats/token is multiplied by 2.00" in words
    assert "Too few removals" in correction_in_words(record_of(random=1.0))


def place_of(page: Page, chart: str, index: int) -> tuple[float, float, list[int]]:
    """Where on the screen the clickable point `index` of a chart is, and the head it stands for."""
    page.locator(f".st-key-{chart} .js-plotly-plot").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    x, y, head = page.evaluate(
        """([key, index]) => {
            const plot = document.querySelector(`.st-key-${key} .js-plotly-plot`), box = plot.getBoundingClientRect()
            const {xaxis, yaxis} = plot._fullLayout
            const trace = plot._fullData.find(t => t.type === 'scatter' && t.customdata)
            const at = (axis, value) => axis._offset + axis.c2p(axis.d2c(value))
            return [box.left + at(xaxis, trace.x[index]), box.top + at(yaxis, trace.y[index]),
                    Array.from(trace.customdata[index])]
        }""",
        [chart, index],
    )
    return x, y, head


def choose_view(page: Page, view: str) -> None:
    page.get_by_role("radio", name=view).or_(page.get_by_role("button", name=view, exact=True)).first.click()


@pytest.mark.browser
def test_a_click_in_any_view_opens_the_head(browser: Any, app: str, workspace: Path) -> None:
    """With a real mouse, in figures and in the table; also back to a head that was seen before."""
    visitor = Visitor(browser, app)
    page = visitor.page
    detail_of = page.locator(".st-key-head-detail h3")
    clicks = {
        "Maps": {"map-entropy": (7, 20, 7), "map-composite": (13,)},
        "Distributions": {"distribution": (3, 16, 3)},
        "Scatter": {"scatter": (5, 18, 5)},
        "Criterion check": {"damage": (2, 6, 2)},
        "Task vs general": {"difference": (1, 22, 1)},
    }
    visitor.open("explore")
    visitor.settle()
    for view, charts in clicks.items():
        choose_view(page, view)
        for chart, indices in charts.items():
            expect(page.locator(f".st-key-{chart} .js-plotly-plot")).to_be_visible()
            visitor.settle()
            for index in indices:
                x, y, (layer, head) = place_of(page, chart, index)
                page.mouse.click(x, y)
                expect(detail_of).to_have_text(f"Layer {layer}, head {head}")
                expect(page).to_have_url(re.compile(rf"head={layer}\.{head}\b"))
                visitor.settle()
        assert page.get_by_test_id("stException").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        visitor.picture(f"explore-{view.lower().replace(' ', '-')}")
    choose_view(page, "Table")
    table = page.get_by_test_id("stDataFrame").first
    expect(table.get_by_test_id("data-grid-canvas")).to_be_visible()
    visitor.settle()
    table.click(position={"x": 15, "y": 52})  # the box before the first row: the head that goes first
    score = scores.composite(read(workspace, "task"), {"kl_output": 1.0}, "head")
    layer, head = np.unravel_index(score.argmax(), score.shape)
    expect(detail_of).to_have_text(f"Layer {layer}, head {head}")
    assert visitor.hosts <= {"127.0.0.1", ""}
    visitor.context.close()
