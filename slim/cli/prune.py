"""The verb that executes a plan: prune."""

from pathlib import Path
from typing import Annotated, Any

import typer

from slim.cli.shared import (
    AsJson,
    CheckpointFolder,
    Config,
    Device,
    TrainSplit,
    at_work,
    cli,
    out,
    print_json,
)
from slim.planning.files import load_plan


@cli.command()
def prune(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan file")],
    repair: Annotated[
        bool, typer.Option("--repair/--no-repair", help="fit what is left to what the original gave; no training")
    ] = True,
    rounds: Annotated[int, typer.Option(help="go there in so many rounds, each measured, cut and repaired")] = 1,
    dataset: Annotated[str | None, typer.Option(help="rows of the repair (default: the calibration's)")] = None,
    config: Config = None,
    split: TrainSplit = None,
    rows: Annotated[int, typer.Option(help="rows drawn for the repair and its figures")] = 128,
    max_length: Annotated[int, typer.Option(help="tokens of such a row beyond which it is cut")] = 320,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="chooses the rows")] = 0,
    output: CheckpointFolder = None,
    as_json: AsJson = False,
) -> None:
    """Execute a plan: remove the weights, repair what is left, and save a checkpoint."""
    from slim.cli.recover import figures
    from slim.pruning.checkpoint import recipe
    from slim.pruning.history import load_recovery
    from slim.recovery.iterative import execute_plan
    from slim.recovery.repair import RepairSettings

    made = load_plan(plan_file)
    settings = RepairSettings.checked(samples=rows, max_length=max_length, device=device, seed=seed)
    data = {"dataset": dataset, "config": config, "split": split} if dataset else {}
    options: dict[str, Any] = {"repaired": repair, "rounds": rounds, "output": output, **data}
    with at_work("prune", plan=plan_file, **options, settings=settings.model_dump()) as progress:
        folder = execute_plan(made, **options, settings=settings, progress=progress)
        progress.made(folder)
    made = recipe(folder)  # rounds plan anew
    steps = load_recovery(folder).steps
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if as_json:
        found = {"path": str(folder), "parameters": made.after.parameters, "bytes_on_disk": size}
        print_json(found | {"recovery": [step.model_dump(mode="json", exclude={"settings"}) for step in steps]})
        return
    out.print(f"{made.before.parameters:,} → {made.after.parameters:,} parameters, {size / 1e6:,.1f} MB on disk.")
    if steps:
        out.print(figures(steps))
    out.print(f"Checkpoint: {folder}", soft_wrap=True)
