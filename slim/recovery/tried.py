"""Answers that are tried before and after a training: how many of them the model ends by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from diskcache import Cache
from torch import Tensor

from slim.core.reporter import Step
from slim.data import tasks
from slim.evaluation.answers import DECODED, answer, context_of, prompts
from slim.evaluation.settings import AnswerSettings
from slim.models.load import Loaded
from slim.pruning.history import TriedAnswers

TRIED = 16
"""Most rows of a split that are tried."""
LONGEST = 64
"""Most tokens of a row's own answer; rows with longer ones are not tried."""
TIMES = 2
"""An answer may be so many times as long as the longest own answer of the tried rows."""
LOST = 0.25
"""Share of the tried answers, and at least two of them, that a training must not keep from ending."""


@dataclass(frozen=True)
class Questions:
    """Prompts to try (T,) each, and the most tokens of an answer to them."""

    prompts: tuple[Tensor, ...] = ()
    max_new_tokens: int = 1

    @property
    def cost(self) -> float:
        """Forwards of one trial, in tokens."""
        return len(self.prompts) * self.max_new_tokens * DECODED


def questions(examples: Sequence[tasks.Example], loaded: Loaded, max_length: int) -> Questions:
    """Return the prompts of the first rows that ask something and whose answer is short; none where all are long."""
    found, longest = [], 0
    room = min(max_length, context_of(loaded) - TIMES * LONGEST)
    for example in examples:
        (prompt,) = prompts([example], loaded.tokenizer)
        own = len(tasks.encode([example], loaded.tokenizer, context_of(loaded)).rows[0]) - len(prompt)
        if (example.prompt or example.turns) and 0 < own <= LONGEST and 0 < len(prompt) <= room:
            found.append(prompt)
            longest = max(longest, own)
        if len(found) == TRIED:
            break
    return Questions(tuple(found), max(1, TIMES * longest))


def tried(loaded: Loaded, asked: Questions, cache: Cache | None, step: Step) -> TriedAnswers | None:
    """Return how many greedy answers the model ends by itself; None where nothing is asked."""
    if not asked.prompts:
        return None
    settings = AnswerSettings(max_new_tokens=asked.max_new_tokens, batch_size=TRIED)
    found, _ = answer(loaded, asked.prompts, settings, loaded.stops, cache)
    step.advance(len(asked.prompts) * asked.max_new_tokens)
    return TriedAnswers(
        rows=len(found), stopped=sum(one.finished for one in found), max_new_tokens=asked.max_new_tokens
    )


def stops_broken(before: TriedAnswers | None, after: TriedAnswers | None) -> bool:
    """Whether a training broke stopping: two tried answers or more, and a quarter of them, no longer end."""
    if before is None or after is None:
        return False
    lost = before.stopped - after.stopped
    return lost > 1 and lost >= LOST * before.rows
