"""A pair of answers as HTML in which all that a model, a judge or a dataset said is plain text."""

import html
from collections.abc import Sequence

from slim.judge import review, votes
from slim.judge.review import Piece
from slim.judge.verdicts import Comparison
from slim.judge.votes import Votes

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
    """One pair with all that is known of it: the models by name, the verdicts and the person's vote."""
    head = f"Row {place + 1} · {VERDICTS[one.judgment]}{', changed with the order' if one.flip else ''}"
    if (vote := given.votes.get(votes.key_of(one))) is not None:
        head += f" · your vote: {VERDICTS[vote.choice].lower()}"
    return pair(head, one, named_sides(one, scores)) + opinions(one)


def named_sides(one: Comparison, scores: tuple[float, float] | None) -> list[Side]:
    """Both answers under their models' names, what the other lacks marked."""
    first, second = review.word_diff(one.response1, one.response2)
    return [
        (_title("Original", one.response1, one.truncated[0], scores and scores[0]), first, "original"),
        (_title("Pruned", one.response2, one.truncated[1], scores and scores[1]), second, "pruned"),
    ]


def pair(head: str, one: Comparison, sides: Sequence[Side], level: int = 4) -> str:
    """Question, both answers and the reference under a heading of `level`."""
    below = f"h{level + 1}"
    columns = "".join(
        f"<div><{below}>{html.escape(title)}</{below}><div class='text'>{_marked(pieces, kind)}</div></div>"
        for title, pieces, kind in sides
    )
    reference = ""
    if one.reference:
        reference = f"<{below}>Reference</{below}><div class='text'>{html.escape(one.reference)}</div>"
    return (
        f"<div class='slim-pair'><h{level}>{html.escape(head)}</h{level}>"
        f"<div class='text question'>{html.escape(one.question)}"
        f"</div><div class='sides'>{columns}</div>{reference}</div>"
    )


def _title(name: str, text: str, cut: bool, score: float | None) -> str:
    against = "" if score is None else f" · {score:.2f} against the reference"
    return f"{name} · {len(text):,} characters{', cut' if cut else ''}{against}"


def _marked(pieces: list[Piece], kind: str) -> str:
    words = "".join(
        f"<mark class='{kind}'>{html.escape(text)}</mark>" if lacking else html.escape(text) for text, lacking in pieces
    )
    return words or "<em>(empty)</em>"


def opinions(one: Comparison, level: int = 4) -> str:
    """The verdict in both orders with its reasons, or why there is none, below a heading of `level`."""
    lines = []
    for opinion in one.orders:
        said = VERDICTS[opinion.verdict or "error"].lower()
        lines.append(f"<b>{ORDERS[opinion.order]}: {said}.</b> {html.escape(opinion.reason or opinion.failure or '')}")
        if opinion.failure and opinion.raw:
            lines.append(f"It said: {html.escape(opinion.raw)}")
    if one.failure and not one.orders:
        lines.append(html.escape(one.failure))
    paragraphs = "".join(f"<p class='said'>{line}</p>" for line in lines)
    below = f"h{level + 1}"
    return f"<div class='slim-pair'><{below}>Verdicts</{below}>{paragraphs}</div>" if lines else ""
