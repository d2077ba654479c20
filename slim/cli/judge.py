"""The verb that lets a judge compare two models' answers."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from slim.cli.options import command
from slim.cli.shared import AsJson, at_work, out, print_json
from slim.core.errors import SlimError
from slim.judging.request import JudgeRequest

if TYPE_CHECKING:
    from slim.judging.record import Judgment


@command(JudgeRequest)
def judge(request: JudgeRequest, as_json: AsJson = False) -> None:
    from slim.judging import judge as stage

    made = at_work(request, stage.judge)
    found, path = made.record, made.path
    if as_json:
        print_json(found.model_dump(mode="json", exclude={"comparisons"}) | {"path": str(path)})
    else:
        _show(found, path)
    if found.figures.coverage < request.min_coverage:
        reason, count = max(found.figures.failures.items(), key=lambda item: item[1])
        raise SlimError(
            f"{found.figures.coverage:.0%} of the pairs were judged, less than min_coverage={request.min_coverage:g}, "
            f"so no winner is named ({count} pairs: {reason}); run it again, which asks only for missing verdicts."
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
    winner = {"original_model": "the original", "pruned_model": "the pruned model", "tie": "neither, a tie"}
    out.print(f"Winner: {winner[found.overall_winner] if found.overall_winner else 'none is named'}.")
    out.print(f"Judgement: {path}", soft_wrap=True)
