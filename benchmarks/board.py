"""Time of a frame of the threshold board while its line is dragged, in the real page and a real browser.

`python -m benchmarks.board` serves the dashboard on made-up calibrations of large models. `work` is what the page
computes and paints per frame, `between frames` what the user sees. Prints a Markdown table.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from benchmarks.measure import machine, table
from benchmarks.planner import SHAPES, Shape, made_up
from slim.calibration.criteria import CRITERIA
from slim.calibration.facts import CriterionFacts
from slim.calibration.record import Calibration, save_calibration
from slim.core import workspace
from slim.core.statistics import Estimate
from slim.models.units import UNITS, UnitName
from tests.browser_setup import FLAGS, ensure_browser, served

WATCH = """() => {
  window.boardWork = []; window.boardFrames = [];
  document.addEventListener("board-frame", (event) => window.boardWork.push(event.detail));
  const stamp = (now) => { window.boardFrames.push(now); requestAnimationFrame(stamp); };
  requestAnimationFrame(stamp);
}"""


@dataclass(frozen=True)
class Drag:
    """Milliseconds of every frame of a drag, and how many times the mouse moved."""

    work: list[float]
    between: list[float]
    moves: int


def name_of(shape: Shape) -> str:
    return f"{shape.layers}-{shape.heads}-{shape.kv_heads}"


def save_made_up(shape: Shape, output: Path) -> Calibration:
    """A saved calibration of a llama of this shape, every figure of it made up."""
    found = made_up(shape)
    sketch = found.sketch
    if sketch is None:
        raise ValueError("the planner's calibrations have a sketch")
    rng, chosen = np.random.default_rng(1), sketch.fold(0)
    variance = rng.lognormal(size=(shape.layers, shape.heads))
    group, facts = shape.heads // shape.kv_heads, found.facts.model
    estimates: dict[str, dict[UnitName, Estimate]] = {
        "kl_output": {unit: chosen.of_unit(UNITS[unit], facts) for unit in ("head", "group")},
        "variance": {"head": Estimate.unsure(variance)},
    }
    estimates["kl_output"]["block"] = Estimate.unsure(chosen.single().value[:, -2])
    grouped = variance.reshape(shape.layers, -1, group).sum(-1)
    estimates["variance"] |= {"group": Estimate.unsure(grouped), "block": Estimate.unsure(grouped.sum(-1))}
    metrics = {
        name: CriterionFacts(
            unit=CRITERIA[name].unit,
            high_is_prunable=CRITERIA[name].high_is_prunable,
            levels=tuple(levels),
            method="made up",
            rows=1,
            positions=1,
        )
        for name, levels in estimates.items()
    }
    facts = found.facts.model_copy(update={"metrics": metrics})
    return save_calibration(replace(found, facts=facts, estimates=estimates), output)


def opened(page: Page, address: str, name: str) -> float:
    """Seconds from asking for the page to the figures on the board."""
    began = time.perf_counter()
    page.goto(f"{address}/prune?calibration={name}")
    page.locator(".board[data-source=plan]").wait_for(timeout=60_000)
    return time.perf_counter() - began


def dragged(page: Page, start: float, end: float, moves: int) -> Drag:
    """The line dragged from one score to another with the mouse held down, and let go."""
    plot = page.locator(".board .plot").bounding_box()
    if plot is None:
        raise ValueError("the board is not shown")
    x = [plot["x"] + plot["width"] * score / 1.01 for score in np.linspace(start, end, moves)]
    y = plot["y"] + plot["height"] / 2
    page.evaluate(WATCH)
    page.mouse.move(x[0], y)
    page.mouse.down()
    for place in x:
        page.mouse.move(place, y)
    work, stamps = page.evaluate("[window.boardWork, window.boardFrames]")
    page.mouse.up()
    page.locator(".board[data-source=plan]").wait_for(timeout=60_000)
    return Drag(work, np.diff(stamps).tolist(), moves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=240)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.environ["SLIM_HOME"] = folder
        for shape in SHAPES:
            save_made_up(shape, workspace.subfolder("calibrations") / name_of(shape))
        browser = playwright.chromium.launch(executable_path=ensure_browser(), args=FLAGS)
        with served(Path(folder)) as address:
            for shape in SHAPES:
                page = browser.new_page(viewport={"width": 1440, "height": 1000})
                opened(page, address, name_of(shape))
                seconds = opened(page, address, name_of(shape))
                drag = dragged(page, 0.95, 0.3, options.moves)
                rows.append(
                    [
                        f"{shape.layers} × {shape.heads}, {shape.kv_heads} KV",
                        f"{statistics.median(drag.work):.2f}",
                        f"{np.quantile(drag.work, 0.95):.2f}",
                        f"{statistics.median(drag.between):.1f}",
                        f"{np.quantile(drag.between, 0.95):.1f}",
                        f"{seconds:.1f}",
                    ]
                )
                page.close()
        browser.close()
    print(f"\n{options.moves} moves of the mouse from 0.95 to 0.3. {machine()}\n")
    head = [
        "layers × heads",
        "work, ms",
        "95% within",
        "between frames, ms",
        "95% within",
        "page to figures, s",
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
