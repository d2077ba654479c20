"""Needs of the browser tier: a browser, Debian's package as root or else Playwright's download, and a served app."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
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


@contextmanager
def served(workspace: Path, options: tuple[str, ...] = (), port: int | None = None, **settings: str) -> Iterator[str]:
    """The address of the dashboard, served from the repository on a workspace, at a free port if none is given.

    `settings` are of its environment.
    """
    environment = {**os.environ, "SLIM_HOME": str(workspace), "SLIM_FOLDERS": tempfile.gettempdir(), **settings}
    root = Path(__file__).parent.parent
    with served_by([sys.executable, "-m", "slim"], root, environment, options, port) as address:
        yield address


@contextmanager
def served_by(
    slim: list[str],
    folder: Path,
    environment: Mapping[str, str],
    options: tuple[str, ...] = (),
    port: int | None = None,
) -> Iterator[str]:
    """The same by a command `slim` that is started in a folder, with no more in its environment than is given."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port or 0))
        port = free.getsockname()[1]
    command = [*slim, "app", "--no-browser", "--port", str(port), *options]
    server = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                with urlopen(f"{address}/_stcore/health", timeout=1):
                    break
            except (URLError, OSError):
                if server.poll() is not None:
                    raise RuntimeError("the app ended while it was starting") from None
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


if __name__ == "__main__":
    path = ensure_browser()
    print(f"Browser tests use {path}." if path else "No browser can be had here: the browser tests will be skipped.")
