"""The verb that tells what a checkpoint is still worth, and how fast it is: evaluate."""

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
from slim.core.errors import InputError

if TYPE_CHECKING:
    from slim.evaluation.record import EvaluationFacts


@cli.command()
def evaluate(
    checkpoints: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="checkpoints, or any models")],
    baseline: Annotated[
        str | None, typer.Option(help="model to compare with (default: the one they were cut from)")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="bundled:briefs (default), bundled:triage, a file or a Hub id")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="standard tasks by name, or YAML files of tasks: arc_easy,hellaswag,mine.yaml")
    ] = None,
    speed: Annotated[bool, typer.Option("--speed", help="time all models in turn, and measure their memory")] = False,
    config: Config = None,
    split: Annotated[str | None, typer.Option(help="split to draw rows from (default: test)")] = None,
    revision: Revision = None,
    template: Annotated[str | None, typer.Option(help="kind of task: summarisation, maths, classification …")] = None,
    columns: Columns = None,
    prompt: Prompt = None,
    samples: Annotated[int, typer.Option(help="held-out rows")] = 64,
    max_length: Annotated[int, typer.Option(help="tokens of a row beyond which it is cut")] = 512,
    batch_size: Annotated[int, typer.Option(help="rows per forward")] = 4,
    positions: Annotated[
        Literal["all", "answer"], typer.Option(help="predictions that perplexity and KL count")
    ] = "all",
    max_new_tokens: Annotated[int | None, typer.Option(help="of an answer (default: by the kind of task)")] = None,
    task_rows: Annotated[int | None, typer.Option(help="rows of each standard task (default: all)")] = None,
    shots: Annotated[int | None, typer.Option(help="solved examples in a standard task (default: its own)")] = None,
    speed_rows: Annotated[str, typer.Option(help="rows at a time that are timed, for instance 1,8")] = "1",
    speed_tokens: Annotated[int, typer.Option(help="tokens of the prompt that is timed")] = 256,
    speed_steps: Annotated[int, typer.Option(help="tokens that are decoded for timing")] = 32,
    repeats: Annotated[int, typer.Option(help="timed runs of each, of which the median counts")] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="chooses the rows, and resamples them for the intervals")] = 0,
    output: Annotated[Path | None, typer.Option(help="new run folder (default: in the workspace)")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure checkpoints beside the original: quality on held-out rows, standard tasks, speed and memory."""
    from slim.evaluation import evaluate as stage

    settings = stage.checked_settings(
        samples=samples,
        max_length=max_length,
        batch_size=batch_size,
        positions=positions,
        max_new_tokens=max_new_tokens,
        task_rows=task_rows,
        shots=shots,
        pace={
            "batch_sizes": _sizes(speed_rows),
            "tokens": speed_tokens,
            "steps": speed_steps,
            "repeats": repeats,
        },
        seed=seed,
        device=device,
        dtype=dtype,
    )
    options: dict[str, Any] = {
        "checkpoints": checkpoints,
        "dataset": dataset,
        "baseline": baseline,
        "standard": [name.strip() for name in tasks.split(",") if name.strip()] if tasks else (),
        "speed": speed,
        "output": output,
        **rows_of(config, split, revision, template, columns, prompt),
    }
    with at_work("evaluate", **options, settings=settings.model_dump()) as progress:
        done = stage.evaluate(
            **options, settings=settings, progress=progress, tell=lambda work: err.print(work.sentence())
        )
        progress.made(done.path)
    facts = done.facts
    if as_json:
        found = facts.model_dump(mode="json", exclude={"models": {"__all__": {"model": {"shapes"}}}})
        for shown, one in zip(found["models"], facts.models, strict=True):
            shown["parameters"] = one.parameters
        print_json(found | {"path": str(done.path)})
        return
    if facts.measures:
        out.print(_quality(facts))
    for table in _speed(facts):
        out.print(table)
    if facts.dataset:
        out.print(f"{facts.dataset.rows} rows, {facts.dataset.tokens:,} tokens of {facts.dataset.source}.")
        out.print(f"Held out: {facts.held_out}.", soft_wrap=True)
    for one in facts.models:
        if one.truncated_answers:
            out.print(f"{one.name}: {one.truncated_answers} answers stopped at {facts.max_new_tokens} tokens.")
    for note in facts.notes:
        out.print(f"Note: {note}.")
    out.print(f"Evaluation: {done.path}", soft_wrap=True)


def _sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"speed-rows: {text!r} is no list of numbers: write 1,8.")
    return [int(part) for part in parts]


def _quality(facts: "EvaluationFacts") -> Table:
    """A line for each measure and model: the figure, and what it is more than the original's."""
    from slim.evaluation.record import in_words

    table = Table("measure", "better", "rows", "model", "figure", "difference to the original")
    table.title = "Quality, with 95% intervals over rows"
    for key, about in facts.measures.items():
        named = f"{about.task}: {about.title}" if about.task else about.title
        lead = [named + (f", {about.unit}" if about.unit else ""), "more" if about.higher_is_better else "less"]
        for one in facts.models:
            if (score := one.scores.get(key)) is None:
                continue
            more = in_words(about, score.difference, sign=True) if score.difference else ""
            table.add_row(*lead, f"{about.rows}", one.name, in_words(about, score.figure), more)
            lead = ["", ""]
        table.add_section()
    return table


def _speed(facts: "EvaluationFacts") -> list[Table]:
    """Pace at each batch size, and what every model takes."""
    found = []
    for place, pace in enumerate(facts.original.pace):
        table = Table("model", "prefill, tokens/s", "decoding, tokens/s", "first token, s", "KV cache, MB")
        table.title = f"Speed, {pace.rows} row{'s' if pace.rows > 1 else ''} at a time (times the original's)"
        for one in facts.models:
            mine = one.pace[place]
            table.add_row(
                one.name,
                *(timed.words(digits) for timed, digits in ((mine.prefill, 0), (mine.decode, 1))),
                mine.first_token.words(3),
                f"{mine.cache_bytes / 1e6:,.2f}",
            )
        found.append(table)
    if facts.original.footprint is not None:
        table = Table("model", "parameters", "file, MB", "peak memory, MB", "loading, s", title="Size")
        for one in facts.models:
            if (taken := one.footprint) is not None:
                sizes = (f"{size / 1e6:,.1f}" for size in (taken.file_bytes, taken.peak_bytes))
                table.add_row(one.name, f"{one.parameters:,}", *sizes, taken.load.words(2))
        found.append(table)
    return found
