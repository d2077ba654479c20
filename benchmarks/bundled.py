"""The bundled model's figures on all test rows of each bundled task, beside chance.

`python -m benchmarks.bundled` prints the table of docs/evaluation.md. `--write` keeps the figures for the pages and the
terminal, in slim/data/bundled/scores.json.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import machine, table
from slim.data import tasks
from slim.data.bundled_scores import BundledScore, save_scores
from slim.evaluation.evaluate import evaluate
from slim.evaluation.metrics import ROUGE
from slim.evaluation.record import Evaluation
from slim.evaluation.request import EvaluateRequest
from slim.evaluation.scorers import rouge
from slim.models import bundled

SHOWN = ("ranked_whole", "ranked", "accuracy", "rouge1", "rouge2", "rougeL")
GUESS, OTHERS, FIRST = "a guess", "another passage's summary", "the passage's first sentence"


def measured(name: str, work: Path) -> Evaluation:
    """The unchanged model on all test rows of a bundled task."""
    rows = len(tasks.load_task(f"bundled:{name}", split="test").examples)
    asked = {"dataset": f"bundled:{name}", "split": "test", "samples": rows, "max_length": 512, "positions": "answer"}
    return evaluate(
        EvaluateRequest.asked(checkpoints=[bundled.NAME], baseline=bundled.NAME, output=work / name, **asked)
    )


def unread(name: str) -> dict[str, float]:
    """ROUGE, in points, of what says nothing of the passage: the summary of the row after it."""
    answers = [row.answer for row in tasks.load_task(f"bundled:{name}", split="test").examples]
    return _mean_rouge([*answers[1:], answers[0]], answers)


def first_sentences(name: str) -> dict[str, float]:
    """ROUGE, in points, of the first sentence of each passage, for comparison."""
    rows = tasks.load_task(f"bundled:{name}", split="test").examples
    passages = [row.prompt.partition("\n\n")[2] for row in rows]
    return _mean_rouge([passage.split(". ")[0] for passage in passages], [row.answer for row in rows])


def _mean_rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    found = [rouge(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    return {metric.name: 100 * float(np.mean([one[metric.name] for one in found])) for metric in ROUGE}


def scores_of(name: str, evaluation: Evaluation) -> tuple[BundledScore, ...]:
    """The figures of the task's own measures, each beside its chance."""
    facts, guesses = evaluation.facts, unread(name)
    found = []
    for measure in SHOWN:
        if (score := facts.original.scores.get(measure)) is None:
            continue
        about, figure = facts.measures[measure], score.figure
        found.append(
            BundledScore(
                title=about.title,
                value=round(figure.value, 2),
                low=round(figure.value if figure.low is None else figure.low, 2),
                high=round(figure.value if figure.high is None else figure.high, 2),
                chance=round(guesses[measure] if about.chance is None else about.chance, 2),
                guess=OTHERS if about.chance is None else GUESS,
                rows=about.rows,
            )
        )
    return tuple(found)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--write", action="store_true", help="keep the figures for the pages and the terminal")
    options = asked.parse_args()
    scores: dict[str, tuple[BundledScore, ...]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name in tasks.BUNDLED:
            evaluation = measured(name, Path(work))
            scores[name] = scores_of(name, evaluation)
            print(f"{name}: {evaluation.facts.original.truncated_answers} answers cut", flush=True)
    lines = [
        [
            name,
            f"{one.rows}",
            one.title,
            f"{one.value:.1f} [{one.low:.1f}, {one.high:.1f}]",
            f"{one.chance:.1f}",
            one.guess,
        ]
        for name, found in scores.items()
        for one in found
    ]
    print(machine())
    print(table(["task", "rows", "measure", "points [95%]", "chance", "which is"], lines))
    print(f"{FIRST}:", ", ".join(f"{name} {value:.1f}" for name, value in first_sentences("briefs").items()))
    if options.write:
        save_scores(scores)


if __name__ == "__main__":
    main()
