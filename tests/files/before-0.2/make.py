"""Writes the files beside it with the build of commit df0f425: run it from a checkout of that commit.

    PYTHONPATH=CHECKOUT python tests/data/before-0.2/make.py FOLDER

Afterwards paths that name FOLDER are written as `OLD`, so that a test can put its own in their place.
"""

import json
import os
import shutil
import sys
from pathlib import Path

home = Path(sys.argv[1]).absolute()
os.environ["SLIM_HOME"] = str(home / "workspace")

import torch  # noqa: E402
from slim import absorbed, archive, budget, calibration, check, choice, jobs, lineage, plan  # noqa: E402
from slim.judge import votes  # noqa: E402
from slim.records import Pins  # noqa: E402
from tests.pipeline import make_pipeline  # noqa: E402

torch.set_num_threads(1)
made = make_pipeline(home / "workspace", home / "model")
votes.file_of(made.judgement).write_text(votes.Votes().model_dump_json())
measured = check.check(calibration.load(made.calibration), rows=3, heads=12)
left = absorbed.absorbed(measured)
measured = calibration.load(made.calibration)
plans = home / "plans"
for name, value in {
    "heads": plan.make_plan(measured, 0.6, "head", pins=Pins(keep=((0, 1),), drop=((2, 4),), protect=(3,))),
    "groups": plan.make_plan(measured, 0.6, "group"),
    "blocks": plan.make_plan(measured, 0.6, "block"),
    "layers": plan.make_plan(measured, 0.6, "layer"),
    "uniform": plan.make_plan(measured, 0.6, "head", uniform=True),
    "thresholds": plan.make_plan(measured, 0.9, "head", {"kl_output": 1.0, "entropy": 0.3}, per_layer={1: 0.4}),
    "budget": budget.plan_for_budget(measured, {"bytes": 0.95, "kv": 0.9}, "head"),
    "after-repair": budget.plan_for_budget(measured, {"heads": 0.8}, "head", absorbed=left),
}.items():
    plan.save(value, plans / f"{name}.json")
chosen = choice.first_choice(measured).model_copy(
    update={"threshold": 0.65, "per_layer": {1: 0.4}, "pins": Pins(keep=((0, 1),), drop=((2, 4),), protect=(3,))}
)
(home / "link.json").write_text(json.dumps(choice.to_query(chosen), indent=1))
(home / "link-plan.json").write_text(chosen.plan(measured).model_dump_json(indent=1))
job = jobs.start("calibrate", model=str(home / "model"), dataset="bundled:triage", settings={"samples": 4, "max_length": 48})
while jobs.state_of(job.id).unfinished:
    pass
again = jobs.start("prune", plan=str(made.plan), repaired=True, settings={"samples": 60, "max_length": 48})
while jobs.state_of(again.id).unfinished:
    pass
with jobs.control.JobStore() as store:
    found = [one.model_dump(mode="json") for one in store.all()]
print([(one["kind"], one["state"], one["error"]) for one in found])
(home / "jobs.json").write_text(json.dumps(found, indent=1))
found = lineage.read()
last = {node.key: node for stage in ("evaluation", "judgement") for run in found.runs if run.stage == stage and run.path in (made.evaluation, made.judgement) for node in archive.with_ancestors(found, run)}
archive.export_runs(found, list(last.values()), home / "all.slim.zip")
for stale in (home / "workspace").iterdir():
    if stale.name not in ("calibrations", "plans", "checkpoints", "evaluations", "judgements", "runs"):
        shutil.rmtree(stale)
