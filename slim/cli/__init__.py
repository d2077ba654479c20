"""The command line: the pipeline's verbs, headless. Tables for people, `--json` for programs."""

import os
import sys
from typing import Annotated

import typer

from slim import __version__
from slim.cli import (  # noqa: F401  each adds its verbs
    app,
    calibrate,
    evaluate,
    export,
    jobs,
    judge,
    plan,
    prune,
    recover,
    report,
    runs,
)
from slim.cli.shared import cli, err, out
from slim.core.errors import Cancelled, SlimError

VERBS = (
    "calibrate",
    "check",
    "plan",
    "diff",
    "prune",
    "repair",
    "finetune",
    "evaluate",
    "judge",
    "report",
    "export",
    "push",
    "serve",
    "app",
)
"""The verbs in the order of the pipeline, as the help lists them."""
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Environment variables that silence libraries, so that the user gets one line. Libraries read them on import; calling
the libraries here instead would make `slim jobs` wait for these imports."""
cli.registered_commands.sort(key=lambda verb: VERBS.index(verb.name or getattr(verb.callback, "__name__", "")))


def _version(asked: bool) -> None:
    if asked:
        out.print(f"slim {__version__}", highlight=False)
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = (
        False
    ),
) -> None:
    """Shrink a language model for your task, and know the cost before you cut."""


def main() -> None:
    """Run the command line, and turn the errors that a user can meet into one line and an exit code."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        if cli(standalone_mode=False) == Cancelled.exit_code:  # typer returns this for Ctrl-C
            raise KeyboardInterrupt
    except SlimError as error:
        err.print(f"slim: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        err.print("slim: stopped.", style="red")
        sys.exit(Cancelled.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            err.print(f"slim: {error.format_message()}", style="red", markup=False)  # type: ignore[attr-defined]
            sys.exit(2)
        raise
