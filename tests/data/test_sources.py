"""Reading rows: what every kind of file gives, and the one sentence for every file that cannot be used."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from slim.core.errors import InputError
from slim.data import sources
from slim.data.sources import open_source

ROWS = [{"question": "2 + 2?", "answer": "4"}, {"question": "Größe, etwa?", "answer": '30 €\n("ca.")'}]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """One row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def values_of(path: Path | str) -> list[dict[str, Any]]:
    """Every row of a file."""
    return [row.values for row in open_source(str(path)).rows()]


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: write_jsonl(path, ROWS),
    "list.json": lambda path: path.write_text(" \n" + json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: write_jsonl(path, ROWS),
    "a.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False),
    "A.CSV": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False, lineterminator="\r\n"),
    "semicolons.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False, sep=";"),
    "tabs.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False, sep="\t"),
    "marked.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False, encoding="utf-8-sig"),
    "a.parquet": lambda path: pd.DataFrame(ROWS).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    """Whatever the separator, the line ends or a byte order mark; as often as it is asked."""
    WRITERS[name](tmp_path / name)
    source = open_source(str(tmp_path / name))
    assert source.split == "train"
    for _ in range(2):
        rows = list(source.rows())
        assert [row.values for row in rows] == ROWS
        assert rows[-1].share == 1


def test_text_is_read_line_by_line(tmp_path: Path) -> None:
    """Blank lines as well: the template decides what is empty."""
    (tmp_path / "a.txt").write_bytes("First line.\r\n\n  \nSecond — line.".encode())
    assert [row["text"] for row in values_of(tmp_path / "a.txt")] == ["First line.", "", "  ", "Second — line."]


def test_csv_values_stay_as_they_are_written(tmp_path: Path) -> None:
    """No number loses its zeros, and an answer may be NA or null."""
    (tmp_path / "a.csv").write_text("question, answer\n007,NA\n1.50,null\ntrue,\n")
    assert [tuple(row.values()) for row in values_of(tmp_path / "a.csv")] == [
        ("007", "NA"),
        ("1.50", "null"),
        ("true", ""),
    ]


def test_rows_may_lack_columns(tmp_path: Path) -> None:
    """A short line of a CSV, a line of JSON with other keys or other types."""
    (tmp_path / "a.csv").write_text("question,answer\nalone\n\nwhy,so\n")
    assert values_of(tmp_path / "a.csv") == [
        {"question": "alone", "answer": None},
        {"question": "why", "answer": "so"},
    ]
    rows = [{"question": "a", "answer": 4}, {"question": "b"}, {"answer": "four", "other": [1]}]
    assert values_of(write_jsonl(tmp_path / "a.jsonl", rows)) == rows


def test_rows_know_their_line(tmp_path: Path) -> None:
    """That of a text file, even after a field of several lines."""
    (tmp_path / "a.csv").write_text('question,answer\n"one\ntwo",x\n\nthree,y\n')
    assert [row.number for row in open_source(str(tmp_path / "a.csv")).rows()] == [3, 5]


def test_labels_of_parquet_get_their_names(tmp_path: Path) -> None:
    """Where the file says what its numbers stand for; −1 stands for no label."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    data.to_parquet(str(tmp_path / "a.parquet"))
    assert [row["label"] for row in values_of(tmp_path / "a.parquet")] == ["good", "bad", None]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "a.jsonl' is an empty file"),
        ("a.csv", b"question,answer\nx,y\nGr\xf6\xdfe,1\n", r"a.csv' is not UTF-8 \(byte 0xF6 in line 3, place 3\)"),
        ("a.txt", b"caf\xe9 \xff\xfe", "a.txt' is not UTF-8 .*byte 0xE9 in line 1, place 4"),
        ("a.jsonl", "{}\n".encode("utf-16"), "a.jsonl' is not UTF-8 .*byte 0xFF in line 1, place 1"),
        ("a.txt", "it ends ü".encode()[:-1], "a.txt' is not UTF-8"),
        ("a.csv", b"question,answer\nx,y\nx,y,z\n", "a.csv' could not be read as csv: line 3 has 3 fields and .* 2"),
        ("a.csv", b"question,answer\nx,y" + b"z" * 99, "could not be read as csv: line 2: field larger"),
        ("a.csv", b'question,answer\nx,"y\nx,y\n', "could not be read as csv: line 3: unexpected end of data"),
        ("a.csv", b'question,answer\nx,"5" tall"\n', "could not be read as csv: line 2: .* expected after"),
        ("a.csv", b"question,answer,answer\nx,y,z\n", "a.csv' could not be read as csv: .*'answer' twice"),
        ("a.jsonl", b'{"question": "x"}\n{"question": "x", "ans', "could not be read as jsonl: line 2 is not JSON"),
        ("a.jsonl", b"[1, 2]\n", "could not be read as jsonl: line 1 is not an object"),
        ("a.json", b'[{"a": 1}, 2]', "could not be read as json: item 2 is not an object"),
        ("a.json", b'[{"a": 1}', "could not be read as json: "),
        ("a.json", b'[{"a": "' + b"x" * 99 + b'"}]', "could not be read as json: .*save it as .jsonl"),
        ("a.jsonl", b"[" * 60, "could not be read as jsonl: "),
        ("a.txt", b"x" * 99, "could not be read as txt: line 1 is longer than 64"),
        ("a.parquet", b"no parquet at all", "a.parquet' could not be read as parquet: "),
        ("a.xlsx", b"PK", "'.xlsx'"),
        ("a", b"question", "ending ''"),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, words: str
) -> None:
    """One line that names the file, what is wrong with it, and where."""
    monkeypatch.setattr(sources, "LONGEST", 64)
    monkeypatch.setattr(sources, "LARGEST_JSON", 64)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        values_of(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_parquet_file_cut_short_is_refused(tmp_path: Path) -> None:
    """As one that never was."""
    pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])
    with pytest.raises(InputError, match=r"a\.parquet' could not be read as parquet"):
        values_of(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "bundled:poems"}, "'bundled:poems'"),
        ({"source": "bundled:briefs", "split": "dev"}, "'dev'"),
        ({"source": "bundled:briefs", "config": "main"}, "config='main'"),
        ({"source": "bundled:briefs", "revision": "main"}, "revision='main'"),
        ({"source": "nowhere/nothing.jsonl"}, "'nowhere/nothing.jsonl' was not found"),
        ({"source": "not a name"}, "'not a name' was not found"),
        ({"source": "a/b/c"}, "'a/b/c' was not found"),
        ({"source": "csv"}, "'csv' was not found"),
    ],
)
def test_sources_that_are_not_there(arguments: dict[str, str], words: str) -> None:
    """The message repeats the value. `csv` is refused, although `datasets` would read the working folder for it."""
    with pytest.raises(InputError, match=words):
        open_source(**arguments)


def test_a_file_has_one_split_and_no_configuration(tmp_path: Path) -> None:
    """Other options are refused rather than ignored; a folder is not a dataset."""
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    for field in ("config", "split", "revision"):
        with pytest.raises(InputError, match=f"{field}.'test'|{field} 'test'"):
            open_source(path, **{field: "test"})
    with pytest.raises(InputError, match=str(tmp_path)):
        open_source(str(tmp_path))
