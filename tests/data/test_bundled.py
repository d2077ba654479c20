"""The bundled datasets: sizes, shapes, labels, and no row that resembles another."""

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest

from slim.data.bundled_scores import beside_chance, bundled_scores
from slim.data.tasks import BUNDLED, DATA, SPLITS, load_task, reading_of

Row = dict[str, Any]
LABELS = ("access", "billing", "cancellation", "delivery", "fault", "question")
COUNTS = {"briefs": (160, 40, 60), "triage": (234, 54, 108), "everyday": (288, 72, 200)}
KEYS = {
    "briefs": {"id", "subject", "register", "passage", "summary"},
    "triage": {"id", "message", "label", "hard"},
    "everyday": {"id", "subject", "question", "choices", "answer"},
}


def rows_of(name: str, split: str) -> list[Row]:
    """A split as it lies on disk."""
    return [json.loads(line) for line in (DATA / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def every_row(name: str) -> list[Row]:
    """All splits, one after another."""
    return [row for split in SPLITS for row in rows_of(name, split)]


@pytest.mark.parametrize("name", BUNDLED)
def test_rows_and_keys(name: str) -> None:
    """Every row has the keys, none is empty, ids are unique, and each split loads whole."""
    assert tuple(len(rows_of(name, split)) for split in SPLITS) == COUNTS[name]
    rows = every_row(name)
    assert len(rows) >= {"briefs": 240, "triage": 360, "everyday": 400}[name]
    assert all(row.keys() == KEYS[name] for row in rows)
    assert all(value.strip() for row in rows for value in row.values() if isinstance(value, str))
    assert len({row["id"] for row in rows}) == len(rows)
    for split, count in zip(SPLITS, COUNTS[name], strict=True):
        task = load_task(f"bundled:{name}", split=split)
        assert (len(task.examples), task.split) == (count, split)


def test_briefs_are_short_prose_with_a_shorter_summary() -> None:
    """80 to 220 words, told in one or two sentences."""
    for row in every_row("briefs"):
        assert 80 <= len(row["passage"].split()) <= 220, row["id"]
        sentences = re.findall(r"[.!?]['\"’”)]*(?=\s+[A-Z0-9'\"‘“(]|$)", row["summary"].strip())
        assert 1 <= len(sentences) <= 2, (row["id"], row["summary"])
        assert len(row["summary"].split()) < len(row["passage"].split()) / 2, row["id"]


def test_triage_is_balanced_within_each_split() -> None:
    """As many rows of each of six labels; some are hard and some are not."""
    assert len(LABELS) == 6
    for split, count in zip(SPLITS, COUNTS["triage"], strict=True):
        labels = Counter(row["label"] for row in rows_of("triage", split))
        assert labels == dict.fromkeys(LABELS, count // 6)
        assert {row["hard"] for row in rows_of("triage", split)} == {True, False}


def test_everyday_has_no_right_choice_without_its_question() -> None:
    """Each set of choices is right once for each of them within its split, and every place is right equally often.

    So any rule that reads the choices alone is right as often as chance.
    """
    sets: dict[frozenset[str], str] = {}
    for split in SPLITS:
        rows = rows_of("everyday", split)
        right: dict[frozenset[str], list[str]] = {}
        for row in rows:
            assert len(set(row["choices"])) == len(row["choices"]) in (2, 4), row["id"]
            right.setdefault(frozenset(row["choices"]), []).append(row["choices"][row["answer"]])
        assert all(len(answers) == len(set(answers)) == len(one) for one, answers in right.items())
        assert not sets.keys() & right.keys()
        sets |= dict.fromkeys(right, split)
        places = Counter((len(row["choices"]), row["answer"]) for row in rows)
        assert all(places[count, place] == places[count, 0] for count in (2, 4) for place in range(count))


def test_everyday_is_plain_sentences_in_many_subjects() -> None:
    """Questions and choices that begin and end as sentences do, about a dozen subjects or more, none above a fifth."""
    rows = every_row("everyday")
    for row in rows:
        assert re.fullmatch(r"[A-Z].*\?", row["question"]), row["id"]
        assert all(re.fullmatch(r"[A-Z].*[a-z]\.", choice) for choice in row["choices"]), row["id"]
    subjects = Counter(row["subject"] for row in rows)
    assert len(subjects) >= 12
    assert max(subjects.values()) <= len(rows) / 5


def test_everyday_is_asked_without_its_choices() -> None:
    """The right one is the answer, all are offered, and none stands in the prompt."""
    for row, example in zip(
        rows_of("everyday", "test"), load_task("bundled:everyday", split="test").examples, strict=True
    ):
        assert (example.prompt, example.answer) == (row["question"], row["choices"][row["answer"]])
        assert example.choices == tuple(row["choices"])


def word_grams(text: str) -> set[tuple[str, ...]]:
    """Runs of four words, or the whole text where it has fewer."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + 4]) for start in range(max(1, len(words) - 3))}


@pytest.mark.parametrize(
    ("name", "column"),
    [("briefs", "passage"), ("briefs", "summary"), ("triage", "message"), ("everyday", "question")],
)
def test_no_row_resembles_another(name: str, column: str, record_property: Callable[[str, object], None]) -> None:
    """Of the runs of four words of the shorter text less than a fifth are in the other, in and across splits."""
    grams = [(row["id"], word_grams(row[column])) for row in every_row(name)]
    worst = max((len(a & b) / min(len(a), len(b)), x, y) for (x, a), (y, b) in combinations(grams, 2))
    record_property("largest shared part", worst)
    assert worst[0] < 0.2, worst


def test_each_task_says_what_the_bundled_model_gets_beside_chance() -> None:
    """Wherever rows are read; one task at least is far above chance; other sources say nothing."""
    scores = bundled_scores()
    assert scores.keys() == set(BUNDLED)
    for name, found in scores.items():
        assert {one.rows for one in found} == {len(rows_of(name, "test"))}
        said = reading_of(load_task(f"bundled:{name}"))[-1]
        assert all(one.sentence in said for one in found)
        assert f"{found[0].value:.1f}" in said
    best = max(scores["everyday"], key=lambda one: one.value - one.chance)
    error = (best.high - best.low) / (2 * 1.96)
    assert best.value - best.chance > 3 * error
    labels = {one.title for one in scores["triage"]}
    assert labels == {"accuracy", "accuracy, likelihood", "accuracy, likelihood per character"}
    assert beside_chance("rows.jsonl") is beside_chance("bundled:general") is beside_chance("briefs") is None
