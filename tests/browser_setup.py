"""Brings a browser for the browser tier where there is none: Debian's package as root, else Playwright's download."""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("chromium", "fonts-noto-core")


def system_browser() -> str | None:
    """The path of an installed Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def playwright_browser() -> str | None:
    """The path of the Chromium that Playwright downloaded, or None."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if os.path.exists(path) else None


def _quietly(*command: str) -> bool:
    try:
        return (
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0
        )
    except OSError:
        return False


def ensure_browser() -> str | None:
    """A browser's path, installed if need be and possible; None where none can be had."""
    found = system_browser() or playwright_browser()
    if found:
        return found
    print("No browser is installed; getting Chromium for the browser tests ...", flush=True)
    if shutil.which("apt-get") and os.geteuid() == 0:
        _quietly("apt-get", "update", "-qq")
        _quietly("apt-get", "install", "-y", "-qq", *PACKAGES)
    if not system_browser():
        _quietly(sys.executable, "-m", "playwright", "install", "chromium")
    return system_browser() or playwright_browser()


if __name__ == "__main__":
    path = ensure_browser()
    print(f"Browser tests use {path}." if path else "No browser can be had here: the browser tests will be skipped.")
