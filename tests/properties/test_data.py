"""Whatever an upload holds: examples with text that can be written down, or one clean line."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim.core import workspace
from slim.data import tasks, uploads
from slim.data.columns import fit_mapping
from slim.data.sources import FORMATS, open_source
from slim.data.templates import TEMPLATES
from tests.fuzz import ODD, TEXTS, cases, clean, damaged, edited

ROWS: list[dict[str, Any]] = [
    {"question": "How many?", "choices": ["one", "two"], "gold": 1, "answer": "two", "label": "a"},
    {
        "question": "Which?",
        "choices": {"text": ["x", "y"], "label": ["1", "2"]},
        "gold": "2",
        "answer": ["y"],
        "label": "b",
    },
    {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "text": "Some text",
        "summary": "Text",
        "answer": {"text": "no", "value": 3},
    },
]
COLUMNS = st.sampled_from(["question", "answer", "text", "choices", "gold", "messages", "label", "", "nowhere", "x\0y"])
ROLES = st.sampled_from([*sorted({role for one in TEMPLATES.values() for role in one.roles}), "", "nobody"])
PROMPTS = st.one_of(
    st.lists(
        st.one_of(
            COLUMNS.map(lambda name: f"{{{name}}}"), st.sampled_from(["{", "}", "{{", "}}", "{labels}", "\n", " a "])
        ),
        max_size=5,
    ).map("".join),
    TEXTS,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def check(path: Path, content: bytes, template: str | None, columns: dict[str, str], prompt: str | None) -> None:
    """Reads the file as a task, as the page and the command line do."""
    path.write_bytes(content)
    name = str(path)
    clean(lambda: tasks.columns_of(name), name)
    found = clean(lambda: tasks.load_task(name, template=template, columns=columns, prompt=prompt))
    if found is None:
        return
    assert found.examples
    drawn = tasks.choose(found, 2, seed=0)
    assert drawn
    for example in drawn:
        for text in (
            example.prompt,
            example.answer,
            *example.choices,
            *(part for turn in example.turns for part in turn),
        ):
            assert isinstance(text, str)
            text.encode()


KINDS = st.one_of(st.none(), st.sampled_from([*TEMPLATES, "unknown"]))
MAPPED = st.one_of(st.just({}), st.just({}), st.dictionaries(ROLES, COLUMNS, max_size=3))
WORDED = st.one_of(st.none(), st.none(), PROMPTS)


@st.composite
def json_rows(draw: st.DrawFn, one_a_line: bool) -> bytes:
    """Rows as JSON, edited, at times damaged."""
    rows = draw(st.one_of(edited(ROWS), edited(ROWS), st.lists(edited(ROWS[0]), max_size=4), st.lists(ODD, max_size=3)))
    lines = rows if isinstance(rows, list) else [rows]
    plain = draw(st.booleans())
    text = "\n".join(json.dumps(line, ensure_ascii=plain) for line in lines) if one_a_line else json.dumps(rows)
    content = text.encode(errors="surrogatepass")
    return draw(damaged(content)) if draw(st.integers(0, 3)) == 0 else content


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json(folder: Path, ending: str) -> None:
    """A list of objects or an object a line."""

    @given(st.one_of(json_rows(ending == "jsonl"), json_rows(ending == "json")), KINDS, MAPPED, WORDED)
    def every(content: bytes, template: str | None, columns: dict[str, str], prompt: str | None) -> None:
        check(folder / f"rows.{ending}", content, template, columns, prompt)

    every()


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A CSV file by any writer, at times damaged."""
    cells = st.one_of(TEXTS, COLUMNS, st.sampled_from(['"', ",", "\n", "1", "['a', 'b']", '"a,b', "\r"]))
    rows = draw(st.lists(st.lists(cells, max_size=5), max_size=6))
    if draw(st.booleans()):
        rows = [["question", "answer", "text"], *rows]
    out = io.StringIO()
    mark = draw(st.sampled_from(",;\t"))
    for row in rows:
        if draw(st.booleans()):
            csv.writer(out, delimiter=mark, quoting=csv.QUOTE_ALL).writerow(row)
        else:
            out.write(mark.join(row) + draw(st.sampled_from(["\n", "\r\n", "\r", ""])))
    content = out.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])), errors="surrogatepass")
    return draw(damaged(content)) if draw(st.integers(0, 3)) == 0 else content


@pytest.mark.parametrize("ending", ["csv", "txt"])
def test_tables_and_text(folder: Path, ending: str) -> None:
    """Quotes that never end, other encodings, rows of any width."""

    @given(tables(), KINDS, MAPPED, WORDED)
    def every(content: bytes, template: str | None, columns: dict[str, str], prompt: str | None) -> None:
        check(folder / f"rows.{ending}", content, template, columns, prompt)

    every()


def test_parquet(folder: Path) -> None:
    """Real columns of many kinds, and a damaged file."""
    kinds = {
        "question": ["How many?", "Which?"],
        "answer": ["two", None],
        "text": pd.array(["one", "two"], dtype="string"),
        "label": pd.Categorical(["a", "b"]),
        "gold": [1, 0],
        "choices": [["one", "two"], ["x", "y"]],
        "when": pd.to_datetime(["2020-01-01", None]),
        "bytes": [b"\xff", b""],
        "number": [float("nan"), float("inf")],
    }
    frame = pd.DataFrame(kinds)
    frame.to_parquet(folder / "good.parquet")
    good = (folder / "good.parquet").read_bytes()

    @cases(0.4)
    @given(st.one_of(damaged(good), st.just(good)), KINDS, MAPPED, WORDED)
    def every(content: bytes, template: str | None, columns: dict[str, str], prompt: str | None) -> None:
        check(folder / "rows.parquet", content, template, columns, prompt)

    every()


@given(names=st.lists(st.one_of(COLUMNS, TEXTS), max_size=6), template=KINDS, columns=MAPPED, prompt=WORDED)
def test_layouts(names: list[str], template: str | None, columns: dict[str, str], prompt: str | None) -> None:
    """Any columns with any mapping and wording: a layout names only columns that are there."""
    found = clean(lambda: fit_mapping(names, template, columns, prompt, "rows.csv"))
    if found is not None:
        assert set(found.columns.values()) <= set(names)
        assert set(found.read) <= set(names)


@given(
    source=st.one_of(
        TEXTS, st.sampled_from(["bundled:", "bundled:x", ".", "/dev/zero", "/dev/null", "a.csv", "~nobody/x"])
    )
)
def test_names_of_sources(source: str) -> None:
    """A name that is not a file is refused before it is opened; a name of the Hub is not asked for."""
    if "/" not in source.strip("./~") and source.isascii() and source.isalnum():
        source += ".csv"
    clean(lambda: open_source(f"{source}.csv"))
    clean(lambda: open_source(f"/nowhere/{source}"))
    clean(lambda: open_source(f"~{source}/x.csv"))


@given(name=TEXTS, ending=st.one_of(TEXTS, st.sampled_from([".csv", ".CSV", ".." + "a" * 300, "/../../x"])))
def test_uploads_stay_in_their_folder(name: str, ending: str) -> None:
    """Whatever a browser says that the file is called."""
    kept = clean(lambda: uploads.keep_upload(name + ending, b"text\nrow\n"))
    if kept is None:
        assert not (name + ending).lower().endswith(tuple(FORMATS))
        return
    assert kept.parent == workspace.subfolder("uploads")
    assert kept.read_bytes() == b"text\nrow\n"
    assert kept in uploads.kept_uploads()
