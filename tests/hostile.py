"""A whole pipeline of pico models through the real stages, on rows and with names that would like to be HTML."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from slim.calibration.calibrate import calibrate
from slim.calibration.check import check
from slim.calibration.request import CalibrateRequest, CheckRequest
from slim.evaluation.evaluate import evaluate
from slim.evaluation.request import EvaluateRequest
from slim.judging.judge import judge
from slim.judging.request import JudgeRequest
from slim.planning.files import save_plan
from slim.planning.threshold import plan_by_threshold
from slim.pruning import checkpoint
from slim.recovery.finetune import finetune
from slim.recovery.repair import repair
from slim.recovery.request import FinetuneRequest, RepairRequest
from tests.judge_server import Scripted, by_length, serving, verdict
from tests.pico import make_pico, save_pico

EVIL = (
    "</script><script>window.hit=1</script><img src=x onerror='window.hit=1'> [click](javascript:window.hit=1) "
    "![i](http://evil.example/i.png) <http://evil.example> www.evil.example **bold** `code` | & &lt; ```"
)
"""Text that a row, a model or a judge might contain."""
ODD = "<img src=x onerror='window.hit=1'> [odd](javascript:window.hit=1) & `small`"
"""A folder's name that is HTML and Markdown."""
ROWS = 160
KEY = "sk-very-secret-0123456789"


class Made(NamedTuple):
    """Every run of the pipeline."""

    calibration: Path
    plan: Path
    cut: Path
    repaired: Path
    tuned: Path
    evaluation: Path
    judgement: Path


def strict(asked: dict[str, Any], count: int) -> Scripted:
    """Prefers the longer answer; every seventh time it says nothing, and its reasons are hostile."""
    said = by_length(asked, count)
    if count % 7 == 3:
        return Scripted("I am sorry, I cannot judge this.")
    return verdict(json.loads(said.content or "{}")["verdict"], f"because {EVIL}")


def pipeline(folder: Path, speed: bool = False) -> Made:
    """Calibrates, checks, plans, cuts, repairs, trains, evaluates and judges in `folder`."""
    save_pico(make_pico("llama"), folder / "model")
    rows = folder / "rows <b>.jsonl"
    texts = [
        {"question": f"What is {row} + 1? {EVIL if row % 2 == 0 else ''}", "answer": f"{row + 1} </script>"}
        for row in range(ROWS)
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    runs = folder / "runs"
    task: dict[str, Any] = {"dataset": rows, "device": "cpu"}
    few: dict[str, Any] = {"samples": 120, "max_length": 360}
    measured = runs / "measured <i>"
    calibrate(CalibrateRequest.asked(model=folder / "model", samples=8, max_length=360, output=measured, **task))
    checked = check(CheckRequest.asked(calibration=measured, samples=3, heads=6))
    made = plan_by_threshold(checked, 0.75)
    save_plan(made, runs / "cut.json")
    checkpoint.prune(made, runs / "cut")
    repair(RepairRequest.asked(folder=runs / "cut", device="cpu", output=runs / "repaired", **few))
    lessons = {"steps": 6, "batch_size": 4, "micro_batch": 4, "rank": 2, "evaluations": 3}
    finetune(FinetuneRequest.asked(folder=runs / "repaired", method="kd", output=runs / ODD, **lessons, **task, **few))
    pace = {"speed": speed, "speed_tokens": 8, "speed_steps": 2, "repeats": 2}
    quick = {"samples": 24, "max_length": 400, "max_new_tokens": 6}
    evaluate(EvaluateRequest.asked(checkpoints=[runs / ODD], output=runs / "scored", **quick, **pace, **task))
    with serving(strict) as server:
        judge(
            JudgeRequest.asked(
                original=folder / "model",
                pruned=runs / ODD,
                samples=20,
                max_new_tokens=6,
                endpoint=server.url,
                concurrency=1,
                retries=0,
                min_coverage=0.5,
                output=runs / "judged.json",
                **task,
            )
        )
    return Made(
        measured,
        runs / "cut.json",
        runs / "cut",
        runs / "repaired",
        runs / ODD,
        runs / "scored",
        runs / "judged.json",
    )
