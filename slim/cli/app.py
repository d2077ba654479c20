"""The verb that opens the dashboard."""

import os
import subprocess
import sys
import threading
import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from slim.cli.shared import careful, cli, out
from slim.core import launch
from slim.core.errors import InputError, SlimError
from slim.core.network import DASHBOARD, warning


@cli.command(name="app")
def dashboard(
    port: Annotated[int, typer.Option(help="port on this machine")] = 8501,
    host: Annotated[str, typer.Option(help="address to listen at; 127.0.0.1 is for this machine alone")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="open the dashboard in a browser")] = True,
) -> None:
    """Open the dashboard."""
    script = _script()
    url = f"http://localhost:{port}"
    host = "127.0.0.1" if host == "localhost" else host
    careful(warning(host, DASHBOARD, "set up a login before others can (docs/safety.md)"))
    if browser and (
        sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        threading.Thread(target=_open_when_up, args=(url,), daemon=True).start()
    out.print(f"Slim is opening at {url} (Ctrl-C stops it).")
    options = ["--server.port", str(port), "--server.address", host]
    _keep_warm()
    command = launch.module_command("streamlit", "run", str(script), *options)
    code = subprocess.call(command, env=launch.environment(SLIM_HOME=_home()))
    if code:
        raise SlimError(
            f"port={port}: the dashboard stopped with code {code}; choose another port if this one is taken."
        )


def _script() -> Path:
    """Return the dashboard's app.py: inside the package where a wheel was installed, beside it in a clone.

    Streamlit takes the settings in the `.streamlit` folder beside it, whichever folder it is started in.
    """
    for folder in (launch.ROOT / "slim" / "dashboard", launch.ROOT):
        if (folder / "app.py").is_file():
            return folder / "app.py"
    raise InputError(f"dashboard={str(launch.ROOT)!r}: app.py is not there; install Slim from its wheel or a clone.")


def _keep_warm() -> None:
    from slim.jobs.forking import keep_warm

    keep_warm()


def _home() -> str:
    from slim.core import workspace

    return str(workspace.home())


def _open_when_up(url: str) -> None:
    from urllib.request import urlopen

    for _ in range(100):
        time.sleep(0.3)
        try:
            with urlopen(f"{url}/_stcore/health", timeout=1):  # noqa: S310  the app itself
                break
        except OSError:
            continue
    webbrowser.open(url)
