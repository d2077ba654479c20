"""How long work reports where it stands: a callable, so that a terminal, a job and a test can each listen their way."""

from collections.abc import Callable

Progress = Callable[[float, float, str], None]
"""`progress(done, total, message)`: `done` and `total` are work in one unit of the caller's choice."""


def silent(done: float, total: float, message: str) -> None:
    """Ignores every report."""


def remaining_seconds(elapsed: float, done: float, total: float) -> float | None:
    """Seconds still to go at the pace so far; None before anything was done."""
    if done <= 0:
        return None
    return max(0.0, elapsed * (total - done) / done)
