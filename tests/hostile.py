"""A whole pipeline of pico models through the real stages, on rows and with names that would like to be HTML."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from slim.calibration.calibrate import calibrate
from slim.calibration.check import check
from slim.calibration.facts import CalibrationSettings
from slim.evaluation.evaluate import checked_settings, evaluate
from slim.judging import judge
from slim.planning import threshold as plan
from slim.planning.files import save_plan
from slim.pruning.surgery import prune
from slim.recovery.finetune import finetune
from slim.recovery.repair import RepairSettings, repair
from slim.recovery.settings import TrainSettings
from tests.judge_server import Scripted, by_length, serving, verdict
from tests.pico import make_pico, save_pico

EVIL = (
    "</script><script>window.hit=1</script><img src=x onerror='window.hit=1'> [click](javascript:window.hit=1) "
    "![i](http://evil.example/i.png) <http://evil.example> www.evil.example **bold** `code` | & &lt; ```"
)
"""What a row, a model or a judge might say."""
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
    settings = CalibrationSettings(samples=8, max_length=360, device="cpu")
    measured = calibrate(str(folder / "model"), str(rows), settings=settings, output=runs / "measured <i>")
    measured = check(measured, rows=3, heads=6)
    made = plan.plan_by_threshold(measured, 0.75)
    save_plan(made, runs / "cut.json")
    prune(made, runs / "cut")
    few = RepairSettings(samples=120, max_length=360, device="cpu")
    repair(str(runs / "cut"), settings=few, output=runs / "repaired")
    lessons = TrainSettings(
        steps=6, samples=120, batch_size=4, micro_batch=4, max_length=360, rank=2, evaluations=3, device="cpu"
    )
    finetune(str(runs / "repaired"), str(rows), "kd", lessons, output=runs / ODD)
    quick = {"samples": 24, "max_length": 400, "max_new_tokens": 6, "device": "cpu"}
    pace = {"tokens": 8, "steps": 2, "repeats": 2}
    evaluate(
        [str(runs / ODD)], str(rows), speed=speed, settings=checked_settings(**quick, pace=pace), output=runs / "scored"
    )
    with serving(strict) as server:
        judge.judge(
            str(folder / "model"),
            str(runs / ODD),
            str(rows),
            samples=20,
            settings=judge.AnswerSettings(max_new_tokens=6),
            endpoint=server.url,
            asking={"concurrency": 1, "retries": 0},
            device="cpu",
            min_coverage=0.5,
            output=runs / "judged.json",
        )
    return Made(
        runs / "measured <i>",
        runs / "cut.json",
        runs / "cut",
        runs / "repaired",
        runs / ODD,
        runs / "scored",
        runs / "judged.json",
    )
