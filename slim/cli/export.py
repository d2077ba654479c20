"""Verbs that hand a checkpoint on: export, push, serve."""

import atexit
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from slim.cli.options import command
from slim.cli.shared import AsJson, at_work, careful, cli, out, print_json, terminal
from slim.core.errors import Cancelled
from slim.core.network import MODEL, warning
from slim.serving.request import ExportRequest, PushRequest

Model = Annotated[str, typer.Argument(metavar="FOLDER", help="checkpoint folder, or any other model")]


@command(ExportRequest)
def export(request: ExportRequest, as_json: AsJson = False) -> None:
    from slim.serving import export as stage

    made, format = at_work(request, stage.export), request.format
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


@command(PushRequest)
def push(
    request: PushRequest,
    yes: Annotated[bool, typer.Option("--yes", help="send the files; without this nothing leaves the machine")] = False,
    as_json: AsJson = False,
) -> None:
    from slim.serving import push as stage

    repository, private = request.repository, request.private
    upload = stage.plan_upload(Path(request.folder), repository, private)
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
    url = at_work(request, stage.push)
    if as_json:
        print_json(told | {"pushed": True, "url": url})
        return
    out.print(f"{len(upload.files)} files, {upload.bytes / 1e6:,.1f} MB sent.")
    out.print(f"Model: {url}", soft_wrap=True)


def _leave() -> None:
    """End the process at once: a running answer computes in a thread, which would make Python's own exit abort."""
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
    from slim.models.stops import end_notes
    from slim.serving import server as stage

    name = stage.name_of(folder)

    def ready(url: str) -> None:
        if as_json:
            print_json({"url": url, "model": name})
        else:
            out.print(f"{name} answers at {url} (Ctrl-C stops it).", soft_wrap=True)

    with stage.listen(host, port) as place:  # before the model is loaded, which takes longer
        careful(warning(host, MODEL, "put a proxy that authenticates users in front of it"))
        with terminal() as reporter:
            loaded = load_model(folder, device=device, dtype=dtype, reporter=reporter)
        for note in end_notes(loaded.stops):
            careful(note)
        try:
            stage.serve(loaded, name, place, ready)
        finally:
            atexit.register(_leave)
