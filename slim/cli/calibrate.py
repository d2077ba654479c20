"""Verbs that measure: calibrate, check."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from slim.cli.shared import (
    AsJson,
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
    parse_weights,
    print_json,
    rows_of,
)
from slim.models import bundled

if TYPE_CHECKING:
    from slim.calibration.check_record import CriterionCheck


@cli.command()
def calibrate(
    model: Annotated[str, typer.Option(help="bundled:smollm2-135m, a folder, a .gguf file or a Hub id")] = bundled.NAME,
    dataset: Annotated[str, typer.Option(help="bundled:briefs, bundled:triage, a file or a Hub id")] = "bundled:briefs",
    config: Config = None,
    split: TrainSplit = None,
    revision: Revision = None,
    template: Annotated[str | None, typer.Option(help="how rows become a prompt: summarisation, maths, chat …")] = None,
    columns: Columns = None,
    prompt: Prompt = None,
    samples: Annotated[int, typer.Option(help="rows to measure on")] = 32,
    max_length: Annotated[int, typer.Option(help="tokens of a row beyond which it is cut")] = 320,
    batch_size: Annotated[int, typer.Option(help="rows per forward")] = 4,
    positions: Annotated[Literal["all", "answer"], typer.Option(help="predictions that loss and KL count")] = "all",
    kl: Annotated[Literal["fisher", "exact", "none"], typer.Option(help="forecast or leave out each head")] = "fisher",
    draws: Annotated[int, typer.Option(help="random directions per row in the loss sketch")] = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="chooses the rows and the sketch's directions")] = 0,
    check: Annotated[
        bool, typer.Option(help="leave heads out to check every criterion, and correct the forecast")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="new run folder (default: in the workspace)")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure every head and block of a model on rows of a task."""
    from slim.calibration import calibrate as stage
    from slim.calibration import check as checking

    settings = stage.checked_settings(
        samples=samples,
        max_length=max_length,
        batch_size=batch_size,
        positions=positions,
        kl=kl,
        draws=draws,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    data = {
        "model": model,
        "dataset": dataset,
        **rows_of(config, split, revision, template, columns, prompt),
        "output": output,
    }
    with at_work("calibrate", **data, settings=settings.model_dump()) as progress:
        done = stage.calibrate(
            **data, settings=settings, progress=progress, tell=lambda work: err.print(work.sentence())
        )
        progress.made(done.path)
    if check:
        with at_work("check", calibration=done.path) as progress:
            done = checking.check(done, progress=progress)
            progress.made(done.path)
    if as_json:
        found = done.facts.model_dump(mode="json", exclude={"model": {"shapes"}}) | {"path": str(done.path)}
        print_json(found | ({"check": done.check.model_dump(mode="json")} if done.check else {}))
        return
    table = Table("metric", "unit", "lowest", "median", "highest", "prunable when", title="Per head")
    for name, values in done.level("head").items():
        facts = done.facts.metrics[name]
        low, middle, high = (f"{v:.4g}" for v in (values.min(), _median(values), values.max()))
        table.add_row(name, facts.unit, low, middle, high, "high" if facts.high_is_prunable else "low")
    out.print(table)
    data = done.facts.dataset
    cut = f"{data.truncated_rows} rows cut ({data.lost_tokens:,} tokens lost)"
    known = f", {done.facts.reused:.0%} of it known from earlier runs" if done.facts.reused else ""
    out.print(f"{data.rows} rows, {data.tokens:,} tokens, {cut}, {done.facts.seconds:.0f} s{known}.")
    for note in done.facts.notes:
        out.print(f"Note: {note}.")
    if done.check:
        out.print(_check_table(done.check))
    out.print(f"Calibration: {done.path}", soft_wrap=True)


@cli.command()
def check(
    calibration: Annotated[Path, typer.Argument(help="folder of a calibration")],
    weights: Annotated[str | None, typer.Option(help="of the composite, for instance kl_output=1,variance=0.5")] = None,
    rows: Annotated[int, typer.Option(min=1, help="rows to measure on, unseen ones where there are any")] = 6,
    heads: Annotated[int, typer.Option(min=3, help="heads to leave out one by one")] = 60,
    as_json: AsJson = False,
) -> None:
    """Leave heads out to see which criterion predicts real damage, and correct the forecast by it."""
    from slim.calibration import check as stage
    from slim.calibration.record import load_calibration

    options: dict[str, Any] = {
        "weights": parse_weights(weights) if weights else None,
        "rows": rows,
        "heads": heads,
    }
    with at_work("check", calibration=calibration, **options) as progress:
        done = stage.check(load_calibration(calibration), **options, progress=progress)
        progress.made(done.path)
    if done.check is None:
        raise RuntimeError("a check gives what it measured")
    if as_json:
        print_json(done.check.model_dump(mode="json"))
        return
    out.print(_check_table(done.check))


def _check_table(found: "CriterionCheck") -> Table:
    shares = [f"−{removal.share:.0%}" for removal in found.verdicts[0].removals]
    title = f"Perplexity without a criterion's first heads (all heads: {found.perplexity:.1f})"
    table = Table("criterion", "rank correlation", *shares, title=title)
    for verdict in found.verdicts:
        sure = f"{verdict.correlation:+.2f}" if verdict.correlation is not None else "unknown"
        if verdict.low is not None and verdict.high is not None:
            sure += f" [{verdict.low:+.2f}, {verdict.high:+.2f}]"
        table.add_row(verdict.criterion, sure, *(f"{removal.perplexity:,.1f}" for removal in verdict.removals))
    return table


def _median(values: Any) -> float:
    import numpy as np

    return float(np.median(values))
