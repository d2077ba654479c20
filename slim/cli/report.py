"""The verb that writes a run as one file: report."""

from pathlib import Path
from typing import Annotated

import typer

from slim.cli.shared import AsJson, cli, out, print_json


@cli.command()
def report(
    run: Annotated[Path, typer.Argument(help="a calibration, plan, checkpoint, evaluation or judgement")],
    output: Annotated[Path, typer.Option(help="an .html file, or .md for a model card")],
    as_json: AsJson = False,
) -> None:
    """Write a run with its ancestors and results as one page that needs no network, or as a model card."""
    from slim.runs.report.write import write

    path = write(run, output)
    size = path.stat().st_size
    if as_json:
        print_json({"path": str(path), "bytes": size})
        return
    out.print(f"Report: {path} ({size / 1e6:,.2f} MB)", soft_wrap=True)
