"""The verb that executes a plan: prune."""

from slim.cli.options import command
from slim.cli.shared import AsJson, at_work, out, print_json
from slim.recovery.request import PruneRequest


@command(PruneRequest)
def prune(request: PruneRequest, as_json: AsJson = False) -> None:
    from slim.cli.recover import figures
    from slim.pruning.checkpoint import recipe
    from slim.pruning.history import load_recovery
    from slim.recovery import prune as stage

    folder = at_work(request, stage.prune)
    made = recipe(folder)  # pruning in rounds makes a new plan
    steps = load_recovery(folder).steps
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if as_json:
        found = {"path": str(folder), "parameters": made.after.parameters, "bytes_on_disk": size}
        print_json(found | {"recovery": [step.model_dump(mode="json", exclude={"settings"}) for step in steps]})
        return
    out.print(f"{made.before.parameters:,} → {made.after.parameters:,} parameters, {size / 1e6:,.1f} MB on disk.")
    if steps:
        out.print(figures(steps))
    out.print(f"Checkpoint: {folder}", soft_wrap=True)
