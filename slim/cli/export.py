"""Verbs that hand a checkpoint on: export, push, serve."""

import atexit
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from slim.cli.shared import AsJson, at_work, careful, cli, out, print_json, progress_bar
from slim.core.errors import Cancelled
from slim.core.network import MODEL, warning

Model = Annotated[str, typer.Argument(metavar="FOLDER", help="checkpoint folder, or any other model")]


@cli.command()
def export(
    folder: Model,
    output: Annotated[Path, typer.Option(help="new file")],
    format: Annotated[Literal["gguf"], typer.Option(help="gguf is what llama.cpp runs")] = "gguf",
    type: Annotated[
        Literal["auto", "f32", "f16", "bf16", "q8_0"], typer.Option(help="number format; auto is the stored one")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as one file for llama.cpp."""
    from slim.serving import gguf as stage

    options: dict[str, Any] = {"source": folder, "output": output, "number_format": type}
    with at_work("export", **options) as progress:
        made = stage.export_gguf(**options, progress=progress)
        progress.made(made.path)
    if as_json:
        told = {"path": str(made.path), "format": format, "architecture": made.architecture}
        print_json(told | {"type": made.number_format, "bytes": made.bytes, "notes": list(made.notes)})
        return
    table = Table("format", "architecture", "numbers", "size")
    table.add_row(format, made.architecture, made.number_format, f"{made.bytes / 1e6:,.1f} MB")
    out.print(table)
    for note in made.notes:
        out.print(f"Note: {note}.", style="yellow")
    out.print(f"File: {made.path}", soft_wrap=True)


@cli.command()
def push(
    folder: Annotated[Path, typer.Argument(help="checkpoint folder")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hub")],
    yes: Annotated[bool, typer.Option("--yes", help="send it; without this nothing leaves the machine")] = False,
    private: Annotated[bool, typer.Option("--private", help="a repository that only you see, if it is new")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what would go to a model Hub, and with --yes send it."""
    from slim.serving import push as stage

    upload = stage.plan_upload(folder, repository, private)
    told = {"repository": repository, "hub": upload.hub, "private": private, "bytes": upload.bytes}
    told |= {"files": dict(upload.files)}
    if not yes:
        if as_json:
            print_json(told | {"pushed": False, "url": None})
            return
        table = Table("file", "bytes")
        for name, size in (*upload.files, ("together", upload.bytes)):
            table.add_row(name, f"{size:,}")
        out.print(table)
        seen = "private, if it is new" if private else "open to everyone, if it is new"
        out.print(f"These would go to {upload.hub}/{repository} ({seen}).", soft_wrap=True)
        out.print("Nothing was sent. Add --yes to send them.")
        return
    with at_work("push", folder=folder, repository=repository, private=private) as progress:
        url = stage.push(upload, progress)
        progress.made(url)
    if as_json:
        print_json(told | {"pushed": True, "url": url})
        return
    out.print(f"{len(upload.files)} files, {upload.bytes / 1e6:,.1f} MB sent.")
    out.print(f"Model: {url}", soft_wrap=True)


def _leave() -> None:
    """Ends the process at once: an answer under way still computes in a thread, which Python's own end would abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(Cancelled.exit_code)


@cli.command()
def serve(
    folder: Model = "bundled:smollm2-135m",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0 is any free one")] = 8000,
    host: Annotated[str, typer.Option(help="address to listen at; 127.0.0.1 is for this machine alone")] = "127.0.0.1",
    device: str = "auto",
    dtype: Annotated[Literal["auto", "float32", "float64", "bfloat16", "float16"], typer.Option()] = "auto",
    as_json: AsJson = False,
) -> None:
    """Serve a model with the OpenAI API until Ctrl-C."""
    from slim.models.load import load_model
    from slim.serving import server as stage

    name = stage.name_of(folder)

    def ready(url: str) -> None:
        if as_json:
            print_json({"url": url, "model": name})
        else:
            out.print(f"{name} answers at {url} (Ctrl-C stops it).", soft_wrap=True)

    with stage.listen(host, port) as place:  # before the model is loaded, which takes longer
        careful(warning(host, MODEL, "put something in front of it that asks who they are"))
        with progress_bar() as progress:
            loaded = load_model(folder, device=device, dtype=dtype, progress=progress)
        try:
            stage.serve(loaded, name, place, ready)
        finally:
            atexit.register(_leave)
