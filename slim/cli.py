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
    samples: Annotated[int, typer.Option(help="rows to measure on")] = 16,
    max_length: Annotated[int, typer.Option(help="tokens of a row beyond which it is cut")] = 320,
    batch_size: Annotated[int, typer.Option(help="rows per forward")] = 4,
    kl: Annotated[Literal["fisher", "none"], typer.Option(help="how kl_output is measured per head")] = "fisher",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[Literal["auto", "float32", "float64", "bfloat16"], typer.Option(help="number format")] = "auto",
    seed: Annotated[int, typer.Option(help="chooses the rows and the sketch's directions")] = 0,
    output: Annotated[Path | None, typer.Option(help="new run folder (default: in the workspace)")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure every head and block of a model on rows of a task."""
    from slim import calibrate as stage

    settings = stage.checked_settings(
        samples=samples, max_length=max_length, batch_size=batch_size, kl=kl, device=device, dtype=dtype, seed=seed
    )
    with _progress_bar() as progress:
        done = stage.calibrate(
            model, dataset, config=config, split=split, settings=settings, output=output, progress=progress
        )
    if as_json:
        _print_json(done.facts.model_dump(mode="json", exclude={"model": {"shapes"}}) | {"path": str(done.path)})
        return
    table = Table("metric", "unit", "lowest", "median", "highest", "prunable when", title="Per head")
    for name, values in done.level("head").items():
        facts = done.facts.metrics[name]
        low, middle, high = (f"{v:.4g}" for v in (values.min(), _median(values), values.max()))
        table.add_row(name, facts.unit, low, middle, high, "high" if facts.high_is_prunable else "low")
    out.print(table)
    data = done.facts.dataset
    out.print(f"{data.rows} rows, {data.tokens:,} tokens, {data.truncated_rows} cut, {done.facts.seconds:.0f} s.")
    out.print(f"Calibration: {done.path}", soft_wrap=True)


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
    from slim import calibrate as measured
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
        out.print(f"Forecast loss: {f.nats_per_token:.3f} nats/token [{f.low:.3f}, {f.high:.3f}] on unseen rows.")
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
    weights = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise InputError(f"weights: {part!r} is not of the form metric=number: write kl_output=1,entropy_norm=0.5.")
    return weights


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
