"""The verb that opens the dashboard."""

import os
import subprocess
import sys
import threading
import time
import webbrowser
from pathlib import Path
from typing import Annotated
from urllib.error import URLError
from urllib.request import urlopen

import typer

from slim.cli.shared import careful, cli, out
from slim.core.errors import InputError, SlimError
from slim.core.network import DASHBOARD, warning


@cli.command(name="app")
def dashboard(
    port: Annotated[int, typer.Option(help="port on this machine")] = 8501,
    host: Annotated[str, typer.Option(help="address to listen at; 127.0.0.1 is for this machine alone")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="open it in a browser")] = True,
) -> None:
    """Open the dashboard."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / "app.py").is_file():
        raise InputError(f"the dashboard's pages are not beside the package in {str(root)!r}: run it from a clone.")
    url = f"http://localhost:{port}"
    host = "127.0.0.1" if host == "localhost" else host
    careful(warning(host, DASHBOARD, "set up a login before others can (docs/safety.md)"))
    if browser and (
        sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        threading.Thread(target=_open_when_up, args=(url,), daemon=True).start()
    out.print(f"Slim is opening at {url} (Ctrl-C stops it).")
    command = [sys.executable, "-m", "streamlit", "run", "app.py"]
    command += ["--server.port", str(port), "--server.address", host]
    code = subprocess.call(command, cwd=root, env={**os.environ, "SLIM_HOME": _home()})
    if code:
        raise SlimError(f"the dashboard stopped with code {code}: is port {port} taken? Try another with --port.")


def _home() -> str:
    from slim.core import workspace

    return str(workspace.home())


def _open_when_up(url: str) -> None:
    for _ in range(100):
        time.sleep(0.3)
        try:
            with urlopen(f"{url}/_stcore/health", timeout=1):  # noqa: S310  the app itself
                break
        except (URLError, OSError):
            continue
    webbrowser.open(url)
