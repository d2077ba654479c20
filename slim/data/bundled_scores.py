"""The bundled model's figures on the test rows of each bundled task beside chance, as `benchmarks.bundled` measured."""

from functools import cache
from pathlib import Path

from pydantic import Field, TypeAdapter

from slim.core.records import Record
from slim.data.sources import DATA

SCORES = DATA / "scores.json"


class BundledScore(Record):
    """A figure of the unchanged model on all test rows of a task, in points, with its 95% interval."""

    title: str
    value: float
    low: float
    high: float
    chance: float = Field(description="figure of the same measure for `guess`")
    guess: str = Field(description="what answers without reading the row")
    rows: int = Field(ge=1)

    @property
    def sentence(self) -> str:
        """The figure beside its chance, without a stop."""
        return f"{self.title} {self.value:.1f} [{self.low:.1f}, {self.high:.1f}], {self.guess} {self.chance:.1f}"


_FILE = TypeAdapter(dict[str, tuple[BundledScore, ...]])


def save_scores(scores: dict[str, tuple[BundledScore, ...]], file: Path = SCORES) -> None:
    """Write the figures by the name of the task."""
    file.write_bytes(_FILE.dump_json(scores, indent=1) + b"\n")


@cache
def bundled_scores() -> dict[str, tuple[BundledScore, ...]]:
    """Return the figures by the name of the task."""
    return _FILE.validate_json(SCORES.read_bytes())


def beside_chance(source: str) -> str | None:
    """Return in a sentence, without its stop, what the bundled model gets on a bundled task; None for other sources."""
    if not (found := bundled_scores().get(source.removeprefix("bundled:"))) or not source.startswith("bundled:"):
        return None
    told = "; ".join(one.sentence for one in found)
    return f"The bundled model on the {found[0].rows:,} test rows, before anything is removed: {told} (points)"
