"""A document as Markdown for a model card. What was said by data, a model or a person stays text on the Hub."""

import re
from collections.abc import Sequence

from huggingface_hub import ModelCardData

from slim.core.document import Block, Chart, Code, Document, Heading, Pair, Points, Section, Table

_SIGNS = re.compile(r"([\\`*\[\]<>|~$#&@])")
_EDGES = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")
"""Underscores within a word are no sign."""
_INTERVAL = re.compile(r"\\\[([−+\d.,%\s-]+)\\\](?!\(|\\?\[|:)")
"""Numbers in brackets that no link can come of: they are easier to read without signs before them."""
_LINKS = re.compile(r"(?i)\b(https?|ftp)(:)(?=//)|\b(www)(\.)")
"""What is made a link of without any sign around it."""
_START = re.compile(r"^(\d{0,9})([-+=]|(?<=\d)[.)])(?=\s|$)")
"""What would begin a list."""


def markdown(document: Document) -> str:
    """The whole document, with its metadata in front where it has some. Charts are left out."""
    parts = [f"---\n{ModelCardData(**document.front).to_yaml()}\n---\n"] if document.front else []
    parts.append(f"# {inline(document.title)}\n")
    parts += [f"{inline(result)}\n" for result in document.results]
    parts += [section_text(section) for section in document.sections]
    parts += [f"{inline(document.closing)}\n"] if document.closing else []
    return "\n".join(parts)


def section_text(section: Section) -> str:
    """A section with its title."""
    texts = [text for block in section.blocks if (text := _block(block))]
    return "\n".join([f"## {inline(section.title)}\n", *(f"{text}\n" for text in texts)])


def inline(text: str) -> str:
    """Text that stays text: no sign of it is Markdown or HTML, and it is one line."""
    text = " ".join(text.split())
    text = _EDGES.sub(lambda found: found[0].replace("_", r"\_"), _SIGNS.sub(r"\\\1", text))
    text = _INTERVAL.sub(r"[\1]", text)
    text = _LINKS.sub(lambda found: f"{found[1] or found[3]}\\{found[2] or found[4]}", text)
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
        return "\n".join(f"- **{inline(term)}**: {inline(said)}" for term, said in block.points)
    if isinstance(block, Chart):
        return ""
    return f"### {inline(block.text)}" if isinstance(block, Heading) else inline(block.text)


def _table(block: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(inline(cell) for cell in cells) + " |"

    return "\n".join([line(block.head), "|" + "---|" * len(block.head), *map(line, block.lines)])


def _pair(block: Pair) -> str:
    parts = [f"### Row {block.place + 1}: {inline(block.why)}", fenced(block.question, "text")]
    for number, (name, answer) in enumerate(zip(("Original", "Pruned"), block.answers, strict=True)):
        score = "" if block.scores is None else f", {block.scores[number]:.2f} against the reference"
        cut = ", cut" if block.cut[number] else ""
        parts += [f"{name}{cut}{score}:", fenced(answer or "(empty)", "text")]
    parts += ["Reference:", fenced(block.reference, "text")] if block.reference else []
    parts += [f"Verdict: {inline(block.verdict)}."] if block.verdict else []
    return "\n\n".join(parts)
