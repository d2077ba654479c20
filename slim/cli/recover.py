"""Verbs that win quality back: repair, finetune."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from slim.cli.shared import (
    AsJson,
    CheckpointFolder,
    Columns,
    Config,
    Device,
    Dtype,
    Prompt,
    Revision,
    TrainSplit,
    at_work,
    cli,
    err,
    out,
    print_json,
    rows_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slim.pruning.history import RecoveryStep


@cli.command()
def repair(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="checkpoint that Slim pruned")],
    dataset: Annotated[str | None, typer.Option(help="rows to repair by (default: the calibration's)")] = None,
    rows: Annotated[int, typer.Option(help="rows drawn: to fit, to choose and decide by and to tell")] = 128,
    batch_size: Annotated[int, typer.Option(help="rows that are in memory at once")] = 8,
    max_length: Annotated[int, typer.Option(help="tokens of a row beyond which it is cut")] = 320,
    positions: Annotated[Literal["all", "answer"], typer.Option(help="predictions that the figures count")] = "all",
    original: Annotated[
        str | None, typer.Option(help="model to repair towards (default: the one the checkpoint was cut from)")
    ] = None,
    config: Config = None,
    split: TrainSplit = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="chooses the rows")] = 0,
    output: CheckpointFolder = None,
    as_json: AsJson = False,
) -> None:
    """Fit what is left of a pruned checkpoint to what the original gave, without training."""
    from slim.recovery import repair as stage

    settings = stage.RepairSettings.checked(
        samples=rows, batch_size=batch_size, max_length=max_length, positions=positions, seed=seed, device=device
    )
    options: dict[str, Any] = {"source": folder, "dataset": dataset, "original": original, "output": output}
    options |= {"config": config, "split": split} if dataset else {}
    with at_work("repair", **options, settings=settings.model_dump()) as progress:
        made = stage.repair(
            **options, settings=settings, progress=progress, tell=lambda work: err.print(work.sentence())
        )
        progress.made(made)
    _tell(made, "Checkpoint", as_json)


@cli.command()
def finetune(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="checkpoint, or any model")],
    dataset: Annotated[str, typer.Option(help="bundled:briefs, bundled:triage, a file or a Hub id")] = "bundled:briefs",
    method: Annotated[
        Literal["lora", "kd", "local"],
        typer.Option(
            help="lora learns the rows' own tokens, kd what the original predicts there, local layer by layer what it "
            "has there"
        ),
    ] = "kd",
    steps: Annotated[int, typer.Option(help="steps of the optimiser; local: in each layer")] = 200,
    rows: Annotated[int, typer.Option(help="rows drawn: to learn from, to choose by and to tell")] = 640,
    batch_size: Annotated[int, typer.Option(help="rows of a step")] = 8,
    micro_batch: Annotated[int, typer.Option(help="rows that are in memory at once")] = 4,
    max_length: Annotated[int, typer.Option(help="tokens of a row beyond which it is cut")] = 256,
    positions: Annotated[
        Literal["all", "answer"], typer.Option(help="predictions that are learnt, and that the figures count")
    ] = "answer",
    weights: Annotated[Literal["adapter", "full"], typer.Option(help="LoRA, or all weights")] = "adapter",
    rank: Annotated[int, typer.Option(help="rank of the LoRA; 0 trains all weights")] = 16,
    learning_rate: Annotated[float, typer.Option(help="at its highest")] = 3e-4,
    temperature: Annotated[float, typer.Option(help="kd: at which distributions are compared")] = 1.0,
    task_weight: Annotated[float, typer.Option(help="kd: of the rows' own tokens beside the original's, 0 to 1")] = 0.0,
    evaluations: Annotated[int, typer.Option(help="looks at the validation rows; the state is saved at each")] = 8,
    patience: Annotated[int, typer.Option(help="looks without a better loss after which it stops")] = 3,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="less memory for a third more time")] = False,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="of matrix products; auto is the faster one here")
    ] = "auto",
    merge: Annotated[bool, typer.Option("--merge/--adapter", help="save the model, or the adapter alone")] = True,
    resume: Annotated[bool, typer.Option("--resume/--restart", help="go on where the same call was stopped")] = True,
    original: Annotated[
        str | None, typer.Option(help="model that teaches (default: the one the checkpoint was cut from)")
    ] = None,
    config: Config = None,
    split: TrainSplit = None,
    revision: Revision = None,
    template: Annotated[str | None, typer.Option(help="kind of task: summarisation, maths, classification …")] = None,
    columns: Columns = None,
    prompt: Prompt = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="chooses the rows, their order and the adapter's start")] = 0,
    output: CheckpointFolder = None,
    as_json: AsJson = False,
) -> None:
    """Train a checkpoint on its task, or on what the original predicts there, and save it where that helped."""
    from slim.recovery import finetune as stage

    settings = stage.TrainSettings.checked(
        steps=steps,
        samples=rows,
        batch_size=batch_size,
        micro_batch=micro_batch,
        max_length=max_length,
        positions=positions,
        weights="full" if rank == 0 else weights,
        **({"rank": rank} if rank else {}),
        learning_rate=learning_rate,
        temperature=temperature,
        task_weight=task_weight,
        evaluations=evaluations,
        patience=patience,
        checkpointing=checkpointing,
        precision=precision,
        merge=merge,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    options: dict[str, Any] = {
        "source": folder,
        "dataset": dataset,
        "method": method,
        "original": original,
        "output": output,
        **rows_of(config, split, revision, template, columns, prompt),
    }
    with at_work("finetune", **options, settings=settings.model_dump()) as progress:
        made = stage.finetune(
            **options,
            settings=settings,
            resume=resume,
            progress=progress,
            watch=progress.curve,
            tell=lambda work: err.print(work.sentence()),
        )
        progress.made(made)
    _tell(made, "Checkpoint" if merge else "Adapter", as_json)


def _tell(made: Path, kind: str, as_json: bool) -> None:
    """What the last step of recovery of `made` gave."""
    from slim.pruning.history import load_recovery

    step = load_recovery(made).steps[-1]
    if as_json:
        print_json(step.model_dump(mode="json") | {"path": str(made)})
        return
    out.print(figures([step]))
    out.print(f"{step.after.rows} rows that took no part in it, {step.after.predicted:,} predicted tokens.")
    for note in step.notes:
        out.print(f"Note: {note}.", soft_wrap=True)
    out.print(f"{kind}: {made}", soft_wrap=True)


def figures(steps: "Sequence[RecoveryStep]") -> Table:
    """How the model did before and after each step of recovery."""
    table = Table("step", "KL to the original, nats/token", "perplexity, times the original's", "applied")
    for step in steps:
        one, other = step.before, step.after
        table.add_row(
            step.method,
            f"{one.kl:.4f} → {other.kl:.4f}",
            f"{one.ratio:.3f}× → {other.ratio:.3f}×",
            "yes" if step.applied else "no: it made nothing better",
        )
    return table
