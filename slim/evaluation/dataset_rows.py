"""Held-out dataset rows: drawn, and scored, answered or ranked by every model of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from diskcache import Cache

from slim.core.errors import InputError
from slim.core.reporter import SILENT, Reporter, Work
from slim.data import tasks
from slim.data.omissions import left_out, merged
from slim.evaluation.answers import answer, context_of, prompts
from slim.evaluation.likelihood import Passes, against, ranked
from slim.evaluation.metrics import KL, PERPLEXITY, RANKED, RANKED_WHOLE, Columns
from slim.evaluation.row_table import ScoreColumns
from slim.evaluation.scorers import Scorer, scorer_of
from slim.evaluation.settings import AnswerSettings, EvaluationSettings
from slim.models.load import Loaded
from slim.pruning import held_out

CHOICES, LABELS = "choices", "classification"
"""Kinds of task whose choices or labels are ranked by likelihood; choices without generation."""
MOST_RANKED = 12
"""Labels beyond which they are not ranked, as every label takes a pass over the row."""
ANSWERED_AT_ONCE = 4
"""Batches of `batch_size` rows to generate together: a decoding step holds the logits of one position per row."""


@dataclass(frozen=True)
class Drawn:
    """The drawn rows: their examples and tokens, why they are held out, and how answers are scored."""

    task: tasks.Task
    examples: tuple[tasks.Example, ...]
    encoded: tasks.Encoded
    why: str
    scorer: Scorer | None
    max_new_tokens: int | None
    ranked: tuple[tasks.Example, ...] = ()
    """The examples with the choices or labels to rank, if any."""

    @property
    def ranked_tokens(self) -> int:
        """Tokens to read in order to rank them."""
        return self.encoded.tokens * max((len(example.choices) for example in self.ranked), default=0)


def draw(
    task: tasks.Task,
    loaded: Mapping[str, Loaded],
    sources: Sequence[str],
    settings: EvaluationSettings,
    reporter: Reporter = SILENT,
) -> Drawn:
    """Return rows that none of the `sources` was calibrated on, in the tokens of the first of `loaded`.

    Raises InputError where the models do not share a vocabulary, or a row is longer than one of them reads.
    """
    first, original = next(iter(loaded.items()))
    vocabulary = original.tokenizer.get_vocab()
    for name, one in loaded.items():
        if one.tokenizer.get_vocab() != vocabulary:
            raise InputError(
                f"model={name!r}: it has another vocabulary than {first!r}, so perplexity and KL cannot be compared; "
                "name the model it was cut from as the baseline."
            )
    examples, why = held_out.draw(task, settings.samples, settings.seed, sources, reporter)
    examples, unwritten = tasks.readable(examples, original.tokenizer)
    encoded = tasks.encode(examples, original.tokenizer, settings.max_length, settings.positions)
    encoded = replace(
        encoded,
        left_out=encoded.left_out + left_out(unwritten),
        omissions=merged(unwritten, encoded.omissions),
    )
    reporter.rows(tasks.reading_of(task, encoded.omissions))
    longest = max(encoded.lengths)
    for name, one in loaded.items():
        if longest > context_of(one):
            raise InputError(
                f"max_length={settings.max_length}: {name!r} reads at most {context_of(one):,} tokens and a row has "
                f"{longest:,}; choose {context_of(one)} or less."
            )
    scorer = scorer_of(task.kind, [example.answer for example in task.examples])
    most = (settings.max_new_tokens or scorer.max_new_tokens) if scorer else None
    return Drawn(task, tuple(examples), encoded, why, scorer, most, _to_rank(task, examples))


def _to_rank(task: tasks.Task, examples: Sequence[tasks.Example]) -> tuple[tasks.Example, ...]:
    """Return the examples with what is to be ranked: their own choices, or the labels of the whole dataset."""
    if task.kind == CHOICES:
        return tuple(examples)
    labels = tuple(sorted({example.answer for example in task.examples})) if task.kind == LABELS else ()
    if not 2 <= len(labels) <= MOST_RANKED:
        return ()
    return tuple(replace(example, choices=labels) for example in examples)


@dataclass
class Reader:
    """Scores the `drawn` rows with each of the `loaded` models, the first of which is the original.

    `notes` collects remarks on the work, `truncated` the number of cut answers of each model.
    """

    loaded: Mapping[str, Loaded]
    drawn: Drawn
    settings: EvaluationSettings
    cache: Cache | None = None
    reporter: Reporter = SILENT
    notes: list[str] = field(default_factory=list)
    truncated: dict[str, int] = field(default_factory=dict)

    def parts(self) -> list[ScoreColumns]:
        """Return the likelihoods, and the scores of the dataset's kind of task."""
        return [self.likelihood(), *self.scores()]

    def scores(self) -> list[ScoreColumns]:
        """Return the scores of the dataset's kind of task: of written answers, and of ranked choices or labels."""
        drawn = self.drawn
        found: list[ScoreColumns] = []
        if drawn.scorer is not None:
            found += self._kept(self.answers(drawn.scorer), "scored: the prompt leaves no room for an answer")
        if drawn.ranked:
            room = "choices cannot be compared within max_length"
            if drawn.task.kind == LABELS:
                room = "labels do not fit into the context"
            found += self._kept(self.ranking(), f"ranked: their {room}")
        if drawn.scorer is None and not drawn.ranked:
            self.notes.append(f"rows of the kind {drawn.task.kind!r} have no score besides their likelihood")
        return found

    def _kept(self, scored: ScoreColumns, why: str) -> list[ScoreColumns]:
        """Return the rows that have a figure, and note how many have none."""
        kept = scored.scored()
        if left := len(scored.places) - (len(kept.places) if kept else 0):
            self.notes.append(f"{left} of {len(scored.places)} rows were not {why}")
        return [kept] if kept else []

    def likelihood(self) -> ScoreColumns:
        """Return the perplexity of every model, and the KL of each to the original."""
        first, original = next(iter(self.loaded.items()))
        encoded, columns = self.drawn.encoded, {}
        for name, one in self.loaded.items():
            if name != first:
                columns[first], columns[name] = against(
                    original, one, encoded, self._passes(encoded.tokens, f"Reading as {name}")
                )
        if not columns:
            columns[first], _ = against(original, original, encoded, self._passes(encoded.tokens, "Reading"))
        return ScoreColumns("", (PERPLEXITY, KL), encoded.places, columns)

    def ranking(self) -> ScoreColumns:
        """Return which choice or label is the likeliest to every model."""
        examples, columns, of_choices = self.drawn.ranked, {}, self.drawn.task.kind == CHOICES
        for name, one in self.loaded.items():
            # like the answers that are written, labels follow the whole prompt
            longest = min(self.settings.max_length, context_of(one)) if of_choices else context_of(one)
            passes = self._passes(self.drawn.ranked_tokens, f"Ranking choices as {name}")
            columns[name] = ranked(one, examples, longest, passes)
        return ScoreColumns("", (RANKED, RANKED_WHOLE), range(len(examples)), columns)

    def answers(self, scorer: Scorer) -> ScoreColumns:
        """Return the scored answers of every model to the same prompts under the same stop rules."""
        examples = self.drawn.examples
        asked = prompts(examples, next(iter(self.loaded.values())).tokenizer)
        stops = {stop for one in self.loaded.values() for stop in one.stops}
        chosen = AnswerSettings(
            max_new_tokens=self.drawn.max_new_tokens or scorer.max_new_tokens,
            batch_size=ANSWERED_AT_ONCE * self.settings.batch_size,
            seed=self.settings.seed,
        ).for_kind(self.drawn.task.kind)
        columns: dict[str, Columns] = {}
        texts = {}
        for name, one in self.loaded.items():
            given, notes = answer(one, asked, chosen, stops, self.cache, self._as(name))
            self.notes += notes
            asked_all = np.array([0.0 if answered.failure is None else np.nan for answered in given])
            scores = scorer.columns([answered.text for answered in given], [example.answer for example in examples])
            columns[name] = {measure: column + asked_all for measure, column in scores.items()}
            texts[name] = {
                "answer": [answered.text for answered in given],
                "answer_tokens": [answered.tokens for answered in given],
                "truncated": [answered.truncated for answered in given],
            }
            self.truncated[name] = sum(answered.truncated for answered in given)
        return ScoreColumns("", scorer.measures, range(len(examples)), columns, texts)

    def _passes(self, tokens: int, message: str) -> Passes:
        work = Work(self.reporter, max(1, tokens))
        work.notes = self.notes
        return Passes(self.settings.batch_size, self.cache, work.step(message))

    def _as(self, name: str) -> Reporter:
        """Return the reporter whose messages name the model at work."""
        return self.reporter.named(lambda message: f"{message} as {name}")
