"""The pruning stage: execute a plan, repair the result, and write one checkpoint; the original is loaded once."""

from pathlib import Path

from slim.core import workspace
from slim.core.reporter import SILENT, Reporter
from slim.planning.files import load_plan
from slim.planning.record import Plan
from slim.planning.valid_choices import check_valid
from slim.pruning import checkpoint, held_out
from slim.pruning.history import Recovery
from slim.pruning.surgery import cut
from slim.recovery.context import RecoveryContext, draw
from slim.recovery.iterative import load_original, prune_in_rounds
from slim.recovery.repair import repaired
from slim.recovery.request import PruneRequest
from slim.recovery.settings import RepairSettings
from slim.targets.target import target


def prune(request: PruneRequest, reporter: Reporter = SILENT) -> Path:
    """Return the folder of the checkpoint of a plan: cut at once or in rounds, and repaired by default.

    The rows of the repair are by default the calibration's. Raises InputError for a plan, rows or an output that cannot
    be used.
    """
    plan = load_plan(Path(request.plan))
    for served in plan.targets:
        check_valid(plan.model, plan.keep, target(served.target))
    if request.rounds > 1:
        return prune_in_rounds(plan, request, reporter)
    output = request.output or workspace.fresh_path("checkpoint", _name(plan, request.repair))
    if not (request.repair and plan.removed_heads):
        return checkpoint.prune(plan, output, reporter)
    workspace.check_output(output, plan.after.bytes)
    settings, task = request.part(RepairSettings), held_out.rows_for_repair(plan, request.data)
    original = load_original(plan, settings, reporter)
    pruned = cut(original, plan)
    drawn = draw(task, settings, plan, pruned, original, reporter)
    at = RecoveryContext(pruned, original, drawn, settings, plan)
    step, _ = repaired(at, settings, reporter)
    checkpoint.write(output, pruned, plan, Recovery().then(step))
    return output


def _name(plan: Plan, repair: bool) -> str:
    stem = Path(plan.model.source.removeprefix("bundled:")).stem
    return stem if repair else f"{stem}-{plan.unit}s"
