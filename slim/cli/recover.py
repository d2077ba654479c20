"""Verbs that recover quality: repair, finetune."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from slim.cli.options import command
from slim.cli.shared import AsJson, at_work, out, print_json
from slim.recovery.request import FinetuneRequest, RepairRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slim.pruning.history import RecoveryStep


@command(RepairRequest)
def repair(request: RepairRequest, as_json: AsJson = False) -> None:
    from slim.recovery import repair as stage

    _show(at_work(request, stage.repair), "Checkpoint", as_json)


@command(FinetuneRequest)
def finetune(request: FinetuneRequest, as_json: AsJson = False) -> None:
    from slim.recovery import finetune as stage

    _show(at_work(request, stage.finetune), "Checkpoint" if request.merge else "Adapter", as_json)


def _show(made: Path, kind: str, as_json: bool) -> None:
    """Print the figures of the last step of recovery."""
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
    """A table of the model's KL, perplexity and ended answers before and after each step of recovery."""
    from slim.pruning.card_sections import ENDED
    from slim.pruning.history import UNCHANGED

    table = Table("step", "KL to the original, nats/token", "perplexity, times the original's")
    tried = any(step.stopped for step in steps)
    for column in (*([ENDED] if tried else []), "applied"):
        table.add_column(column)
    for step in steps:
        one, other = step.before, step.after
        refused = "no: no improvement" if step.unchanged == UNCHANGED else "no: answers do not end"
        table.add_row(
            step.method,
            f"{one.kl:.4f} → {other.kl:.4f}",
            f"{one.ratio:.3f}× → {other.ratio:.3f}×",
            *([step.stopped] if tried else []),
            "yes" if step.applied else refused,
        )
    return table
