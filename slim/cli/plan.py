"""Verbs that decide: plan, diff."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from slim.cli.options import command
from slim.cli.shared import AsJson, at_work, cli, out, print_json
from slim.planning.quantities import SIZES, SPEEDS
from slim.planning.record import Plan
from slim.planning.request import AfterRepairRequest, PlanRequest


@command(PlanRequest)
def plan(request: PlanRequest, as_json: AsJson = False) -> None:
    from slim.planning import plan as stage
    from slim.planning.after_repair import forecast_after_repair
    from slim.planning.budget import check_limits

    if request.after_repair:
        check_limits(request.budget or {})
        at_work(AfterRepairRequest(calibration=request.calibration), forecast_after_repair)
    saved = stage.plan(request)
    made, path = saved.record, saved.path
    if as_json:
        print_json(made.model_dump(mode="json", exclude={"model": {"shapes"}}) | {"path": str(path)})
        return
    out.print(_sizes(made))
    for what, gone in (("attention blocks", made.removed_blocks), ("layers", made.removed_layers)):
        if gone:
            out.print(f"Whole {what} removed: {len(gone)} of {made.model.layers} ({', '.join(map(str, gone))}).")
    if made.changes:
        kept = sum(change.change == "kept" for change in made.changes)
        out.print(f"Valid shapes keep {kept} more heads and remove {len(made.changes) - kept} more heads.")
    if made.forecast:
        out.print(f"Forecast loss: {made.forecast} on held-out rows.")
    if made.repaired:
        out.print(f"Forecast loss after repair: {made.repaired} on held-out rows.")
    for note in made.notes:
        out.print(f"Warning: {note}.", style="yellow")
    out.print(f"Plan: {path}", soft_wrap=True)


def _sizes(made: Plan) -> Table:
    table = Table("", "original", "planned", "change", title=f"{made.removed_heads} heads removed: {made.reason}")
    for quantity in SIZES:
        one, other = (getattr(size, quantity.field) for size in (made.before, made.after))
        name = f"{quantity.title.lower()}, {quantity.unit}" if quantity.unit else quantity.title.lower()
        table.add_row(name, f"{one:,}", f"{other:,}", f"{(other - one) / one:+.1%}" if one else "")
    for served in made.targets:
        change = f"{(served.after - served.before) / served.before:+.1%}"
        table.add_row(f"tensors for {served.target}, bytes", f"{served.before:,}", f"{served.after:,}", change)
    for quantity in SPEEDS:
        faster = quantity.times_faster(made.before, made.after)
        table.add_row(f"{quantity.title.lower()}, at most", "1×", f"{faster:.2f}×", "")
    return table


@cli.command()
def diff(
    one: Annotated[Path, typer.Argument(help="plan file")],
    other: Annotated[Path, typer.Argument(help="plan file of the same model")],
    as_json: AsJson = False,
) -> None:
    """Compare two plans: the heads that only one of them removes, their sizes and their forecasts."""
    from slim.planning.files import load_plan, plan_difference

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
    if found.layers_only_one or found.layers_only_other:
        layers = (", ".join(map(str, only)) or "none" for only in (found.layers_only_one, found.layers_only_other))
        table.add_row("whole layers that only it removes", *layers)
    out.print(table)
    out.print(f"Both remove {found.shared} heads.")


def _places(heads: tuple[tuple[int, int], ...]) -> str:
    words = ", ".join(f"{layer}:{head}" for layer, head in heads[:12])
    return f"{len(heads)}: {words}{' …' if len(heads) > 12 else ''}" if heads else "0"
