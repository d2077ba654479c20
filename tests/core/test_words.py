"""The words of the project: every phrase is found wherever it is read, and everything written is free of them."""

from pathlib import Path

import pytest

from tests import words
from tests.words import found_in


def test_everything_is_written_in_the_words_of_the_project() -> None:
    """A failure names the file, the line, the phrase and what to write."""
    hits = words.of_repository()
    assert not hits, "\n" + "\n".join(map(str, hits))


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.py", '"""A plan.\n\nMade for a person\n"""\n', ["3: a person"]),
        ("a.py", 'x = 1\n"""What it is."""\n', ["2: What it is …"]),
        ("a.py", "def f():\n    # kept by a\n    # person\n    x = 1\n", ["2: a person"]),
        ("a.py", "x = 1  # what is left\n# over by repair\n", []),
        ("a.py", 'raise Error(\n    f"model={x}: it is no "\n    "file: name one."\n)\n', ["2: is no file"]),
        ("a.py", 'option(help="What to remove. A unit.")\n', ["1: What to remove …"]),
        ("a.py", 'title = "Faithfulness"\nkind = "faithfulness"\n', ["1: Faithfulness"]),
        ("a.py", "is_told = a_person if x is None else told  # `a person`\n", []),
        ("a.py", '"""Whether x is None."""\nsaid = "The first is none."\n', ["2: is none"]),
        ("a.js", "// one line\n// What goes\nlet a;\n", []),
        ("a.js", "// one line.\n// What goes\nlet a;\n", ["2: What goes …"]),
        (
            "a.js",
            "/**\n * What goes: units.\n * @param {number} unit is none\n */\n",
            ["2: What goes: units …", "3: is none"],
        ),
        ("a.js", 'tell("a person"); // https://a\n', ["1: a person"]),
        ("a.css", "a { b: c }\n/* is told */\n", ["2: is told"]),
        ("a.html", '<p title="of a person">x</p>\n<b>What goes</b>\n', ["1: a person", "2: What goes …"]),
        ("a.md", "# What is kept\n\nWhat is kept.\n\n```\na person\n```\nWhat is it?\n", ["3: What is kept …"]),
        ("a.md", "1. What is kept\n2. all that a\n   person wrote\n", ["1: What is kept …", "2: a person"]),
        ("a.md", "There is no judge, and it is no longer here, and is not what `is told`.\n", []),
        (
            "a.md",
            "It looks into a file that makes up for what is left over.\n",
            ["1: looks into", "1: makes up for", "1: what is left over"],
        ),
        ("a.sh", "#!/bin/sh\n# Made for a\n# person.\necho 'a person'  # is told\n", ["2: a person"]),
        ("a.json", '"a person"', []),
    ],
)
def test_a_phrase_is_found_where_it_is_read(name: str, text: str, found: list[str]) -> None:
    """By its line, across line breaks, and not in names, code, questions or headings."""
    assert [f"{hit.line}: {hit.phrase}" for hit in found_in(Path(name), text)] == found


def test_a_hit_is_a_line_that_an_editor_opens() -> None:
    """The file and the line first, then the phrase and its replacement."""
    (hit,) = found_in(Path("docs/a.md"), "It is told.\n")
    assert str(hit) == "docs/a.md:1: is told → is reported; is passed"
