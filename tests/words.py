"""The words of the project, looked at by `python -m tests.words`: phrases to replace in everything that is read.

They are looked for in docstrings, comments and messages of Python, in comments and texts of JavaScript, CSS and HTML,
in comments of shell scripts, and in documents. Names and code are not prose, and neither is text in `backquotes`.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

PLACES = (
    "slim",
    "pages",
    "app.py",
    "tests",
    "benchmarks",
    "docs",
    "findings",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
LEFT_OUT = ("tests/files/", "tests/words.py", "tests/core/test_words.py")
"""Records of earlier versions, and the two files that name the phrases."""
EXCEPTIONS = {("slim/judging/prompt.py", "is no merit")}
"""Phrases of a file that stay: the rubric's wording is in the cache keys of judges' answers and in older records."""
COMPARED = "longer|shorter|more|less|fewer|better|worse|newer|older|larger|smaller|higher|lower|faster|slower"
"""What may follow `is no`."""
PHRASES = {
    r"a person\b|persons\b": "the user, or a passive sentence",
    r"(?:is|are|was|were|be|been) told\b": "is reported; is passed",
    r"(?:is|are|was|were) (?-i:none)\b": "is not a …; was not created by …",
    r"(?:makes?|made|making) up for\b": "compensates for; forecast after repair",
    r"what is left over\b": "the remainder; forecast after repair",
    r"look(?:s|ed|ing)? into\b": "records; reads; checks",
    rf"(?:is|are|was|were) no (?!(?:{COMPARED})\b)[\w-]+": "is not a …; are not …",
    r"(?:hears?|heard)\b": "is reported; callback",
    r"(?:turned|turns) down\b|blocks off\b": "gated",
    r"leav(?:es|ing) out each\b": "ablating units one at a time",
    r"is passed by\b|bypass(?:es|ed)?\b": "masked trial; is masked",
    r"faithful(?:ness)?\b": "criterion check",
    r"legal\b": "valid; a valid shape",
    r"absorb(?:s|ed|ing)?\b": "forecast after repair",
    r"surprise\b": "negative log-likelihood",
    r"lessons?\b|taught\b": "soft targets; distilled",
    r"(?:rows|sequences|fold) that (?:(?:do|does|did) not )?(?:choose|chose|learn|decide|tell)\b": (
        "selection fold, held-out fold; train, validation, acceptance or test split"
    ),
}
"""What to write instead of what the pattern finds, wherever it stands in a sentence."""
BEGINNING = re.compile(r"(?:\A|\n\s*\n|[.!?]\s)\s*(What\s[^.?!]*)([.?!]|\Z)")
"""A sentence that begins with What; it is a question where it ends with the sign."""
BEGIN_WITH = "begin with the noun, or with the verb in the imperative"
WORDS = {
    re.compile(r"\b(?:" + pattern.replace(" ", r"\s+") + ")", re.IGNORECASE): write
    for pattern, write in PHRASES.items()
}
THERE = re.compile(r"\bthere\s+\Z", re.IGNORECASE)
NAME = re.compile(r"[a-z0-9_.,:/-]*")
CODE = re.compile(r"`[^`\n]*`")
SCRIPT = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)"""
    r"""|(?P<line>//[^\n]*(?:\n[ \t]*//[^\n]*)*)|(?P<block>/\*.*?\*/)""",
    re.DOTALL,
)


@dataclass(frozen=True)
class Passage:
    """Prose that belongs together, from a line of a file on; `sentences` where it is more than a title."""

    line: int
    text: str
    sentences: bool = True


@dataclass(frozen=True)
class Hit:
    """A phrase in a file, and what to write."""

    file: Path
    line: int
    phrase: str
    write: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.phrase} → {self.write}"


def found_in(file: Path, text: str) -> list[Hit]:
    """The phrases in the text of a file, whose name says how it is read."""
    readers = {".py": python, ".js": script, ".css": script, ".html": page, ".md": document, ".sh": shell}
    read = readers.get(file.suffix)
    if not read:
        return []
    hits = []
    for passage in read(text):
        if NAME.fullmatch(passage.text):
            continue
        prose = CODE.sub(lambda code: "_" * len(code[0]), passage.text)
        places = [(match, write) for pattern, write in WORDS.items() for match in pattern.finditer(prose)]
        places = [(match.start(), match[0], write) for match, write in places if not _there_is_no(match)]
        if passage.sentences:
            begun = (match for match in BEGINNING.finditer(prose) if match[2] != "?")
            places += [(match.start(1), " ".join(match[1].split()[:4]) + " …", BEGIN_WITH) for match in begun]
        for at, phrase, write in sorted(places):
            hits.append(Hit(file, passage.line + prose.count("\n", 0, at), " ".join(phrase.split()), write))
    kept = [hit for hit in hits if (file.as_posix(), hit.phrase) not in EXCEPTIONS]
    return sorted(kept, key=lambda hit: hit.line)


def _there_is_no(match: re.Match[str]) -> bool:
    """Whether the sentence is that there is no such thing, which is plain English."""
    return " no " in " ".join(match[0].split()) + " " and bool(THERE.search(match.string[: match.start()]))


def python(text: str) -> Iterator[Passage]:
    """Comments, a run of lines being one, and strings, docstrings among them."""
    run: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        alone = not token.line[: token.start[1]].strip()
        if run and not (alone and token.start == (run[-1].start[0] + 1, run[-1].start[1])):
            yield _comments(run)
            run = []
        run.append(token)
    if run:
        yield _comments(run)
    inside = set[ast.AST]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            inside |= set(node.values)
            parts = (str(part.value) if isinstance(part, ast.Constant) else "_" for part in node.values)
            yield _string("".join(parts), node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield _string(node.value, node)


def _string(value: str, node: ast.expr) -> Passage:
    """A string, with the line breaks of its source and without those that are written as signs."""
    lines = (node.end_lineno or node.lineno) - node.lineno
    return Passage(node.lineno, value if value.count("\n") == lines else value.replace("\n", " "))


def _comments(run: list[tokenize.TokenInfo]) -> Passage:
    return Passage(run[0].start[0], "\n".join(token.string.lstrip("# ") for token in run))


def script(text: str) -> Iterator[Passage]:
    """Comments, a run of lines being one, and strings of JavaScript or CSS."""
    for match in SCRIPT.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["text"]:
            yield Passage(line, match["text"].strip("\"'`"))
        else:
            yield Passage(line, re.sub(r"(?m)^[ \t]*(?://|/?\*+/?)[ \t]*(?:@\w+(?:[ \t]+\{.*\})?)?|\*/", "", match[0]))


def shell(text: str) -> Iterator[Passage]:
    """Comments that have their lines for themselves, a run of lines being one."""
    for match in re.finditer(r"(?m)^#(?!!)[^\n]*(?:\n#[^\n]*)*", text):
        yield Passage(text.count("\n", 0, match.start()) + 1, re.sub(r"(?m)^#+ ?", "", match[0]))


def page(text: str) -> Iterator[Passage]:
    """What stands between tags and in attributes."""
    at = 1
    for piece in re.split(r'([<>"])', text):
        yield Passage(at, piece)
        at += piece.count("\n")


def document(text: str) -> Iterator[Passage]:
    """Paragraphs, items of lists, rows of tables and headings, without blocks of code."""
    blocks = re.sub(r"(?ms)^(```|~~~).*?^\1", lambda block: "\n" * block[0].count("\n"), text)
    at = 1
    for part in re.split(r"(\n(?=\s*(?:\n|[-*|>#]|\d+\.)))", blocks):
        begun = re.match(r"\s*(?:[-*>]|\d+\.)?\s*", part)
        skipped = begun[0] if begun else ""
        yield Passage(
            at + skipped.count("\n"), part[len(skipped) :], sentences=not part.lstrip().startswith(("#", "|"))
        )
        at += part.count("\n")


def main() -> int:
    """Print every phrase of the repository that is to be replaced; return 1 where there is one."""
    hits = of_repository()
    print(*hits, sep="\n", end="\n" if hits else "")
    print(f"{len(hits)} phrases to replace." if hits else "Every sentence is in the project's words.")
    return int(bool(hits))


def of_repository() -> list[Hit]:
    """The phrases in every file that git knows or would add."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PLACES]
    names = subprocess.check_output(listed, cwd=ROOT, text=True).splitlines()
    files = [Path(name) for name in sorted(set(names)) if not name.startswith(LEFT_OUT) and (ROOT / name).is_file()]
    return [
        hit for file in files for hit in found_in(file, (ROOT / file).read_text(encoding="utf-8", errors="replace"))
    ]


if __name__ == "__main__":
    sys.exit(main())
