"""Markdown: a document as a model card, and text that stays text, on the Hub and on a page."""

import re
from collections.abc import Sequence

from huggingface_hub import ModelCardData

from slim.core.document import Block, Chart, Code, Document, Heading, Pair, Points, Section, Table

_SIGNS = re.compile(r"[\\`*\[\]<>|~$#&@]|:(?! )")
_SHORTCODE = re.compile(r"(:[\w+-]+):")
"""The second colon of a name between two, which a picture stands for: it may have a blank behind it."""
_ICON = re.compile(r"(?<=:material)/")
"""Streamlit looks for its icons before it reads the signs: the colon's own backslash is not enough."""
_EDGES = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")
"""Underscores within a word have no meaning."""
_INTERVAL = re.compile(r"\\\[([−+-]?\d[−+\d.,%\s-]*)\\\](?!\(|\\?[\[:])")
"""Numbers in brackets that no link can come of: they are easier to read without signs before them."""
_WWW = re.compile(r"(?i)\b(www)\.")
"""A link comes of it without any sign around it."""
_START = re.compile(r"^(\d{0,9})([-+=]+|(?<=\d)[.)])(?=\s|$)")
"""Characters that would begin a list, a line or a title."""


def markdown(document: Document) -> str:
    """The whole document, with its metadata in front where it has some. Charts are left out."""
    parts = [f"---\n{ModelCardData(**document.front).to_yaml()}\n---\n"] if document.front else []
    parts.append(f"# {escaped(document.title)}\n")
    parts += [f"{escaped(result)}\n" for result in document.results]
    parts += [section_text(section) for section in document.sections]
    parts += [f"{escaped(document.closing)}\n"] if document.closing else []
    return "\n".join(parts)


def section_text(section: Section) -> str:
    """A section with its title."""
    texts = [text for block in section.blocks if (text := _block(block))]
    return "\n".join([f"## {escaped(section.title)}\n", *(f"{text}\n" for text in texts)])


def escaped(text: str) -> str:
    """Text as Markdown that shows it as it is, on one line, wherever it comes from: users, data, models, files.

    It holds for CommonMark, for GitHub's tables and for what Streamlit adds: colors, icons, emoji, formulas. No sign
    stops what Streamlit finds in the text itself: a bare address becomes a link, which shows where it leads, "->"
    between blanks an arrow, and ":streamlit:" or ":material_home:" a picture of its own.
    """
    text = _SIGNS.sub(r"\\\g<0>", " ".join(text.split()))
    text = _ICON.sub(r"\/", _SHORTCODE.sub(r"\1\\:", text))
    text = _EDGES.sub(lambda found: found[0].replace("_", r"\_"), text)
    text = _WWW.sub(r"\1\\.", _INTERVAL.sub(r"[\1]", text))
    return _START.sub(r"\1\\\2", text)


def fenced(text: str, language: str = "") -> str:
    """Text exactly as it is, in a fence longer than any within it."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Pair):
        return _pair(block)
    if isinstance(block, Code):
        return fenced(block.text, block.language)
    if isinstance(block, Points):
        return "\n".join(f"- **{escaped(term)}**: {escaped(said)}" for term, said in block.points)
    if isinstance(block, Chart):
        return ""
    return f"### {escaped(block.text)}" if isinstance(block, Heading) else escaped(block.text)


def _table(block: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(escaped(cell) for cell in cells) + " |"

    return "\n".join([line(block.head), "|" + "---|" * len(block.head), *map(line, block.lines)])


def _pair(block: Pair) -> str:
    parts = [f"### Row {block.place + 1}: {escaped(block.why)}", fenced(block.question, "text")]
    for number, (name, answer) in enumerate(zip(("Original", "Pruned"), block.answers, strict=True)):
        score = "" if block.scores is None else f", {block.scores[number]:.2f} against the reference"
        cut = ", cut" if block.cut[number] else ""
        parts += [f"{name}{cut}{score}:", fenced(answer or "(empty)", "text")]
    parts += ["Reference:", fenced(block.reference, "text")] if block.reference else []
    parts += [f"Verdict: {escaped(block.verdict)}."] if block.verdict else []
    return "\n\n".join(parts)
