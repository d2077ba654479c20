"""The verb that lets a judge compare two models' answers."""

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
    at_work,
    cli,
    err,
    out,
    print_json,
    rows_of,
)
from slim.core.errors import InputError, SlimError
from slim.models import bundled

if TYPE_CHECKING:
    from slim.judging.record import Judgment


@cli.command()
def judge(
    pruned: Annotated[str, typer.Option(help="checkpoint folder, or any other model")],
    original: Annotated[
        str, typer.Option(help="bundled:smollm2-135m, a folder, a .gguf file or a Hub id")
    ] = bundled.NAME,
    dataset: Annotated[str, typer.Option(help="bundled:briefs, bundled:triage, a file or a Hub id")] = "bundled:briefs",
    config: Config = None,
    split: Annotated[str | None, typer.Option(help="split to draw rows from (default: test)")] = None,
    revision: Revision = None,
    template: Annotated[str | None, typer.Option(help="how rows become a prompt: summarisation, maths, chat …")] = None,
    columns: Columns = None,
    prompt: Prompt = None,
    samples: Annotated[int, typer.Option(help="rows to compare on")] = 50,
    max_new_tokens: Annotated[int, typer.Option(help="tokens at which an answer is cut")] = 128,
    batch_size: Annotated[int, typer.Option(help="rows that are answered at a time")] = 16,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    endpoint: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible URL; its key is read from SLIM_JUDGE_KEY or OPENAI_API_KEY"),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="the judge's name (default: the endpoint's only one)")] = None,
    local_judge: Annotated[
        str | None, typer.Option(help="model that is served on this machine for the run, in place of an endpoint")
    ] = None,
    rubric: Annotated[Path | None, typer.Option(help="text file with the criteria")] = None,
    measure: Annotated[
        Literal["auto", "rouge-l", "exact"], typer.Option(help="of the reference judge, where there is no other")
    ] = "auto",
    min_coverage: Annotated[float, typer.Option(help="share of the pairs that must be judged to name a winner")] = 0.8,
    concurrency: Annotated[int | None, typer.Option(help="calls at a time (default: 16, a local judge 1)")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="seconds that one try of a call may take (default: 60, a local judge 600)")
    ] = None,
    retries: Annotated[int, typer.Option(help="of a call that failed")] = 5,
    max_tokens: Annotated[int, typer.Option(help="of a judge's answer")] = 512,
    price_in: Annotated[float | None, typer.Option(help="of a million tokens that the judge reads")] = None,
    price_out: Annotated[float | None, typer.Option(help="of a million tokens that it writes")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="chooses the rows, the draws and the resamples")] = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file (default: in the workspace)")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the answers of two models: by a judge at an endpoint or on this machine, or with the dataset's own."""
    from slim.judging import judge as stage
    from slim.judging.endpoint import base_url

    settings = stage.AnswerSettings.checked(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
    )
    asking = {"concurrency": concurrency, "timeout": timeout, "retries": retries, "max_tokens": max_tokens}
    asking = {name: value for name, value in asking.items() if value is not None}
    options: dict[str, Any] = {
        "original": original,
        "pruned": pruned,
        "dataset": dataset,
        **rows_of(config, split, revision, template, columns, prompt),
        "samples": samples,
        "endpoint": None if endpoint is None else base_url(endpoint),  # which refuses a key, before it is written down
        "judge_model": judge_model,
        "local_judge": local_judge,
        "asking": asking,
        "rubric": _text(rubric),
        "measure": measure,
        "min_coverage": min_coverage,
        "prices": _prices(price_in, price_out),
        "device": device,
        "dtype": dtype,
        "output": output,
    }
    with at_work("judge", **options, settings=settings.model_dump()) as progress:
        found, path = stage.judge(**options, settings=settings, progress=progress, tell=err.print)
        progress.made(path)
    if as_json:
        print_json(found.model_dump(mode="json", exclude={"comparisons"}) | {"path": str(path)})
    else:
        _show(found, path)
    if found.figures.coverage < min_coverage:
        reason, count = max(found.figures.failures.items(), key=lambda item: item[1])
        raise SlimError(
            f"{found.figures.coverage:.0%} of the pairs were judged, less than min_coverage={min_coverage:g}, so no "
            f"winner is named ({count} pairs: {reason}): run it again, which asks only for what is missing."
        )


def _show(found: "Judgment", path: Path) -> None:
    figures, summary = found.figures, found.summary
    out.print(f"Judge: {found.judge.name}", markup=False)
    table = Table("", "pairs", "share")
    for title, count, share in (
        ("pruned model wins", summary.pruned_model, summary.pruned_model_pct),
        ("original wins", summary.original_model, summary.original_model_pct),
        ("tie", summary.tie, summary.tie_pct),
        ("no verdict", summary.error, summary.error_pct),
    ):
        table.add_row(title, f"{count:,}", f"{share:.1f}%")
    out.print(table)
    for title, rate in (("Win rate", figures.win_rate), ("At equal length", figures.length_controlled)):
        if rate is not None:
            out.print(f"{title} of the pruned model: {rate.words(3)}.")
    if figures.flip_rate is not None:
        out.print(
            f"Verdicts that changed with the order: {figures.flips:,} ({figures.flip_rate:.1%}), counted as ties."
        )
    lengths = "{:,.0f} characters by the original, {:,.0f} by the pruned model".format(*figures.mean_length)
    cut = [one.truncated for one in (found.generated["original_model"], found.generated["pruned_model"])]
    empty = [one.empty for one in (found.generated["original_model"], found.generated["pruned_model"])]
    out.print(f"Mean answer: {lengths}; cut: {cut[0]:,} and {cut[1]:,}; empty: {empty[0]:,} and {empty[1]:,}.")
    for reason, count in figures.failures.items():
        out.print(f"No verdict on {count:,}: {reason}.", style="yellow", markup=False)
    for note in found.notes:
        out.print(f"Note: {note}.", style="yellow", markup=False)
    winner = {"original_model": "the original", "pruned_model": "the pruned model", "tie": "none, a tie"}
    out.print(f"Winner: {winner[found.overall_winner] if found.overall_winner else 'none is named'}.")
    out.print(f"Judgement: {path}", soft_wrap=True)


def _text(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"rubric {str(path)!r} cannot be read: name a text file with the criteria.") from error


def _prices(price_in: float | None, price_out: float | None) -> tuple[float, float] | None:
    if price_in is None and price_out is None:
        return None
    if (price_in or 0) < 0 or (price_out or 0) < 0:
        raise InputError("price_in, price_out: a price below 0: give the price of a million tokens.")
    return price_in or 0.0, price_out or 0.0
