"""A reporter that remembers what it gets."""

from slim.core.reporter import Reporter


class Heard(Reporter):
    """The estimates, the steps and the notes of a stage, in the order it reported them."""

    def __init__(self) -> None:
        self.estimates: list[str] = []
        self.steps: list[tuple[float, float, str]] = []
        self.notes: list[str] = []

    def estimate(self, sentence: str) -> None:
        self.estimates.append(sentence)

    def progress(self, done: float, total: float, message: str) -> None:
        self.steps.append((done, total, message))

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def messages(self) -> set[str]:
        """The names of the steps."""
        return {message for *_, message in self.steps}
