"""How a stage reports while it runs: one Reporter, which a terminal, a job and a test each make their own."""

from collections.abc import Callable, Sequence
from typing import Any


class Reporter:
    """The reports of a stage. This class ignores all of them; others override those that they show."""

    def estimate(self, sentence: str) -> None:
        """Take a sentence on what the stage will need, or waits for, before anything long starts."""

    def rows(self, sentences: Sequence[str]) -> None:
        """Take how the rows of a dataset were read and what of them was not, before anything long starts."""

    def progress(self, done: float, total: float, message: str) -> None:
        """Take where it stands; `done` and `total` are work in one unit of the stage's choice."""

    def curve(self, points: Sequence[Any]) -> None:
        """Take the curve of a training as it grows, from its first point on."""

    def note(self, text: str) -> None:
        """Take what happened on the way that a reader of the result should know."""

    def named(self, form: Callable[[str], str]) -> "Reporter":
        """Return a reporter that gives this one every message in another form."""
        return _Named(self, form)


SILENT = Reporter()


class _Named(Reporter):
    def __init__(self, reporter: Reporter, form: Callable[[str], str]) -> None:
        self.reporter, self.form = reporter, form
        self.estimate, self.curve, self.note = reporter.estimate, reporter.curve, reporter.note
        self.rows = reporter.rows

    def progress(self, done: float, total: float, message: str) -> None:
        self.reporter.progress(done, total, self.form(message))


class Work:
    """Work of one total that is counted as it is done, some of it cached by an earlier run."""

    def __init__(self, reporter: Reporter, total: float) -> None:
        self.reporter, self.total = reporter, total
        self.done, self.cached = 0.0, 0.0
        self.notes: list[str] = []
        reporter.progress(0, total, "Starting")

    def advance(self, amount: float, message: str, cached: bool = False) -> None:
        """Count `amount` more as done; `cached` work was done by an earlier run."""
        self.done += amount
        self.cached += amount if cached else 0
        self.reporter.progress(min(self.done, self.total), self.total, message)

    @property
    def reused(self) -> float:
        """Share of the work so far that was cached, 0..1."""
        return self.cached / self.done if self.done else 0.0

    def note(self, text: str) -> None:
        """Keep a note for the record, once, and report it."""
        if text not in self.notes:
            self.notes.append(text)
            self.reporter.note(text)

    def step(self, message: str, cost: float = 1.0) -> "Step":
        """Return what counts tokens of one part of the work, each at `cost`."""
        return Step(self, message, cost)


class Step:
    """One part of the work, which is counted in tokens."""

    def __init__(self, work: Work, message: str, cost: float) -> None:
        self.work, self.message, self.cost = work, message, cost

    def advance(self, tokens: int, cached: bool = False) -> None:
        """Count so many tokens more as done."""
        self.work.advance(self.cost * tokens, self.message, cached)

    def note(self, text: str) -> None:
        """Keep a note, as `Work.note` does."""
        self.work.note(text)


def uncounted() -> Step:
    """Return a step of work that nobody follows."""
    return Work(SILENT, 1.0).step("")


def remaining_seconds(elapsed: float, done: float, total: float) -> float | None:
    """Return the seconds still to go at the pace so far; None before anything was done."""
    if done <= 0:
        return None
    return max(0.0, elapsed * (total - done) / done)
