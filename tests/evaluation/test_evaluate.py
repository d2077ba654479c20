"""An evaluation of real folders: what its record, table and files say, what is held out, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from slim.calibration.calibrate import calibrate
from slim.calibration.request import CalibrateRequest
from slim.core.errors import InputError
from slim.core.run_index import runs
from slim.data import tasks
from slim.data.sources import open_source
from slim.evaluation.evaluate import evaluate
from slim.evaluation.metrics import Figure
from slim.evaluation.record import Evaluation, in_words, load_evaluation
from slim.evaluation.request import EvaluateRequest
from slim.planning.threshold import plan_by_threshold
from slim.pruning import checkpoint
from tests.commands import Run
from tests.pico import keeping, make_pico, plan_of, save_pico

QUICK = {"samples": 6, "max_length": 96, "max_new_tokens": 4, "device": "cpu"}
ANSWERS = {"positions": "answer", "max_length": 1000}


def evaluated(*checkpoints: str | Path, dataset: str | Path | None = None, **asked: Any) -> Evaluation:
    """A quick evaluation; `asked` takes the place of what makes it quick."""
    return evaluate(EvaluateRequest.asked(checkpoints=checkpoints, dataset=dataset, **QUICK | asked))


class Folders(NamedTuple):
    """A model and what was cut from it."""

    original: str
    pruned: str
    whole: str


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A pico llama, one of its kind without a block and some heads, and one with nothing removed."""
    place = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(place / "home"))
        facts = save_pico(make_pico("llama"), place / "original").facts
        everything = (tuple(range(6)),) * 4
        checkpoint.prune(plan_of(facts, keeping((), (0, 3), *everything[2:])), place / "pruned")
        checkpoint.prune(plan_of(facts, keeping(*everything)), place / "whole")
    return Folders(*(str(place / name) for name in ("original", "pruned", "whole")))


@pytest.fixture(scope="module")
def triage(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Both checkpoints on labels."""
    place = tmp_path_factory.mktemp("triage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(place / "home"))
        return evaluated(folders.pruned, folders.whole, dataset="bundled:triage", output=place / "evaluation")


def test_the_record_has_every_model_beside_the_original(triage: Evaluation) -> None:
    """Every metric with its number of rows and the paired difference; the original has none to itself."""
    facts = triage.facts
    assert [one.name for one in facts.models] == ["original", "pruned", "whole"]
    assert list(facts.measures) == ["perplexity", "kl", "accuracy", "macro_f1", "ranked", "ranked_whole"]
    assert [about.higher_is_better for about in facts.measures.values()] == [False, False, True, True, True, True]
    assert {about.rows for about in facts.measures.values()} == {6}
    original, pruned, whole = facts.models
    assert "kl" not in original.scores
    assert all(score.difference is None for score in original.scores.values())
    assert pruned.parameters < original.parameters == whole.parameters
    assert pruned.scores["kl"].figure.value > 0
    assert pruned.scores["perplexity"].difference is not None
    assert pruned.scores["perplexity"].difference.low is not None
    nothing = Figure(value=0, low=0, high=0)
    assert whole.scores["perplexity"].difference == nothing
    assert whole.scores["macro_f1"].difference == nothing
    assert whole.scores["kl"].figure.value == pytest.approx(0, abs=1e-9)
    assert facts.versions.keys() == {"slim", "torch", "transformers", "python"}
    assert facts.max_new_tokens == 4
    assert all(one.truncated_answers is not None and one.truncated_answers <= 6 for one in facts.models)


def test_labels_are_ranked_beside_the_written_answers(triage: Evaluation) -> None:
    """By the likelihood of each label as the answer to the same prompt, next to what a guess among six gives."""
    labels = sorted({example.answer for example in tasks.load_task("bundled:triage", split="test").examples})
    rows = triage.table[triage.table["model"] == "original"]
    by_place = [labels[int(place)] for place in rows["ranked_place"]]
    assert list(rows["ranked"]) == [
        float(said == label) for said, label in zip(by_place, rows["reference"], strict=True)
    ]
    chances = {name: about.chance for name, about in triage.facts.measures.items()}
    guessed = pytest.approx(100 / 6)
    assert chances == {"accuracy": guessed, "ranked": guessed, "ranked_whole": guessed} | dict.fromkeys(
        ("perplexity", "kl", "macro_f1")
    )
    assert triage.facts.measures["ranked"].beside_chance == " (chance: 16.7)"


def test_many_labels_are_only_written(folders: Folders, tmp_path: Path) -> None:
    """Where each would take a pass over every row."""
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps({"text": f"Row {n}", "label": f"name {n}"}) + "\n" for n in range(13)))
    done = evaluated(folders.original, dataset=file, baseline=folders.original)
    assert list(done.facts.measures) == ["perplexity", "kl", "accuracy", "macro_f1"]


def test_the_rows_are_held_out_and_said_so(triage: Evaluation) -> None:
    """The test split of bundled data, other rows than those a calibration draws by itself."""
    assert triage.facts.dataset is not None
    assert triage.facts.dataset.split == "test"
    asked = {row.values["message"] for row in open_source("bundled:triage", None, "test").rows()}
    assert all(any(message in prompt for message in asked) for prompt in triage.table["prompt"])
    assert "is not known" in triage.facts.held_out


def test_the_figures_come_from_the_table(triage: Evaluation) -> None:
    """Computed again from its rows, by other means."""
    for one in triage.facts.models:
        rows = triage.table[triage.table["model"] == one.name]
        assert list(rows["row"]) == list(range(6))
        perplexity = float(np.exp(np.sum(rows["surprise"]) / np.sum(rows["predicted"])))
        assert one.scores["perplexity"].figure.value == pytest.approx(perplexity)
        right = [
            reference in answer.lower() for reference, answer in zip(rows["reference"], rows["answer"], strict=True)
        ]
        assert one.scores["accuracy"].figure.value == pytest.approx(100 * np.mean(right))
        assert max(rows["answer_tokens"]) <= 4


def test_it_is_read_again_as_it_was(triage: Evaluation) -> None:
    """Record and table; and the CSV has every figure."""
    assert triage.path is not None
    again = load_evaluation(triage.path)
    assert again.facts == triage.facts
    pd.testing.assert_frame_equal(again.table, triage.table)
    with (triage.path / "scores.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    (line,) = (one for one in lines if (one["model"], one["measure"]) == ("pruned", "perplexity"))
    score = triage.facts.models[1].scores["perplexity"]
    assert score.difference is not None
    assert float(line["value"]) == pytest.approx(score.figure.value)
    assert float(line["difference_low"]) == pytest.approx(score.difference.low)
    assert {one["measure"] for one in lines} == {*triage.facts.measures, "parameters"}


def test_it_is_known_to_the_workspace(folders: Folders, own_workspace: Path) -> None:
    """Wherever it lies; and the same seed gives the same figures."""
    done = [evaluated(folders.pruned, dataset="bundled:triage", **ANSWERS) for _ in range(2)]
    assert {one.path for one in done} == set(runs("evaluation"))
    assert all(one.path and one.path.is_relative_to(own_workspace) for one in done)
    assert done[0].facts.models == done[1].facts.models
    answers = done[0].table.groupby("row")["predicted"].first()
    labels = done[0].table.groupby("row")["reference"].first()
    assert list(answers) == [len(label) + 1 for label in labels]  # and the token that ends it


@pytest.fixture
def maths(tmp_path: Path) -> Path:
    """Twelve sums with worked answers in one file."""
    file = tmp_path / "maths.jsonl"
    rows = ({"question": f"{n} + 1?", "answer": f"Add one.\n#### {n + 1}"} for n in range(12))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_rows_of_the_calibration_are_left_out(folders: Folders, maths: Path, tmp_path: Path) -> None:
    """Of a file with one split: exactly the others, and none where it took all."""
    asked = {"model": folders.original, "dataset": maths, "max_length": 64, "kl": "fisher", "device": "cpu"}
    calibrated = calibrate(CalibrateRequest.asked(samples=7, output=tmp_path / "calibration", **asked))
    folder = checkpoint.prune(plan_by_threshold(calibrated, 0.9, "head"), tmp_path / "pruned")
    done = evaluated(folder, dataset=maths, samples=50)
    task = tasks.load_task(str(maths))
    drawn = {example.prompt for example in tasks.choose(task, 7, calibrated.facts.settings.seed)}
    used = set(done.table["prompt"])
    assert used == {example.prompt for example in task.examples} - drawn
    assert done.facts.held_out == "rows of split train that the calibration did not draw"
    assert list(done.facts.measures) == ["perplexity", "kl", "exact_match"]
    greedy = calibrate(CalibrateRequest.asked(samples=12, output=tmp_path / "all", **asked))
    other = checkpoint.prune(plan_by_threshold(greedy, 0.9, "head"), tmp_path / "other")
    with pytest.raises(InputError, match=r"dataset='.*': .*every row of split 'train'"):
        evaluated(other, dataset=maths)
    other_split = evaluated(folder, dataset="bundled:briefs")
    assert other_split.facts.held_out == f"split test; calibrated on {maths}, split train"
    assert list(other_split.facts.measures) == ["perplexity", "kl", "rouge1", "rouge2", "rougeL"]


def test_choices_are_ranked_and_text_is_only_read(folders: Folders, tmp_path: Path) -> None:
    """A choice too long for the rows is left out and counted; plain text has no score of its own."""
    file = tmp_path / "choices.jsonl"
    rows = [{"question": f"{n}?", "choices": ["yes", "no", "x" * (n * 20)], "answer": "AB"[n % 2]} for n in range(1, 7)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = evaluated(folders.pruned, dataset=file, max_length=140)
    assert list(done.facts.measures) == ["perplexity", "kl", "ranked", "ranked_whole"]
    left = 6 - done.facts.measures["ranked"].rows
    assert 0 < left < 6
    assert f"{left} of 6 rows were not ranked: their choices cannot be compared within max_length" in done.facts.notes
    ranked = done.table["ranked"].dropna()
    assert set(ranked) <= {0.0, 1.0}
    text = tmp_path / "text.txt"
    text.write_text("One line of text.\nAnother line of it.\n")
    read = evaluated(folders.pruned, dataset=text, max_length=140)
    assert list(read.facts.measures) == ["perplexity", "kl"]
    assert read.facts.notes == ("rows of the kind 'text' have no score besides their likelihood",)


def test_prompts_without_room_for_an_answer_are_left_out(folders: Folders, tmp_path: Path) -> None:
    """The others are scored; where none has room the note alone tells of it."""
    file = tmp_path / "long.jsonl"
    rows = [{"question": "x" * length, "answer": "yes"} for length in (10, 900, 20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = evaluated(folders.pruned, dataset=file, max_new_tokens=200)
    assert (done.facts.measures["exact_match"].rows, done.facts.measures["perplexity"].rows) == (2, 3)
    assert done.facts.notes == ("1 of 3 rows were not scored: the prompt leaves no room for an answer",)
    full = evaluated(folders.pruned, dataset=file, max_new_tokens=1020)
    assert list(full.facts.measures) == ["perplexity", "kl"]
    assert full.facts.notes == ("3 of 3 rows were not scored: the prompt leaves no room for an answer",)


def test_what_cannot_be_compared_is_refused(folders: Folders, tmp_path: Path) -> None:
    """Each with the field and the remedy, before a model runs."""
    stranger = tmp_path / "stranger"
    save_pico(make_pico("llama", vocab_size=100), stranger)
    with pytest.raises(InputError, match=r"baseline: '.*stranger' does not say what it was cut from"):
        evaluated(stranger)
    with pytest.raises(InputError, match=r"model='stranger': .*vocabulary"):
        evaluated(stranger, baseline=folders.original)
    other = save_pico(make_pico("llama", seed=1), tmp_path / "second").facts
    cut = checkpoint.prune(plan_of(other, keeping((), *((tuple(range(6)),) * 3))), tmp_path / "cut")
    with pytest.raises(InputError, match=r"baseline: the checkpoints were cut from '.*original', '.*second'"):
        evaluated(folders.pruned, cut)
    with pytest.raises(InputError, match=r"checkpoints=\(\)"):
        evaluated()
    with pytest.raises(InputError, match=r"samples=0"):
        evaluated(stranger, samples=0)
    short = tmp_path / "short"
    save_pico(make_pico("llama", max_position_embeddings=64), short)
    with pytest.raises(InputError, match=r"max_length=96: 'short' reads at most 64 tokens"):
        evaluated(short, baseline=folders.original)


def test_models_of_one_name_are_told_apart(folders: Folders, tmp_path: Path) -> None:
    """By their folders; the original among the checkpoints stands once."""
    save_pico(make_pico("llama", seed=1), tmp_path / "second" / "original")
    done = evaluated(tmp_path / "second" / "original", folders.original, baseline=folders.original)
    assert [one.name for one in done.facts.models] == ["original", "second/original"]


def test_the_original_alone_has_figures(folders: Folders) -> None:
    """Without a KL to itself."""
    done = evaluated(folders.original, baseline=folders.original)
    (only,) = done.facts.models
    assert only.scores["perplexity"].figure.low is not None
    assert "kl" not in only.scores


def test_damaged_records_are_refused(triage: Evaluation, tmp_path: Path) -> None:
    """A folder without one, one that says something else, a table that cannot be read."""
    assert triage.path is not None
    with pytest.raises(InputError, match="was not found: run `slim evaluate"):
        load_evaluation(tmp_path / "none")
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "record.json").write_text((triage.path / "record.json").read_text())
    (folder / "table.parquet").write_text("nothing")
    with pytest.raises(InputError, match=r"cannot be read \("):
        load_evaluation(folder)
    (folder / "record.json").write_text('{"kind": "plan"}')
    with pytest.raises(InputError, match=r"cannot be read \("):
        load_evaluation(folder)


SHORT = ("--samples", "3", "--max-length", "64", "--max-new-tokens", "3", "--device", "cpu")


def test_the_command_prints_for_people(folders: Folders, run: Run, tmp_path: Path) -> None:
    """Figures with intervals, differences with signs and units, what was held out, where it lies."""
    code, out, err = run("evaluate", folders.pruned, "--dataset", "bundled:triage", *SHORT, "--output", tmp_path / "e")
    assert code == 0, err
    assert "3 rows, " in err
    facts = load_evaluation(tmp_path / "e").facts
    difference = facts.models[1].scores["accuracy"].difference
    assert difference is not None
    assert in_words(facts.measures["accuracy"], difference, sign=True) in out
    assert " points [" in out
    assert "Held out: which rows pruned was calibrated on is not known" in out
    assert f"Evaluation: {tmp_path / 'e'}" in out


def test_the_command_prints_for_programs(folders: Folders, run: Run, maths: Path) -> None:
    """One JSON value with every option in it."""
    options = ("--template", "maths", "--columns", "problem=question,solution=answer", "--prompt", "Do: {problem}")
    how = ("--positions", "answer", "--seed", "3", "--batch-size", "2", "--baseline", folders.original)
    code, out, err = run("evaluate", folders.pruned, "--dataset", maths, *options, *how, *SHORT, "--json")
    assert code == 0, err
    told: dict[str, Any] = json.loads(out)
    expected = {"positions": "answer", "seed": 3, "batch_size": 2, "samples": 3, "max_new_tokens": 3}
    assert expected.items() <= told["settings"].items()
    assert (told["dataset"]["template"], told["dataset"]["prompt"]) == ("maths", "Do: {problem}")
    assert [one["name"] for one in told["models"]] == ["original", "pruned"]
    assert told["models"][1]["parameters"] < told["models"][0]["parameters"]
    assert "shapes" not in told["models"][0]["model"]
    assert Path(told["path"]).is_dir()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--samples", "0"), "samples=0"),
        (("--split", "none"), "split 'none'"),
        (("--dataset", "nowhere.jsonl"), "'nowhere.jsonl' was not found"),
        (("--baseline", "nowhere"), "model 'nowhere'"),
        (("--speed", "--speed-rows", "1,x"), "speed_rows='x'"),
        (("--speed", "--speed-rows", "0"), "speed_rows.0=0"),
        (("--speed", "--speed-tokens", "2000"), "speed_tokens=2000, speed_steps=32: "),
        (("--tasks", "no_such_task.yaml"), "tasks=no_such_task.yaml: "),
        (("--positions", "some"), "positions"),
    ],
)
def test_bad_input_is_one_line(folders: Folders, run: Run, arguments: tuple[str, ...], line: str) -> None:
    """Exit code 2, and no traceback."""
    code, out, err = run("evaluate", folders.pruned, "--device", "cpu", *arguments)
    assert code == 2
    assert line in err
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_an_output_that_exists_is_refused(folders: Folders, run: Run, tmp_path: Path) -> None:
    """Before anything is measured."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    code, _, err = run("evaluate", folders.pruned, "--output", tmp_path / "taken")
    assert code == 2
    assert "exists and is not empty" in err
