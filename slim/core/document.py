"""The content of a report, apart from its format: sections of text, tables, charts and pairs of answers.

Texts are plain: whoever writes them down escapes them. Nothing here was made safe before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Heading:
    """Of a part of a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str
    tone: Literal["plain", "quiet", "warning"] = "plain"


@dataclass(frozen=True)
class Points:
    """A list of terms, each with what it means."""

    kind: ClassVar[str] = "points"
    points: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """The first column names the line."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    kind: ClassVar[str] = "code"
    text: str
    language: str


@dataclass(frozen=True)
class Chart:
    """A figure that is drawn where it can be shown; `says` is what it shows, in words."""

    kind: ClassVar[str] = "chart"
    says: str
    draw: "Callable[[], go.Figure]"
    half: bool = False
    """Whether two of it fit side by side."""


@dataclass(frozen=True)
class Pair:
    """A row with both models' answers, why it is shown, and the verdict on it in words, which may be empty.

    Of what comes in twos the original's is first. `opinions` are what a judge said, each under a title.
    """

    kind: ClassVar[str] = "pair"
    place: int
    question: str
    answers: tuple[str, str]
    reference: str
    cut: tuple[bool, bool]
    why: str
    verdict: str = ""
    scores: tuple[float, float] | None = None
    opinions: Sequence[tuple[str, str]] = ()


Block = Heading | Paragraph | Points | Table | Code | Chart | Pair


@dataclass(frozen=True)
class Section:
    """`key` is what links to it end in."""

    title: str
    key: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """`results` are the sentences that a reader in a hurry reads; `front` is a model card's metadata."""

    title: str
    results: Sequence[str]
    sections: Sequence[Section]
    front: dict[str, Any] = field(default_factory=dict)
    closing: str = ""
