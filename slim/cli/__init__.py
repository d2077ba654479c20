"""The command line: the pipeline's verbs, headless. Tables for people, `--json` for programs."""

import sys

import typer

from slim.cli import (  # noqa: F401  each adds its verbs
    cut,
    dashboard,
    evaluate,
    jobs,
    judge,
    measure,
    recover,
    report,
    runs,
    share,
)
from slim.cli.shared import app, err
from slim.errors import Cancelled, SlimError

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
"""In the order of the pipeline, which is that of the help."""
app.registered_commands.sort(key=lambda verb: VERBS.index(verb.name or getattr(verb.callback, "__name__", "")))


def main() -> None:
    """Entry point: turns the errors a user can meet into one line and an exit code."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as hf_logging

    hub_logging.set_verbosity_error()  # its retries are not the one line that a person gets
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        if app(standalone_mode=False) == Cancelled.exit_code:  # how typer tells of Ctrl-C
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
