"""The real app in a real browser: go to a page, click, type, and take pictures of it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlparse

from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect

Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
WIDTHS = (1440, 900)
ARTIFACTS = os.environ.get("SLIM_ARTIFACTS")
"""The folder for pictures to look at; without one none is taken, and pages are laid out in light alone."""
PATIENCE = 180_000
"""Milliseconds that a browser waits for anything, on cores that other tests keep busy: nothing is said about time."""
PAGES = {
    "": "Make a language model smaller, knowing the cost first",
    "calibrate": "Calibrate",
    "explore": "Explore",
    "prune": "Prune",
    "recover": "Recover",
    "evaluate": "Evaluate",
    "compare": "Compare",
    "runs": "Runs",
}


class Visitor:
    """A visitor of a page who counts their clicks and whose browser notes where it connects to."""

    def __init__(self, browser: Browser, address: str, scheme: Scheme = "light") -> None:
        self.context = browser.new_context(viewport={"width": WIDTHS[0], "height": 1000}, color_scheme=scheme)
        self.context.set_default_timeout(PATIENCE)
        self.page: Page = self.context.new_page()
        self.address, self.clicks, self.hosts = address, 0, set[str]()
        self.page.on("request", lambda request: self.hosts.add(urlparse(request.url).hostname or ""))

    def open(self, name: str = "") -> None:
        self.page.goto(f"{self.address}/{name}")
        expect(self.page.get_by_role("heading", level=1, name=PAGES[name.partition("?")[0]])).to_be_visible()

    def click(self, target: Locator) -> None:
        self.clicks += 1
        target.click()

    def settle(self) -> None:
        """Waits until no script runs and no chart is missing."""
        self.page.wait_for_timeout(200)  # until a script has begun that answers what was done
        expect(self.page.locator("[data-test-script-state=notRunning]")).to_have_count(1)
        expect(self.page.get_by_test_id("stSkeleton")).to_have_count(0)
        self.page.wait_for_timeout(200)

    def looks(self, *schemes: Scheme) -> Iterator[str]:
        """The page in light and dark, wide and narrow, by the names of its looks; never wider than the window."""
        for scheme in schemes or (SCHEMES if ARTIFACTS else SCHEMES[:1]):
            self.page.emulate_media(color_scheme=scheme)
            for width in WIDTHS:
                self.page.set_viewport_size({"width": width, "height": 1000})
                self.page.wait_for_timeout(300)  # until the script has begun that draws it anew
                self.settle()
                overflow = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                assert overflow <= 0, f"{overflow} pixels too wide in {scheme} at {width}"
                yield f"{scheme}-{width}"

    def picture(self, name: str) -> None:
        """Takes one of the whole page, where pictures are asked for."""
        if not ARTIFACTS:
            return
        size: ViewportSize = self.page.viewport_size or {"width": 1440, "height": 1000}
        height = self.page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
        self.page.set_viewport_size({"width": size["width"], "height": min(max(size["height"], height), 4000)})
        self.page.wait_for_timeout(500)
        take_picture(self.page, name)
        self.page.set_viewport_size(size)


def take_picture(page: Page, name: str, whole: bool = False) -> None:
    """Takes one of what is seen, or of the whole page, where pictures are asked for."""
    if ARTIFACTS:
        page.screenshot(path=Path(ARTIFACTS) / "screenshots" / f"{name}.png", full_page=whole)


def chart(page: Page, title: str) -> Locator:
    return page.locator(".js-plotly-plot", has_text=title)


def fill(visitor: Visitor, label: str, value: int) -> None:
    box = visitor.page.get_by_role("spinbutton", name=label, exact=True)
    box.fill(str(value))
    box.press("Enter")
    visitor.settle()
