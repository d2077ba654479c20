"""A pair of answers as HTML in which all text from a model, a judge or a dataset is escaped."""

import html
from collections.abc import Sequence

from slim.judging import review, votes
from slim.judging.record import Comparison
from slim.judging.review import Piece
from slim.judging.votes import Votes

VERDICTS = {
    "original_model": "Original better",
    "pruned_model": "Pruned better",
    "tie": "Tie",
    "error": "No verdict",
    "skip": "Skipped",
}
Side = tuple[str, list[Piece], str]
"""An answer's title, its text, and the class of its marks."""
ORDERS = {"original_first": "Original shown first", "pruned_first": "Pruned shown first"}


def named_pair(place: int, one: Comparison, given: Votes, scores: tuple[float, float] | None) -> str:
    """One pair with the models by name, the verdicts and the user's vote."""
    head = f"Row {place + 1} · {VERDICTS[one.judgment]}{', changed with the order' if one.flip else ''}"
    if (vote := given.votes.get(votes.key_of(one))) is not None:
        head += f" · your vote: {VERDICTS[vote.choice].lower()}"
    answers = one.response1, one.response2
    shown = pair(head, one.question, one.reference, named_sides(answers, one.truncated, scores))
    return shown + opinions(said_of(one))


def named_sides(
    answers: tuple[str, str], cut: tuple[bool, bool], scores: tuple[float, float] | None
) -> tuple[Side, Side]:
    """Both answers under their models' names, the original's first; words that the other lacks are marked."""
    first, second = review.word_diff(*answers)
    return (
        (_title("Original", answers[0], cut[0], scores and scores[0]), first, "original"),
        (_title("Pruned", answers[1], cut[1], scores and scores[1]), second, "pruned"),
    )


def pair(head: str, question: str, reference: str, sides: Sequence[Side], level: int = 4) -> str:
    """Question, both answers and the reference under a heading of `level`."""
    below = f"h{level + 1}"
    columns = "".join(
        f"<div><{below}>{html.escape(title)}</{below}><div class='text'>{_marked(pieces, kind)}</div></div>"
        for title, pieces, kind in sides
    )
    expected = f"<{below}>Reference</{below}><div class='text'>{html.escape(reference)}</div>" if reference else ""
    return (
        f"<div class='slim-pair'><h{level}>{html.escape(head)}</h{level}>"
        f"<div class='text question'>{html.escape(question)}"
        f"</div><div class='sides'>{columns}</div>{expected}</div>"
    )


def _title(name: str, text: str, cut: bool, score: float | None) -> str:
    against = "" if score is None else f" · {score:.2f} against the reference"
    return f"{name} · {len(text):,} characters{', cut' if cut else ''}{against}"


def _marked(pieces: list[Piece], kind: str) -> str:
    words = "".join(
        f"<mark class='{kind}'>{html.escape(text)}</mark>" if lacking else html.escape(text) for text, lacking in pieces
    )
    return words or "<em>(empty)</em>"


def said_of(one: Comparison) -> list[tuple[str, str]]:
    """The verdict in both orders with its reason or failure: lines, each with a title that may be empty."""
    lines = []
    for opinion in one.orders:
        verdict = VERDICTS[opinion.verdict or "error"].lower()
        lines.append((f"{ORDERS[opinion.order]}: {verdict}.", opinion.reason or opinion.failure or ""))
        if opinion.failure and opinion.raw:
            lines.append(("", f"Its answer: {opinion.raw}"))
    if one.failure and not one.orders:
        lines.append(("", one.failure))
    return lines


def opinions(lines: Sequence[tuple[str, str]], level: int = 4) -> str:
    """Such lines below a heading of `level`; an empty string without lines."""
    titles = (f"<b>{html.escape(title)}</b> " if title else "" for title, _ in lines)
    paragraphs = "".join(
        f"<p class='said'>{title}{html.escape(text)}</p>" for title, (_, text) in zip(titles, lines, strict=True)
    )
    below = f"h{level + 1}"
    return f"<div class='slim-pair'><{below}>Verdicts</{below}>{paragraphs}</div>" if lines else ""
