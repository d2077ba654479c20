"""Tasks: rows of any source as examples, which are drawn, and sources too large for memory."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from slim.core.errors import InputError
from slim.core.reporter import Reporter
from slim.data import tasks
from slim.data.tasks import Example, Task, choose, columns_of, load_task
from tests.data.test_sources import ROWS, write_jsonl

PEAK = """
import json, resource, sys
from slim.data import tasks

def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

tasks.KEPT_BYTES = 2**22
tasks.choose(tasks.load_task(sys.argv[1]), 8, 0)
before = megabytes()
task = tasks.load_task(sys.argv[2])
drawn = tasks.choose(task, 8, 0)
print(json.dumps({"grown": megabytes() - before, "rows": task.rows, "drawn": [example.answer for example in drawn]}))
"""


def test_a_file_becomes_a_task(tmp_path: Path) -> None:
    """With the layout that was guessed."""
    task = load_task(write_jsonl(tmp_path / "a.jsonl", ROWS))
    assert (task.kind, task.split, task.config, task.revision, task.rows, task.left_out) == (
        *("questions", "train", None, None),
        *(2, 0),
    )
    assert task.examples == tuple(Example(row["question"], row["answer"].strip()) for row in ROWS)
    assert task.layout is not None
    assert dict(task.layout.columns) == {"question": "question", "answer": "answer"}
    assert task.stream is None


def test_bundled_tasks_have_their_own_wording() -> None:
    """As long as no other is chosen; the labels of triage are those of its rows."""
    assert load_task().examples[0].prompt.startswith("Summarise this passage in one or two sentences.\n\n")
    triage = load_task("bundled:triage").examples[0].prompt
    assert "one word: access, billing, cancellation, delivery, fault or question.\n\n" in triage
    assert load_task(prompt="{subject}").examples[0].prompt == "economics"
    assert load_task(template="text", columns={"text": "subject"}).examples[0] == Example("", "economics")


def test_everything_about_the_data_can_be_chosen(tmp_path: Path) -> None:
    """Template, columns and wording together."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "1 + 1?", "a": "2", "h": "add"}])
    assert columns_of(path) == ("q", "a", "h")
    task = load_task(path, template="maths", columns={"problem": "q", "solution": "a"}, prompt="{problem} Hint: {h}")
    assert task.kind == "maths"
    assert task.examples == (Example("1 + 1? Hint: add", "2"),)


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    """Null, blank, or not there at all."""
    rows = [{"question": "a", "answer": None}, {"question": "b", "answer": "  "}, {"question": "c"}, *ROWS]
    task = load_task(write_jsonl(tmp_path / "a.jsonl", rows))
    assert (task.rows, task.left_out) == (2, 3)


def test_a_column_that_the_first_rows_lack_is_found(tmp_path: Path) -> None:
    """Columns are those of many rows, not of the first one."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "a"}] * 50 + ROWS)
    assert load_task(path).rows == 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"foo": 1, "bar": 2}\n', r"a\.jsonl' has the columns \['bar', 'foo'\]"),
        ("a.csv", "question,reply\nx,y\n", r"\['question', 'reply'\]"),
        ("a.csv", "question,answer\n", "a.csv' has no rows"),
        ("a.jsonl", "\n\n", "a.jsonl' has no rows"),
        ("a.jsonl", "{}\n", "a.jsonl' has no rows"),
        (
            "a.jsonl",
            '{"messages": "hello"}\n',
            r"l'.*1 row was left out: 'messages' is not a list of .*\(row 1\)",
        ),
        ("a.jsonl", '{"query": "a", "choices": ["b"], "gold": 7}\n', r"a\.jsonl'.*'gold' is not the place .*\(row 1\)"),
        ("a.txt", "\n\n  \n", r"a.txt'.*3 rows were left out: the column 'text' is empty \(the first is row 1\)"),
        (
            "a.jsonl",
            '{"question": "x", "answer": ""}\n' * 3,
            "a.jsonl'.*3 rows were left out: the column 'answer'",
        ),
        (
            "a.jsonl",
            '{"question": "x", "answer": null}\n' * 3,
            "a.jsonl'.*3 rows were left out: the column 'answer'",
        ),
        ("a.csv", "question,answer\nx\ny\n", "a.csv'.*the column 'answer' is empty"),
    ],
)
def test_files_without_a_usable_row(tmp_path: Path, name: str, content: str, words: str) -> None:
    """The message names the file and what is missing."""
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        load_task(str(tmp_path / name))


def test_one_row_is_a_dataset(tmp_path: Path) -> None:
    """However many are asked for."""
    task = load_task(write_jsonl(tmp_path / "a.jsonl", ROWS[:1]))
    assert choose(task, 16, 0) == [Example("2 + 2?", "4")]


def test_equal_rows_stay(tmp_path: Path) -> None:
    """A dataset may say a thing twice."""
    assert load_task(write_jsonl(tmp_path / "a.jsonl", ROWS[:1] * 5)).rows == 5


@pytest.mark.parametrize("samples", [0, -3])
def test_at_least_one_row_is_asked_for(samples: int) -> None:
    """The message repeats the value."""
    with pytest.raises(InputError, match=f"samples={samples}"):
        choose(load_task("bundled:triage"), samples, 0)


def test_rows_are_drawn_without_replacement_by_the_seed() -> None:
    """The same seed the same rows, no row twice, all where more are asked for."""
    task = load_task("bundled:triage", split="validation")
    assert choose(task, 10, 3) == choose(task, 10, 3) != choose(task, 10, 4)
    assert len(set(choose(task, 30, 0))) == 30
    assert sorted(choose(task, 999, 0), key=repr) == sorted(task.examples, key=repr)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of 5,000 rows, every tenth without an answer, of which only a part is kept in memory."""
    monkeypatch.setattr(tasks, "KEPT_BYTES", 2**19)
    rows = [
        {"question": f"{row}?", "answer": "" if row % 10 == 0 else str(row), "rest": "x" * 50} for row in range(5000)
    ]
    return write_jsonl(tmp_path / "large.jsonl", rows)


class Shares(Reporter):
    """Keeps which share is done."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def progress(self, done: float, total: float, message: str) -> None:
        self.shares.append(done / total)


def test_a_large_source_is_estimated_and_drawn_from_as_a_whole(large: str) -> None:
    """Without replacement, by the seed, from its start to its end, rows without an answer never."""
    task = load_task(large)
    assert task.stream is not None
    assert len(task.examples) == tasks.PEEK
    assert abs(task.rows - 4500) < 100
    seen = Shares()
    drawn = [int(example.answer) for example in choose(task, 300, 0, seen)]
    shares = seen.shares
    assert shares == sorted(shares)
    assert shares[-1] > 0.8
    assert len(set(drawn)) == 300
    assert all(row % 10 for row in drawn)
    assert 2200 < sum(drawn) / 300 < 2800
    assert max(drawn) > 4800
    assert drawn == [int(example.answer) for example in choose(task, 300, 0)]
    assert drawn != [int(example.answer) for example in choose(task, 300, 1)]
    assert len(choose(task, 9999, 0)) == 4500


def test_every_row_of_a_stream_is_as_likely() -> None:
    """Whatever its place, and however many are drawn."""
    rows = [Example(f"{row}?", str(row)) for row in range(4)]
    task = Task("made here", None, "train", "questions", (), stream=lambda: ((row, 0.5) for row in rows))
    for samples in (1, 2, 3):
        drawn = Counter(example for seed in range(4000) for example in choose(task, samples, seed))
        assert all(abs(drawn[row] - 1000 * samples) < 150 for row in rows)  # more than five standard deviations


def test_damage_late_in_a_large_source_is_named(large: str) -> None:
    """When it is drawn from."""
    with Path(large).open("a", encoding="utf-8") as file:
        file.write("oops\n")
    task = load_task(large)
    with pytest.raises(InputError, match="line 5001 is not JSON"):
        choose(task, 3, 0)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A CSV of 120 MB: no more than what is kept of it, drawn from end to end."""
    line = f"{'question ' * 40},{'answer ' * 20}"
    small, big = tmp_path / "small.csv", tmp_path / "big.csv"
    for path, count in ((small, 20_000), (big, 240_000)):
        with path.open("w", encoding="utf-8") as file:
            file.write("question,answer\n")
            file.writelines(f"{line}{row}\n" for row in range(count))
    assert big.stat().st_size > 120e6
    run = subprocess.run([sys.executable, "-c", PEAK, small, big], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["grown"] < 8
    assert abs(found["rows"] - 240_000) < 5000
    assert max(int(answer.split()[-1]) for answer in found["drawn"]) > 120_000
