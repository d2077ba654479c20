"""lm-evaluation-harness on pico models, without a network: tasks of local files against explicit sums."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from slim.core.errors import InputError, SlimError
from slim.evaluation.evaluate import evaluate
from slim.evaluation.lm_eval_tasks import LmEvalTasks, version
from slim.evaluation.metrics import assess
from slim.evaluation.request import EvaluateRequest
from slim.models.load import Loaded
from tests.pico import make_pico, save_pico

ROWS = [
    {"query": f"Question {n}: which?", "choices": ["the first", "second", f"number {n}"], "gold": n % 3}
    for n in range(8)
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of multiple choice in a YAML file, its rows beside it."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"""task: mine
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: mcc
metadata: {{version: 2.5}}
"""
    )
    return file


def likelihood(loaded: Loaded, asked: str, choice: str) -> float:
    """Of a choice after a question, by an explicit softmax."""
    start = len(loaded.tokenizer(asked)["input_ids"])  # type: ignore[arg-type]
    ids = torch.tensor([loaded.tokenizer(asked + choice)["input_ids"]])
    with torch.no_grad():
        logits = loaded.model(ids).logits[0].double()
    total = 0.0
    for place in range(start, ids.shape[1]):
        row = logits[place - 1]
        total += float(row[ids[0, place]] - torch.log(torch.exp(row - row.max()).sum()) - row.max())
    return total


def test_a_task_of_a_local_file(pico: Callable[..., Loaded], task: Path) -> None:
    """Its accuracy is that of explicit sums, whole and per character; what is known of it travels along."""
    loaded = pico("llama", dtype=torch.float32)
    (found,) = LmEvalTasks([str(task)]).run(loaded, batch_size=3)
    assert (found.task, found.version, found.shots, found.rows) == ("mine", "2.5", 0, 8)
    assert [measure.name for measure in found.measures] == ["acc", "mcc", "acc_norm"]
    right, right_norm = [], []
    for row in ROWS:
        sums = [likelihood(loaded, row["query"], f" {choice}") for choice in row["choices"]]
        right.append(np.argmax(sums) == row["gold"])
        per = [one / len(choice) for one, choice in zip(sums, row["choices"], strict=True)]
        right_norm.append(np.argmax(per) == row["gold"])
    np.testing.assert_array_equal(found.columns["acc"]["acc"], right)
    np.testing.assert_array_equal(found.columns["acc_norm"]["acc_norm"], right_norm)
    assert assess(found.measures[0], found.columns["acc"])[0].value == pytest.approx(100 * np.mean(right))
    assert found.measures[0].unit == "points"


def test_another_aggregation_is_resampled_too(pico: Callable[..., Loaded], task: Path) -> None:
    """A correlation over pairs of gold and answer, with its own function on resampled rows."""
    (found,) = LmEvalTasks([str(task)]).run(pico("llama"))
    mcc = next(measure for measure in found.measures if measure.name == "mcc")
    pairs = found.columns["mcc"]["mcc"]
    assert len(pairs) == 8
    assert all(len(pair) == 2 for pair in pairs)
    figure, difference = assess(mcc, found.columns["mcc"], found.columns["mcc"])
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low <= figure.value <= figure.high
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_rows_and_shots_are_chosen(pico: Callable[..., Loaded], task: Path) -> None:
    """By the seed; examples before each row change what is asked."""
    loaded = pico("llama")
    text = task.read_text() + "fewshot_split: test\n"
    task.write_text(text)
    (found,) = LmEvalTasks([str(task)], rows=5, shots=2).run(loaded)
    assert (found.rows, found.shots) == (5, 2)


def test_what_cannot_be_run_is_named(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name nobody knows, with those near it; a file without a task; rows that are not there; no harness at all."""
    with pytest.raises(InputError, match=r"tasks=arc_eas: .*near are .*arc_easy"):
        LmEvalTasks(["arc_eas"])
    with pytest.raises(InputError, match=r"tasks=.*none\.yaml: "):
        LmEvalTasks([str(tmp_path / "none.yaml")])
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(InputError, match=r"tasks=.*cannot be loaded"):
        LmEvalTasks([str(task)]).run(make_pico("llama"))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match=r"tasks=arc_easy: .*pip install 'slim\[lm-eval\]'"):
        LmEvalTasks(["arc_easy"])


def test_a_task_that_fails_is_named(pico: Callable[..., Loaded], task: Path) -> None:
    """Whatever its template does wrong."""
    task.write_text(task.read_text().replace("{{query}}", "{{query.nothing.more}}"))
    with pytest.raises(SlimError, match="mine"):
        LmEvalTasks([str(task)]).run(pico("llama"))


def test_standard_tasks_stand_in_the_record(task: Path, tmp_path: Path) -> None:
    """Paired differences, sample counts and versions; no dataset is needed."""
    for name, seed in (("one", 0), ("two", 1)):
        save_pico(make_pico("llama", seed=seed), tmp_path / name)
    models = {"checkpoints": [tmp_path / "two"], "baseline": tmp_path / "one"}
    done = evaluate(EvaluateRequest.asked(**models, tasks=[task], task_rows=6, device="cpu"))
    facts = done.facts
    assert facts.dataset is None
    assert facts.tasks["mine"].model_dump() == {"version": "2.5", "shots": 0, "rows": 6}
    assert facts.versions["lm_eval"] == version()
    about = facts.measures["mine/acc"]
    assert (about.task, about.rows, about.higher_is_better) == ("mine", 6, True)
    two = facts.models[1].scores["mine/acc"]
    one = facts.models[0].scores["mine/acc"]
    assert two.difference is not None
    assert two.difference.value == pytest.approx(two.figure.value - one.figure.value)
    table = done.table[done.table["model"] == "two"]
    assert list(table["task"]) == ["mine"] * 6
    assert 100 * float(np.mean(table["acc"])) == pytest.approx(two.figure.value)
