"""Verbs that measure: calibrate, check."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.cli.options import command
from slim.cli.shared import AsJson, at_work, out, print_json
from slim.data.omissions import omitted

if TYPE_CHECKING:
    from slim.calibration.check_record import CriterionCheck


@command(CalibrateRequest)
def calibrate(
    request: CalibrateRequest,
    check: Annotated[
        bool, typer.Option("--check", help="ablate heads to check every criterion, and correct the forecast")
    ] = False,
    as_json: AsJson = False,
) -> None:
    from slim.calibration import calibrate as stage
    from slim.calibration import check as checking

    done = at_work(request, stage.calibrate)
    if check:
        done = at_work(CheckRequest(calibration=done), checking.check)
    if as_json:
        found = done.facts.model_dump(mode="json", exclude={"model": {"shapes"}}) | {"path": str(done.path)}
        print_json(found | ({"check": done.check.model_dump(mode="json")} if done.check else {}))
        return
    table = Table("criterion", "unit", "lowest", "median", "highest", "pruned first", title="Per head")
    for name, values in done.level("head").items():
        facts = done.facts.metrics[name]
        low, middle, high = (f"{v:.4g}" for v in (values.min(), _median(values), values.max()))
        table.add_row(name, facts.unit, low, middle, high, "highest" if facts.high_is_prunable else "lowest")
    out.print(table)
    data = done.facts.dataset
    cut = f"{data.truncated_rows} rows cut ({data.lost_tokens:,} tokens lost)"
    known = f", {done.facts.reused:.0%} of it cached from earlier runs" if done.facts.reused else ""
    out.print(f"{data.rows} rows, {data.tokens:,} tokens, {cut}, {done.facts.seconds:.0f} s{known}.")
    for note in (*omitted(data.omissions), *done.facts.notes):
        out.print(f"Note: {note}.", markup=False, soft_wrap=True)
    if done.check:
        out.print(_check_table(done.check))
    out.print(f"Calibration: {done.path}", soft_wrap=True)


@command(CheckRequest)
def check(request: CheckRequest, as_json: AsJson = False) -> None:
    from slim.calibration import check as stage

    done = at_work(request, stage.check)
    if done.check is None:
        raise RuntimeError("a check returns its result")
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
