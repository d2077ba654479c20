"""Pairs of answers: both models asked the same rows by the same rules, one model in memory at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.core.cache import open_cache
from slim.core.errors import SlimError
from slim.core.records import Omission
from slim.core.reporter import SILENT, Reporter
from slim.data.omissions import merged
from slim.data.templates import Example
from slim.evaluation.model_answer import ModelAnswer
from slim.evaluation.settings import AnswerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pair:
    """One row and both models' answers to it."""

    example: Example
    original: ModelAnswer
    pruned: ModelAnswer

    @property
    def question(self) -> str:
        """All turns before the answer, as one text."""
        return question_of(self.example)

    @property
    def failure(self) -> str | None:
        """The reason why a model was not asked, or None."""
        for name, one in (("original", self.original), ("pruned", self.pruned)):
            if one.failure:
                return f"{name} model: {one.failure}"
        return None


def question_of(example: Example) -> str:
    """All turns before the answer of a row, as one text."""
    if len(example.turns) > 1:
        return "\n\n".join(f"{who}: {text}" for who, text in example.turns)
    return example.prompt


@dataclass(frozen=True)
class Answered:
    """The pairs, the fingerprints of both models' weights, what happened on the way, and rows that were not asked."""

    pairs: list[Pair]
    fingerprints: tuple[str, str]
    notes: list[str]
    omissions: tuple[Omission, ...] = ()


def answered(
    sources: tuple[str, str],
    examples: Sequence[Example],
    settings: AnswerSettings,
    device: str = "auto",
    dtype: str = "auto",
    reporter: Reporter = SILENT,
    trouble: SlimError | None = None,
) -> Answered:
    """Return the answers of the original and the pruned model of `sources` to `examples`.

    The prompts and stop rules are the original's for both, unless their tokenizers differ. Rows that a chat template
    does not write are not asked. Raises `trouble`, where it is given, instead of generating an answer that is not
    cached.
    """
    from slim.data.encode import readable
    from slim.evaluation import answers
    from slim.models.load import load_model
    from slim.models.stops import end_notes

    said: list[dict[Example, ModelAnswer]] = []
    omissions: tuple[Omission, ...] = ()
    fingerprints: list[str] = []
    notes: dict[str, None] = {}
    first: PreTrainedTokenizerBase | None = None
    prompts, stops = [], ()
    for source in sources:
        loaded = load_model(source, device=device, dtype=dtype, reporter=reporter)
        if first is None or not _same(first, loaded.tokenizer):
            if first is not None:
                notes["the models' tokenizers differ, so each reads the rows and ends its answers by its own"] = None
            first = loaded.tokenizer
            examples, unwritten = readable(examples, first)
            omissions = merged(omissions, unwritten)
            prompts, stops = answers.prompts(examples, first), loaded.stops
        with open_cache() as cache:
            found, told = answers.answer(loaded, prompts, settings, stops, cache, reporter, trouble)
        said.append(dict(zip(examples, found, strict=True)))
        fingerprints.append(loaded.facts.fingerprint)
        notes |= dict.fromkeys([*told, *end_notes(loaded.stops)])
        del loaded
    pairs = [Pair(example, said[0][example], said[1][example]) for example in examples]
    return Answered(pairs, (fingerprints[0], fingerprints[1]), list(notes), omissions)


def _same(one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> bool:
    return one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template
