"""What the verbs share: where they print, how they show progress, how they read `name=value` options."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from slim.core.errors import InputError
from slim.core.progress import Progress
from slim.jobs.foreground import foreground
from slim.jobs.reporter import JobReporter

cli = typer.Typer(
    name="slim",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out, err = Console(), Console(stderr=True)
DIGITS = 9
"""Of the number of a layer or head."""
AsJson = Annotated[bool, typer.Option("--json", help="Print the record as JSON instead of a table.")]
Config = Annotated[str | None, typer.Option(help="configuration of a Hub dataset")]
TrainSplit = Annotated[str | None, typer.Option(help="split to draw rows from (default: train)")]
Revision = Annotated[str | None, typer.Option(help="revision of a Hub dataset")]
Columns = Annotated[str | None, typer.Option(help="for instance question=ask,answer=reply")]
Prompt = Annotated[str | None, typer.Option(help="wording of the prompt, with {column} in it")]
CheckpointFolder = Annotated[Path | None, typer.Option(help="new checkpoint folder (default: in the workspace)")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Dtype = Annotated[Literal["auto", "float32", "float64", "bfloat16"], typer.Option(help="number format")]


def parse_weights(text: str) -> dict[str, float]:
    """`kl_output=1,entropy_norm=0.5` as a mapping. Raises InputError for anything else."""
    return parse_numbers("weights", text, "metric=number: write kl_output=1,entropy_norm=0.5")


def parse_numbers(option: str, text: str, form: str) -> dict[str, float]:
    """`name=number,name=number` as a mapping. Raises InputError, which says the `form`, for anything else."""
    try:
        found = {name: float(value) for name, value in parse_pairs(option, text).items()}
    except (InputError, ValueError):
        raise InputError(f"{option}: {text!r} is not of the form {form}.") from None
    if odd := [name for name, value in found.items() if not isfinite(value)]:
        raise InputError(f"{option}: {odd[0]} is not a finite number: {form}.")
    return found


def parse_places(option: str, text: str | None) -> tuple[tuple[int, int], ...]:
    """`3:1,7` as (3, 1) and (7, 0). Raises InputError for anything else."""
    found = []
    for part in text.split(",") if text else ():
        layer, _, index = part.strip().partition(":")
        if not all(number.isdecimal() and len(number) <= DIGITS for number in (layer, index or "0")):
            raise InputError(f"{option}: {part!r} is not of the form layer:number: write {option} as 3:1,7:0.")
        found.append((int(layer), int(index or 0)))
    return tuple(found)


def parse_pairs(option: str, text: str) -> dict[str, str]:
    """`name=value,name=value` as a mapping. Raises InputError for anything else."""
    pairs = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise InputError(
                f"{option}: {part!r} is not of the form name=value: write {option} as name=value,name=value."
            )
        pairs[name] = value
    return pairs


def rows_of(
    config: str | None,
    split: str | None,
    revision: str | None,
    template: str | None,
    columns: str | None,
    prompt: str | None,
) -> dict[str, Any]:
    """Which rows and how they are read, as every stage takes it. Raises InputError for columns that are no mapping."""
    return {
        "config": config,
        "split": split,
        "revision": revision,
        "template": template,
        "columns": parse_pairs("columns", columns) if columns else None,
        "prompt": prompt,
    }


def careful(said: str | None) -> None:
    """Warns of what a server would give to others; nothing where only this machine reaches it."""
    if said:
        err.print(f"slim: careful, {said}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_json(value: dict[str, Any]) -> None:
    out.print_json(json.dumps(value))


@contextmanager
def progress_bar() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("Starting", total=None)

        def progress(done: float, total: float, message: str) -> None:
            bar.update(task, completed=done, total=total, description=message)

        yield progress


@contextmanager
def at_work(kind: str, **arguments: Any) -> Iterator[JobReporter]:
    """The block as a job of this command, with a bar for its progress. `arguments` are what a worker would be given."""
    with (
        progress_bar() as bar,
        foreground(kind, arguments, lambda words: err.print(words, markup=False), bar) as teller,
    ):
        yield teller
