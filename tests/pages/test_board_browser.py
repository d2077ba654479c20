"""The threshold board in a real browser: its figures are Python's, and real mouse, keys and links do what they say."""

import base64
import math
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from benchmarks.board import dragged, name_of, opened, save_made_up
from benchmarks.planner import Shape
from pages.views.board import ASSETS, SCRIPT
from slim.calibration.record import Calibration, load_calibration, save_calibration, save_check
from slim.planning.board import outcome, payload
from slim.planning.board_choice import BoardState, first_state
from slim.planning.files import load_plan
from slim.planning.record import ByThreshold, Pins
from tests.pages.test_board_numbers import CHECKED
from tests.pico import make_pico, random_rows
from tests.reference import measured
from tests.visitor import Visitor

pytestmark = pytest.mark.browser
LARGE = Shape(32, 32, 8), Shape(80, 64, 8)
PICTURE = "canvas => canvas.toDataURL()"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small calibration that was checked, one without KL, and made-up ones of large models."""
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder))
        for shape in LARGE:
            save_made_up(shape, folder / "calibrations" / name_of(shape))
        model = make_pico("llama")
        save_calibration(measured(model, random_rows((9, 12)), kl="none"), folder / "calibrations" / "bare")
        small = measured(model, random_rows((40, 33, 64, 20, 12, 50)), draws=2)
        save_check(save_calibration(small, folder / "calibrations" / "small"), CHECKED)
        yield folder


@pytest.fixture(scope="module")
def small(workspace: Path) -> Calibration:
    return load_calibration(workspace / "calibrations" / "small")


@pytest.fixture
def page(visitor: Visitor) -> Page:
    """The board of the small calibration."""
    opened(visitor.page, visitor.address, "small")
    return visitor.page


def on_board(page: Page, selector: str = "") -> Locator:
    return page.locator(f".board {selector}" if selector else ".board")


def settled(page: Page) -> None:
    """Waits until Python's plan of the last edit is shown."""
    expect(page.locator(".board[data-source=plan]")).to_be_visible()


def figures(page: Page) -> dict[str, float]:
    """The board's figures, unrounded."""
    script = "cards => cards.flatMap(c => [[c.dataset.figure, c.dataset.value], ['low', c.dataset.low]])"
    found = dict(on_board(page, "[data-figure]").evaluate_all(script))
    return {name: float(value) for name, value in found.items() if value}


def next_frame(page: Page) -> None:
    """Waits until what the mouse just did is painted."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def line(page: Page) -> float:
    return float(on_board(page, ".rule").get_attribute("aria-valuenow") or "nan")


def link(page: Page) -> dict[str, str]:
    """The parameters in the page's address."""
    return {name: values[0] for name, values in parse_qs(urlparse(page.url).query).items()}


def expect_link(page: Page, name: str, value: str | None) -> None:
    """Waits until the address says so."""
    script = "([name, value]) => new URLSearchParams(location.search).get(name) === value"
    page.wait_for_function(script, arg=[name, value])


def at_cell(page: Page, layer: int, head: int, layers: int = 4, heads: int = 6) -> tuple[float, float]:
    """The middle of a cell on the screen."""
    box = on_board(page, ".cells").bounding_box()
    assert box
    return box["x"] + (head + 0.5) / heads * box["width"], box["y"] + (layer + 0.5) / layers * box["height"]


def check_figures(shown: dict[str, float], choice: BoardState, calibration: Calibration) -> None:
    """They are those of Python's plan."""
    made = choice.plan(calibration)
    after, forecast = made.after.model_dump(), made.forecast
    assert forecast is not None
    assert forecast.low is not None
    for name in ("parameters", "bytes", "kv_bytes_per_token", "flops_per_token"):
        assert shown[name] == after[name]
    assert shown["prefill"] == pytest.approx(made.before.flops_per_token / made.after.flops_per_token)
    assert shown["decode"] == pytest.approx(made.before.bytes_read_per_token / made.after.bytes_read_per_token)
    assert shown["loss"] == pytest.approx(forecast.nats_per_token, rel=1e-4, abs=1e-9)
    assert shown["low"] == pytest.approx(forecast.low, rel=1e-4, abs=1e-9)


@pytest.fixture(scope="module")
def blank(browser: Browser, app: str) -> Iterator[Page]:
    """A page that may run modules."""
    found = browser.new_page()
    found.goto(f"{app}/_stcore/health")
    yield found
    found.close()


MOUNT = """async ([script, html, sent, data]) => {
  const element = document.body.appendChild(document.createElement("div"));
  element.innerHTML = html;
  const board = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  window.told = [];
  window.receive = (data) => board.default({
    data, parentElement: element, setStateValue: (name, value) => window.told.push([name, value]),
  });
  window.receive(data);
  window.receive(Uint8Array.from(atob(sent), (letter) => letter.charCodeAt(0)));
}"""


def test_python_is_right(blank: Page, small: Calibration) -> None:
    """Its figures replace the board's own once they are of the same choice; an answer that is late changes nothing."""
    name, sent = payload(small)
    first = first_state(small)
    shown = outcome(first.plan(small))
    data = {"payload": name, "edit": 3, "version": 0, "choice": first.model_dump(mode="json"), "plan": shown}
    other = shown | {"after": shown["after"] | {"parameters": 12345}}
    blank.evaluate(MOUNT, [SCRIPT, (ASSETS / "board.html").read_text(), base64.b64encode(sent).decode(), data])
    parameters = blank.locator("[data-figure=parameters]")
    expect(parameters).to_have_attribute("data-value", str(shown["after"]["parameters"]))
    blank.evaluate("data => window.receive(data)", data | {"plan": other})
    expect(parameters).to_have_attribute("data-value", "12345")
    blank.locator(".rule").press("ArrowLeft")
    blank.wait_for_function("window.told.length === 1")
    moved = first.model_copy(update={"threshold": 0.79})
    mine = str(moved.plan(small).after.parameters)
    expect(parameters).to_have_attribute("data-value", mine)
    ((key, told),) = blank.evaluate("window.told")
    assert (key, told["payload"], told["edit"]) == ("state", name, 4)
    assert BoardState.model_validate(told["choice"]) == moved
    blank.evaluate("data => window.receive(data)", data | {"plan": other})
    expect(parameters).to_have_attribute("data-value", mine)
    blank.evaluate("data => window.receive(data)", data | {"edit": 4, "choice": told["choice"], "plan": other})
    expect(parameters).to_have_attribute("data-value", "12345")
    blank.evaluate("data => window.receive(data)", data | {"edit": 4, "version": 1})
    expect(parameters).to_have_attribute("data-value", str(shown["after"]["parameters"]))
    expect(blank.locator(".rule")).to_have_attribute("aria-valuenow", "0.8")


def test_figures_follow_while_the_line_is_dragged(page: Page, small: Calibration, workspace: Path) -> None:
    """Mouse down, many moves, mouse up: at each move the figures are those of Python's plan at that threshold."""
    first = first_state(small)
    check_figures(figures(page), first, small)
    plot = on_board(page, ".plot").bounding_box()
    assert plot
    y = plot["y"] + 60
    page.mouse.move(plot["x"] + plot["width"] * 0.8 / 1.01, y)
    page.mouse.down()
    seen = []
    for score in (0.76, 0.69, 0.613, 0.55, 0.47, 0.42, 0.6):
        page.mouse.move(plot["x"] + plot["width"] * score / 1.01, y)
        next_frame(page)
        shown = figures(page)
        assert on_board(page).get_attribute("data-source") == "live"
        assert line(page) == pytest.approx(score, abs=0.002)
        check_figures(shown, first.model_copy(update={"threshold": line(page)}), small)
        words = on_board(page, "[data-figure=loss]").inner_text()
        assert f"{shown['loss']:.3f} nats/token" in words
        assert f"perplexity × {math.exp(shown['loss']):,.2f}" in words
        seen.append((shown["parameters"], shown["loss"]))
    assert len(set(seen)) >= 6
    assert link(page)["threshold"] == "0.8"
    live = on_board(page, ".cells").evaluate(PICTURE)
    page.mouse.up()
    settled(page)
    expect_link(page, "threshold", f"{line(page):g}")
    assert on_board(page, ".cells").evaluate(PICTURE) == live
    assert figures(page)["parameters"] == seen[-1][0]
    page.get_by_role("button", name="Save the plan").click()
    expect(page.get_by_text("Saved:")).to_be_visible()
    (file,) = (workspace / "plans").glob("*.json")
    made = load_plan(file)
    file.unlink()
    assert isinstance(made.reason, ByThreshold)
    assert made.reason.threshold == line(page)
    assert made.after.parameters == seen[-1][0]


def test_a_click_drops_keeps_and_lets_go(page: Page, small: Calibration) -> None:
    """A cell's three states in turn; the tip says why it stays or goes, the plan follows."""
    page.mouse.click(*at_cell(page, 2, 3))
    expect_link(page, "drop", "2:3")
    expect(on_board(page, ".tip")).to_contain_text("Layer 2, head 3: goes")
    settled(page)
    dropped = first_state(small).model_copy(update={"pins": Pins(drop=((2, 3),))})
    check_figures(figures(page), dropped, small)
    page.mouse.click(*at_cell(page, 2, 3))
    expect_link(page, "keep", "2:3")
    page.mouse.move(*at_cell(page, 2, 4))
    page.mouse.move(*at_cell(page, 2, 3))
    expect(on_board(page, ".tip")).to_contain_text("Kept by hand")
    expect_link(page, "drop", None)
    page.mouse.click(*at_cell(page, 2, 3))
    expect_link(page, "keep", None)


def test_a_rectangle_is_pinned_and_comes_back(page: Page) -> None:
    """Shift-drag takes all cells of a rectangle; undo and redo by button and by key."""
    untouched = figures(page)
    page.keyboard.down("Shift")
    page.mouse.move(*at_cell(page, 1, 3))
    page.mouse.down()
    page.mouse.move(*at_cell(page, 2, 4))
    page.mouse.move(*at_cell(page, 2, 5))
    page.mouse.up()
    page.keyboard.up("Shift")
    expect_link(page, "drop", "1:3,1:4,1:5,2:3,2:4,2:5")
    settled(page)
    pinned = figures(page)
    assert pinned["parameters"] < untouched["parameters"]
    page.keyboard.press("Control+z")
    expect_link(page, "drop", None)
    settled(page)
    assert figures(page) == untouched
    page.keyboard.press("Control+Shift+Z")
    expect_link(page, "drop", "1:3,1:4,1:5,2:3,2:4,2:5")
    page.get_by_role("button", name="Undo").click()
    expect_link(page, "drop", None)
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    page.get_by_role("button", name="Redo").click()
    expect_link(page, "drop", "1:3,1:4,1:5,2:3,2:4,2:5")
    settled(page)
    assert figures(page) == pinned
    page.get_by_role("button", name="Reset").click()
    expect_link(page, "drop", None)


def test_everything_works_by_keyboard(page: Page) -> None:
    """The line, the cells, a rectangle of them, and the rows."""
    rule, grid = page.get_by_role("slider", name="Threshold", exact=True), page.get_by_role("grid")
    rule.focus()
    for key in ("ArrowLeft", "ArrowLeft", "Shift+ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    expect_link(page, "threshold", "0.84")
    settled(page)
    expect(rule).to_be_focused()
    grid.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "k"):
        page.keyboard.press(key)
    expect_link(page, "keep", "1:2")
    said = page.get_by_role("gridcell").get_attribute("aria-label") or ""
    assert said.startswith("Layer 1, head 2: stays. Kept by hand")
    for key in ("End", "d", "Home", "Enter", "Enter"):
        page.keyboard.press(key)
    expect_link(page, "keep", "1:0,1:2")
    expect_link(page, "drop", "1:5")
    for key in ("Delete", "PageDown", "Shift+ArrowRight", "Shift+ArrowUp", "d"):
        page.keyboard.press(key)
    expect_link(page, "drop", "1:5,2:0,2:1,3:0,3:1")
    settled(page)
    expect(grid).to_be_focused()
    page.get_by_role("button", name="Layer 0", exact=True).focus()
    for key in ("ArrowDown", "p", "Enter"):
        page.keyboard.press(key)
    expect_link(page, "protect", "1")
    expect(on_board(page, ".which")).to_have_text("In layer 1, all that scores")


def test_a_layer_has_a_line_of_its_own(page: Page, small: Calibration) -> None:
    """Select its row, drag: only that layer follows; protect it; give the line back."""
    page.get_by_role("button", name="Layer 3", exact=True).click()
    drag = dragged(page, 0.8, 0.3, 12)
    assert drag.work
    own = line(page)
    expect_link(page, "layers", f"3:{own:g}")
    assert link(page)["threshold"] == "0.8"
    check_figures(figures(page), first_state(small).model_copy(update={"per_layer": {3: own}}), small)
    page.get_by_role("button", name="Protect", exact=True).click()
    expect_link(page, "protect", "3")
    page.get_by_role("button", name="Protect layer 3").click()
    expect_link(page, "protect", None)
    page.get_by_role("button", name="Same line as the others").click()
    expect_link(page, "layers", None)
    exact = page.get_by_role("spinbutton", name="Threshold")
    for typed, value in (("0.515", "0.515"), ("-1", "0.515"), ("", "0.515"), ("7", "1.01")):
        exact.fill(typed)
        page.keyboard.press("Enter")
        expect(exact).to_have_value(value)
        expect_link(page, "layers", f"3:{value}")
    page.keyboard.press("Escape")
    expect(on_board(page, ".which")).to_have_text("All that scores")


def test_weights_rank_again_at_once(page: Page, small: Calibration) -> None:
    """While a weight moves, and the same on the Explore page afterwards."""
    page.get_by_role("slider", name="Threshold", exact=True).press("PageDown")
    expect_link(page, "threshold", "0.7")
    settled(page)
    before = figures(page)
    entropy = page.get_by_role("slider", name="Attention entropy")
    entropy.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    next_frame(page)
    mixed = first_state(small)
    mixed = mixed.model_copy(update={"threshold": 0.7, "weights": mixed.weights | {"entropy": 1.0}})
    check_figures(figures(page), mixed, small)
    assert figures(page)["parameters"] != before["parameters"]
    expect_link(page, "weights", "kl_output:1,entropy:1,variance:0.25")
    settled(page)
    page.get_by_role("link", name="Explore", exact=True).click()
    page.get_by_role("button", name="Weights of the score").click()
    slider = page.get_by_role("slider", name="Attention entropy")
    expect(slider).to_have_value("1")
    slider.press("ArrowLeft")
    expect(slider).to_have_value("0.95")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Prune", exact=True).click()
    settled(page)
    expect_link(page, "weights", "kl_output:1,entropy:0.95,variance:0.25")


def test_units_and_one_shape(page: Page, small: Calibration) -> None:
    """Each unit has its own cells and weights, and plans of one shape are Python's."""
    page.get_by_text("One shape in all layers").click()
    expect_link(page, "uniform", "1")
    settled(page)
    check_figures(figures(page), first_state(small).model_copy(update={"uniform": True}), small)
    titles = {"KV groups": "group", "Layers": "layer", "Attention blocks": "block"}
    for title, unit in titles.items():
        page.get_by_role("radio", name=title).click()
        expect_link(page, "unit", unit)
        settled(page)
        choice = first_state(small, unit).model_copy(update={"uniform": unit != "block"})
        check_figures(figures(page), choice, small)
        assert page.get_by_role("grid").get_attribute("aria-colcount") == ("2" if unit == "group" else "1")
    expect(page.get_by_role("switch", name="One shape in all layers")).to_be_disabled()
    page.get_by_role("radio", name="Attention blocks").press("ArrowLeft")
    expect_link(page, "unit", "group")


def test_a_link_shows_the_same_in_another_session(browser: Browser, app: str, page: Page) -> None:
    """Calibration, line, pins, weights and rows: the same figures and the same map, to the pixel."""
    page.mouse.click(*at_cell(page, 0, 1))
    page.get_by_role("button", name="Protect layer 2").click()
    page.get_by_role("button", name="Layer 3", exact=True).click()
    dragged(page, 0.8, 0.35, 6)
    page.keyboard.press("Escape")
    dragged(page, 0.8, 0.64, 6)
    expect_link(page, "threshold", f"{line(page):g}")
    expect_link(page, "drop", "0:1")
    settled(page)
    other = Visitor(browser, app)
    other.page.goto(page.url)
    settled(other.page)
    assert link(other.page) == link(page)
    assert figures(other.page) == figures(page)
    assert line(other.page) == line(page)
    page.mouse.move(5, 5)
    assert on_board(other.page, ".cells").evaluate(PICTURE) == on_board(page, ".cells").evaluate(PICTURE)
    other.context.close()


def test_back_is_undo(page: Page) -> None:
    """The browser's Back shows what its address says."""
    dragged(page, 0.8, 0.6, 4)
    expect_link(page, "threshold", f"{line(page):g}")
    page.go_back()
    expect_link(page, "threshold", "0.8")
    expect(on_board(page, ".rule")).to_have_attribute("aria-valuenow", "0.8")
    settled(page)


def test_what_removes_everything_is_said_and_undone(page: Page) -> None:
    """The board stays in use while the page says what to do."""
    page.get_by_role("slider", name="Threshold", exact=True).press("Home")
    expect(page.get_by_test_id("stAlert")).to_contain_text("the last one cannot go")
    expect(on_board(page, ".words")).to_contain_text("Every attention block would go")
    page.keyboard.press("Control+z")
    expect(page.get_by_role("button", name="Save the plan")).to_be_visible()
    expect_link(page, "threshold", "0.8")


def test_another_calibration_on_the_same_page(page: Page, small: Calibration) -> None:
    """It has its own choice, and the first one's comes back with it."""
    page.mouse.click(*at_cell(page, 1, 1))
    expect_link(page, "drop", "1:1")
    box = page.get_by_test_id("stSelectbox").get_by_role("combobox")
    for name, loss in (("bare", "unknown"), ("small", "nats/token")):
        box.click()
        page.get_by_role("option", name=name, exact=True).click()
        expect_link(page, "calibration", name)
        expect(on_board(page, "[data-figure=loss]")).to_contain_text(loss)
        expect_link(page, "drop", "1:1" if name == "small" else None)
    settled(page)
    pinned = first_state(small).model_copy(update={"pins": Pins(drop=((1, 1),))})
    check_figures(figures(page), pinned, small)


def test_without_a_sketch_the_loss_is_unknown(visitor: Visitor) -> None:
    """Sizes follow all the same, and layers cannot be chosen."""
    opened(visitor.page, visitor.address, "bare")
    loss = on_board(visitor.page, "[data-figure=loss]")
    expect(loss).to_contain_text("unknown")
    before = figures(visitor.page)
    dragged(visitor.page, 0.8, 0.4, 5)
    after = figures(visitor.page)
    assert after["parameters"] < before["parameters"]
    assert "loss" not in after
    layers = visitor.page.get_by_role("radio", name="Layers")
    expect(layers).to_be_disabled()
    assert "loss sketch" in (layers.get_attribute("title") or "")


def test_a_finger_moves_the_line(browser: Browser, app: str) -> None:
    """Touch does what the mouse does."""
    context = browser.new_context(viewport={"width": 900, "height": 1200}, has_touch=True)
    page = context.new_page()
    opened(page, app, "small")
    plot = on_board(page, ".plot").bounding_box()
    assert plot
    page.touchscreen.tap(plot["x"] + plot["width"] * 0.5 / 1.01, plot["y"] + 50)
    settled(page)
    assert line(page) == pytest.approx(0.5, abs=0.003)
    expect_link(page, "threshold", f"{line(page):g}")
    page.touchscreen.tap(*at_cell(page, 1, 1))
    expect_link(page, "drop", "1:1")
    context.close()


def test_the_board_fits(visitor: Visitor) -> None:
    """Nothing is wider than the window, the figures stand over the map where it is narrow; pictures to look at."""
    for name in ("small", name_of(LARGE[1])):
        opened(visitor.page, visitor.address, name)
        for look in visitor.looks():
            boxes = [on_board(visitor.page, selector).bounding_box() for selector in (".cells", ".figures", "")]
            cells, shown, whole = (box or {"x": 0, "y": 0, "width": 0} for box in boxes)
            assert whole["x"] <= min(cells["x"], shown["x"])
            assert max(box["x"] + box["width"] for box in (cells, shown)) <= whole["x"] + whole["width"] + 1
            assert (shown["y"] < cells["y"]) == look.endswith("900")
            visitor.picture(f"board-{name}-{look}")


@pytest.mark.parametrize("shape", LARGE)
def test_large_models_follow_every_move(visitor: Visitor, shape: Shape) -> None:
    """A figure changes at each move of the mouse; the numbers it is made of travel once; nothing jumps on release."""
    page, received = visitor.page, list[int]()
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: received.append(len(frame))))
    seconds = opened(page, visitor.address, name_of(shape))
    sketch_bytes = 4 * 320 * shape.layers * (shape.heads + 2)
    assert sum(received) > sketch_bytes
    page.wait_for_timeout(1000)
    received.clear()
    on_board(page, ".scroll").evaluate("scroll => { scroll.scrollTop = 40 }")
    scrolled = on_board(page, ".scroll").evaluate("scroll => scroll.scrollTop")
    plot = on_board(page, ".plot").bounding_box()
    assert plot
    page.mouse.move(plot["x"] + plot["width"] * 0.9, plot["y"] + 50)
    page.mouse.down()
    seen = []
    for step in range(20):
        page.mouse.move(plot["x"] + plot["width"] * (0.78 - 0.02 * step), plot["y"] + 50)
        next_frame(page)
        seen.append(figures(page))
    page.mouse.up()
    settled(page)
    assert all(one["loss"] != other["loss"] for one, other in pairwise(seen))
    assert len({shown["parameters"] for shown in seen}) > 15
    drag = dragged(page, 0.9, 0.3, 60)
    print(f"\n{name_of(shape)}: {statistics.median(drag.work):.2f} ms of work per frame, shown after {seconds:.1f} s")
    assert len(drag.work) > 20
    assert sum(received) < sketch_bytes / 5
    assert on_board(page, ".scroll").evaluate("scroll => scroll.scrollTop") == scrolled
    expect(on_board(page, ".rule")).to_be_focused()
