"""The command line: the pipeline's verbs, headless. Tables for people, `--json` for programs."""

import json
import os
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.error import URLError
from urllib.request import urlopen

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from slim import bundled
from slim.errors import Cancelled, InputError, SlimError
from slim.faithfulness import Faithfulness
from slim.progress import Progress

app = typer.Typer(
    name="slim",
    help="Shrink a language model for your task, and know the cost before you cut.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out, err = Console(), Console(stderr=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print the record as JSON instead of a table.")]


@app.command()
def calibrate(
    model: Annotated[str, typer.Option(help="bundled:smollm2-135m, a folder, a .gguf file or a Hub id")] = bundled.NAME,
    dataset: Annotated[str, typer.Option(help="bundled:briefs, bundled:triage, a file or a Hub id")] = "bundled:briefs",
    config: Annotated[str | None, typer.Option(help="configuration of a Hub dataset")] = None,
    split: Annotated[str | None, typer.Option(help="split to draw rows from (default: train)")] = None,
    revision: Annotated[str | None, typer.Option(help="revision of a Hub dataset")] = None,
    template: Annotated[str | None, typer.Option(help="how rows become a prompt: summarisation, maths, chat …")] = None,
    columns: Annotated[str | None, typer.Option(help="for instance question=ask,answer=reply")] = None,
    prompt: Annotated[str | None, typer.Option(help="wording of the prompt, with {column} in it")] = None,
    samples: Annotated[int, typer.Option(help="rows to measure on")] = 32,
    max_length: Annotated[int, typer.Option(help="tokens of a row beyond which it is cut")] = 320,
    batch_size: Annotated[int, typer.Option(help="rows per forward")] = 4,
    positions: Annotated[Literal["all", "answer"], typer.Option(help="predictions that loss and KL count")] = "all",
    kl: Annotated[Literal["fisher", "exact", "none"], typer.Option(help="forecast or leave out each head")] = "fisher",
    draws: Annotated[int, typer.Option(help="random directions per row in the loss sketch")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[Literal["auto", "float32", "float64", "bfloat16"], typer.Option(help="number format")] = "auto",
    seed: Annotated[int, typer.Option(help="chooses the rows and the sketch's directions")] = 0,
    check: Annotated[
        bool, typer.Option(help="leave heads out to check every criterion, and correct the forecast")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="new run folder (default: in the workspace)")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure every head and block of a model on rows of a task."""
    from slim import calibrate as stage
    from slim import check as checking

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
    with _progress_bar() as progress:
        done = stage.calibrate(
            model,
            dataset,
            config=config,
            split=split,
            revision=revision,
            template=template,
            columns=parse_pairs("columns", columns) if columns else None,
            prompt=prompt,
            settings=settings,
            output=output,
            progress=progress,
            tell=lambda work: err.print(work.sentence()),
        )
        if check:
            done = checking.check(done, progress=progress)
    if as_json:
        found = done.facts.model_dump(mode="json", exclude={"model": {"shapes"}}) | {"path": str(done.path)}
        _print_json(found | ({"check": done.check.model_dump(mode="json")} if done.check else {}))
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


@app.command()
def check(
    calibration: Annotated[Path, typer.Argument(help="folder of a calibration")],
    weights: Annotated[str | None, typer.Option(help="of the composite, for instance kl_output=1,variance=0.5")] = None,
    rows: Annotated[int, typer.Option(min=1, help="rows to measure on, unseen ones where there are any")] = 6,
    heads: Annotated[int, typer.Option(min=3, help="heads to leave out one by one")] = 60,
    as_json: AsJson = False,
) -> None:
    """Leave heads out to see which criterion predicts real damage, and correct the forecast by it."""
    from slim import calibration as measured
    from slim import check as stage

    with _progress_bar() as progress:
        done = stage.check(
            measured.load(calibration),
            weights=parse_weights(weights) if weights else None,
            rows=rows,
            heads=heads,
            progress=progress,
        )
    if done.check is None:
        raise RuntimeError("a check gives what it measured")
    if as_json:
        _print_json(done.check.model_dump(mode="json"))
        return
    out.print(_check_table(done.check))


def _check_table(found: Faithfulness) -> Table:
    shares = [f"−{removal.share:.0%}" for removal in found.verdicts[0].removals]
    title = f"Perplexity without a criterion's first heads (all heads: {found.perplexity:.1f})"
    table = Table("criterion", "rank correlation", *shares, title=title)
    for verdict in found.verdicts:
        sure = f"{verdict.correlation:+.2f}" if verdict.correlation is not None else "unknown"
        if verdict.low is not None and verdict.high is not None:
            sure += f" [{verdict.low:+.2f}, {verdict.high:+.2f}]"
        table.add_row(verdict.criterion, sure, *(f"{removal.perplexity:,.1f}" for removal in verdict.removals))
    return table


@app.command()
def plan(
    calibration: Annotated[Path, typer.Argument(help="folder of a calibration")],
    threshold: Annotated[float, typer.Option(help="remove what scores this much or more, 0 to 1")] = 0.8,
    unit: Annotated[Literal["head", "block"], typer.Option(help="what is removed as one")] = "head",
    weights: Annotated[str | None, typer.Option(help="for instance kl_output=1,entropy_norm=0.5")] = None,
    output: Annotated[Path | None, typer.Option(help="plan file (default: in the workspace)")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a calibration into a legal plan, with its size and forecast loss."""
    from slim import calibration as measured
    from slim import plan as stage
    from slim import workspace

    made = stage.make_plan(measured.load(calibration), threshold, unit, parse_weights(weights) if weights else None)
    path = stage.save(made, output or workspace.fresh_path("plan", f"{unit}-{threshold:g}"))
    if as_json:
        _print_json(made.model_dump(mode="json", exclude={"model": {"shapes"}}) | {"path": str(path)})
        return
    table = Table("", "original", "planned", "change", title=f"{made.removed_heads} heads go")
    for name, before, after in (
        ("parameters", made.before.parameters, made.after.parameters),
        ("weights, bytes", made.before.bytes, made.after.bytes),
        ("KV cache, bytes/token", made.before.kv_bytes_per_token, made.after.kv_bytes_per_token),
    ):
        table.add_row(name, f"{before:,}", f"{after:,}", f"{(after - before) / before:+.1%}" if before else "")
    out.print(table)
    blocks = ", ".join(map(str, made.removed_blocks)) or "none"
    kept = sum(change.change == "kept" for change in made.changes)
    out.print(
        f"Whole blocks removed: {blocks}. To stay legal {kept} heads more stay, {len(made.changes) - kept} more go."
    )
    if made.forecast:
        f = made.forecast
        out.print(f"Forecast loss: {f} on unseen rows.")
    out.print(f"Plan: {path}", soft_wrap=True)


@app.command()
def prune(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan file")],
    output: Annotated[Path | None, typer.Option(help="new checkpoint folder (default: in the workspace)")] = None,
    as_json: AsJson = False,
) -> None:
    """Execute a plan: remove the weights and save a checkpoint."""
    from slim import plan as planned
    from slim import prune as stage

    made = planned.load(plan_file)
    with _progress_bar() as progress:
        folder = stage.prune(made, output, progress)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if as_json:
        _print_json({"path": str(folder), "parameters": made.after.parameters, "bytes_on_disk": size})
        return
    out.print(f"{made.before.parameters:,} → {made.after.parameters:,} parameters, {size / 1e6:,.1f} MB on disk.")
    out.print(f"Checkpoint: {folder}", soft_wrap=True)


@app.command(name="app")
def dashboard(
    port: Annotated[int, typer.Option(help="port on this machine")] = 8501,
    browser: Annotated[bool, typer.Option(help="open it in a browser")] = True,
) -> None:
    """Open the dashboard."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "app.py").is_file():
        raise InputError(f"the dashboard's pages are not beside the package in {str(root)!r}: run it from a clone.")
    url = f"http://localhost:{port}"
    if browser and (
        sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        threading.Thread(target=_open_when_up, args=(url,), daemon=True).start()
    out.print(f"Slim is opening at {url} (Ctrl-C stops it).")
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    code = subprocess.call(command, cwd=root, env={**os.environ, "SLIM_HOME": _home()})
    if code:
        raise SlimError(f"the dashboard stopped with code {code}: is port {port} taken? Try another with --port.")


def _home() -> str:
    from slim import workspace

    return str(workspace.home())


def _open_when_up(url: str) -> None:
    for _ in range(100):
        time.sleep(0.3)
        try:
            with urlopen(f"{url}/_stcore/health", timeout=1):
                break
        except (URLError, OSError):
            continue
    webbrowser.open(url)


def parse_weights(text: str) -> dict[str, float]:
    """`kl_output=1,entropy_norm=0.5` as a mapping. Raises InputError for anything else."""
    try:
        return {name: float(value) for name, value in parse_pairs("weights", text).items()}
    except (InputError, ValueError):
        raise InputError(
            f"weights: {text!r} is not of the form metric=number: write kl_output=1,entropy_norm=0.5."
        ) from None


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


def _median(values: Any) -> float:
    import numpy as np

    return float(np.median(values))


def _print_json(value: dict[str, Any]) -> None:
    out.print_json(json.dumps(value))


@contextmanager
def _progress_bar() -> Iterator[Progress]:
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


def main() -> None:
    """Entry point: turns the errors a user can meet into one line and an exit code."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as hf_logging

    hub_logging.set_verbosity_error()  # its retries are not the one line that a person gets
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        app(standalone_mode=False)
    except SlimError as error:
        err.print(f"slim: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        err.print("slim: stopped.", style="red")
        sys.exit(Cancelled.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            err.print(f"slim: {error.format_message()}", style="red", markup=False)  # type: ignore[attr-defined]
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
