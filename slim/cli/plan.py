"""Verbs that decide and cut: plan, diff, prune."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from slim.cli.shared import (
    DIGITS,
    AsJson,
    at_work,
    cli,
    out,
    parse_numbers,
    parse_places,
    parse_weights,
    print_json,
)
from slim.core.errors import InputError
from slim.core.records import Unit
from slim.planning.files import load_plan, plan_difference, save_plan
from slim.planning.record import Pins, Plan

LIMITS = "limit=number: write params=0.9,kv=0.7,decode=1.2,loss=0.05"


@cli.command()
def plan(
    calibration: Annotated[Path, typer.Argument(help="folder of a calibration")],
    threshold: Annotated[float | None, typer.Option(help="remove what scores this much or more (default: 0.8)")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="the cheapest plan within limits: heads, params, bytes, kv, flops (share of the original at most), "
            "prefill, decode (times as fast at least), loss (nats/token at most); for instance params=0.9,loss=0.05"
        ),
    ] = None,
    unit: Annotated[Unit, typer.Option(help="what is removed as one")] = "head",
    uniform: Annotated[bool, typer.Option("--uniform", help="one shape in all layers: a stock checkpoint")] = False,
    weights: Annotated[str | None, typer.Option(help="for instance kl_output=1,entropy_norm=0.5")] = None,
    per_layer: Annotated[str | None, typer.Option(help="thresholds of single layers, for instance 0=1,29=0.9")] = None,
    protect: Annotated[str | None, typer.Option(help="layers that stay whole, for instance 0,29")] = None,
    after_repair: Annotated[
        bool,
        typer.Option("--after-repair", help="with --budget: the least loss once it is repaired"),
    ] = False,
    keep: Annotated[str | None, typer.Option(help="what stays whatever it scores, layer:number, as 3:1,4:2")] = None,
    drop: Annotated[str | None, typer.Option(help="what goes whatever it scores, for instance 7:0")] = None,
    output: Annotated[Path | None, typer.Option(help="plan file (default: in the workspace)")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a calibration into a legal plan, with its size and forecast loss."""
    from slim.calibration.record import load_calibration
    from slim.core import workspace
    from slim.planning.after_repair import after_repair_sketch
    from slim.planning.budget import check_limits, plan_by_budget
    from slim.planning.threshold import plan_by_threshold

    if budget is not None and (given := [name for name, value in _by_score(threshold, weights, per_layer) if value]):
        raise InputError(f"budget: it stands in place of --{given[0]}: leave one of them out.")
    pins = _pins(keep, drop, protect)
    record = load_calibration(calibration)
    if after_repair and budget is None:
        raise InputError("after-repair: it plans by budget: give one with --budget, for instance params=0.9.")
    if budget is not None:
        limits, left = parse_numbers("budget", budget, LIMITS), None
        if after_repair:
            check_limits(limits)
            with at_work("absorb", calibration=calibration) as progress:
                left = after_repair_sketch(record, progress)
                progress.made(calibration)
        made = plan_by_budget(record, limits, unit, uniform=uniform, pins=pins, absorbed=left)
    else:
        made = plan_by_threshold(
            record,
            0.8 if threshold is None else threshold,
            unit,
            parse_weights(weights) if weights else None,
            per_layer=_thresholds(per_layer),
            pins=pins,
            uniform=uniform,
        )
    path = save_plan(made, output or workspace.fresh_path("plan", f"{unit}-{made.reason.kind}"))
    if as_json:
        print_json(made.model_dump(mode="json", exclude={"model": {"shapes"}}) | {"path": str(path)})
        return
    out.print(_sizes(made))
    blocks, layers = (", ".join(map(str, gone)) or "none" for gone in (made.removed_blocks, made.removed_layers))
    out.print(f"Whole blocks removed: {blocks}. Whole layers removed: {layers}.")
    if made.changes:
        kept = sum(change.change == "kept" for change in made.changes)
        out.print(f"To stay legal {kept} heads more stay, {len(made.changes) - kept} more go.")
    if made.forecast:
        out.print(f"Forecast loss: {made.forecast} on unseen rows.")
    if made.repaired:
        out.print(f"Forecast loss once repaired: {made.repaired} on unseen rows.")
    for note in made.notes:
        out.print(f"Warning: {note}.", style="yellow")
    out.print(f"Plan: {path}", soft_wrap=True)


def _by_score(threshold: float | None, weights: str | None, per_layer: str | None) -> list[tuple[str, Any]]:
    return [("threshold", threshold is not None), ("weights", weights), ("per-layer", per_layer)]


def _thresholds(text: str | None) -> dict[int, float]:
    found = parse_numbers("per-layer", text, "layer=number: write 0=1,29=0.9") if text else {}
    for layer in found:
        if not (layer.isdecimal() and len(layer) <= DIGITS):
            raise InputError(f"per-layer: {layer!r} is no layer: write 0=1,29=0.9.")
    return {int(layer): value for layer, value in found.items()}


def _pins(keep: str | None, drop: str | None, protect: str | None) -> Pins:
    layers = tuple(layer for layer, _ in parse_places("protect", protect))
    try:
        return Pins(keep=parse_places("keep", keep), drop=parse_places("drop", drop), protect=layers)
    except ValidationError as error:
        raise InputError(f"keep, drop: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None


def _sizes(made: Plan) -> Table:
    from slim.planning.sizes import speedup

    before, after = made.before, made.after
    table = Table("", "original", "planned", "change", title=f"{made.removed_heads} heads go: {made.reason}")
    for name, one, other in (
        ("parameters", before.parameters, after.parameters),
        ("weights, bytes", before.bytes, after.bytes),
        ("KV cache, bytes/token", before.kv_bytes_per_token, after.kv_bytes_per_token),
        ("work, FLOPs/token", before.flops_per_token, after.flops_per_token),
    ):
        table.add_row(name, f"{one:,}", f"{other:,}", f"{(other - one) / one:+.1%}" if one else "")
    faster = speedup(before, after)
    table.add_row("prefill, at most", "1×", f"{faster.prefill:.2f}×", "")
    table.add_row("decoding, at most", "1×", f"{faster.decode:.2f}×", "")
    return table


@cli.command()
def diff(
    one: Annotated[Path, typer.Argument(help="plan file")],
    other: Annotated[Path, typer.Argument(help="plan file of the same model")],
    as_json: AsJson = False,
) -> None:
    """Compare two plans: what only one of them removes, and what each gives and costs."""

    found = plan_difference(load_plan(one), load_plan(other))
    if as_json:
        print_json(
            {
                "shared": found.shared,
                "only_one": found.only_one,
                "only_other": found.only_other,
                "layers_only_one": found.layers_only_one,
                "layers_only_other": found.layers_only_other,
            }
        )
        return
    table = Table("", one.stem, other.stem)
    for title, of in (
        ("decided by", lambda made: str(made.reason)),
        ("heads removed", lambda made: f"{made.removed_heads:,}"),
        ("parameters", lambda made: f"{made.after.parameters:,}"),
        ("KV cache, bytes/token", lambda made: f"{made.after.kv_bytes_per_token:,}"),
        ("forecast loss", lambda made: str(made.forecast or "unknown")),
    ):
        table.add_row(title, of(found.one), of(found.other))
    table.add_row("heads that only it removes", _places(found.only_one), _places(found.only_other))
    out.print(table)
    out.print(f"Both remove {found.shared} heads.")


def _places(heads: tuple[tuple[int, int], ...]) -> str:
    words = ", ".join(f"{layer}:{head}" for layer, head in heads[:12])
    return f"{len(heads)}: {words}{' …' if len(heads) > 12 else ''}" if heads else "0"
