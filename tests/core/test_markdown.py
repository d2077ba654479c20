"""Text that stays text, by a parser of CommonMark and, in tests/pages, by Streamlit's own in a browser."""

import pytest
from markdown_it import MarkdownIt

from slim.core.markdown import escaped, fenced

SIGNS = (
    "- a list",
    "1. a list",
    "+ a list",
    "# title",
    "> a quote",
    "a | b",
    "<b>",
    "&lt;",
    "[a](b)",
    "![](a.png)",
    "**a**",
    "__a__",
    "_a_ b_c _",
    "`a`",
    "~~a~~",
    "a\n\n# b",
    "    code",
    "***",
    "---",
    "- - -",
    "- [ ] a",
    "[1.5, 2](b) [2][3] [4]: x",
    "[1]: x",
    "[^1]: x",
    "$a$ $$b$$",
    ":red[a] x:help[y] :small[z]{.a}",
    ":material/home: and :material/home",
    ":smile: :+1: 12:100: a:b:c: d",
    "::: a",
    "bundled:triage: 12 rows at 10:30",
    "a\\",
    "~a~ ^b^ ==c== {d}",
)


def shown(text: str) -> str | None:
    """The text of a line of Markdown; None where it is more than a paragraph of plain text."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    if [token.type for token in tokens] != ["paragraph_open", "inline", "paragraph_close"]:
        return None
    parts = tokens[1].children or []
    return "".join(part.content for part in parts) if {part.type for part in parts} == {"text"} else None


@pytest.mark.parametrize("said", [*SIGNS, "-- -"])
def test_a_sign_is_a_sign(said: str) -> None:
    """Text comes back from Markdown as it went in, on one line."""
    assert shown(escaped(said)) == " ".join(said.split())
    (block,) = MarkdownIt("commonmark").parse(fenced(f"{said}\n```\n~~~\n````"))
    assert block.content == f"{said}\n```\n~~~\n````\n"


def test_colons_are_signs_where_something_can_come_of_them() -> None:
    """Streamlit's colors and icons, and emoji; a colon before a blank stays as it is."""
    assert escaped("rows: a:red[b]") == r"rows: a\:red\[b\]"
    assert escaped(":material/home: a") == r"\:material\/home: a"
    assert escaped(":smile: a") == r"\:smile\: a"
    assert escaped("an end:") == r"an end\:"


def test_an_interval_is_easy_to_read() -> None:
    """Where no link and no box can come of it."""
    assert escaped("−1.2 points [−2.9, +0.4] (worse)") == "−1.2 points [−2.9, +0.4] (worse)"
    assert escaped("[1](b)") == r"\[1\](b)"
    assert escaped("[1]:b") == r"\[1\]\:b"
    assert escaped("[ ] a") == r"\[ \] a"


def test_no_link_comes_of_an_address() -> None:
    assert escaped("https://evil.example www.evil.example a@b.c") == r"https\://evil.example www\.evil.example a\@b.c"
