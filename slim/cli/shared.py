"""Shared by the verbs: consoles, warnings and progress bars."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from slim.core.reporter import Reporter
from slim.jobs.foreground import R, T, foreground

cli = typer.Typer(
    name="slim",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out, err = Console(), Console(stderr=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print the record as JSON instead of a table.")]


def careful(said: str | None) -> None:
    """Print a warning on what a server does; nothing where `said` is empty."""
    if said:
        err.print(f"slim: careful, {said}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_json(value: dict[str, Any]) -> None:
    out.print_json(json.dumps(value))


class _Terminal(Reporter):
    """Prints estimates and how rows were read as lines, and progress as a bar. Notes are in the record, which is shown
    at the end."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.task = bar, bar.add_task("Starting", total=None)

    def estimate(self, sentence: str) -> None:
        err.print(sentence, markup=False)

    def rows(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            err.print(f"{sentence}.", markup=False, highlight=False, soft_wrap=True)

    def progress(self, done: float, total: float, message: str) -> None:
        self.bar.update(self.task, completed=done, total=total, description=message)


@contextmanager
def terminal() -> Iterator[Reporter]:
    """Inside the block, the reporter prints to the terminal."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        yield _Terminal(bar)


def at_work(request: R, stage: Callable[[R, Reporter], T]) -> T:
    """Return the stage's result for a request, run as a job of this command with a progress bar."""
    with terminal() as reporter:
        return foreground(request, stage, reporter)
