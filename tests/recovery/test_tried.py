"""Answers that are tried around a training: which rows are asked, what counts as an end, and what breaks it."""

from collections.abc import Callable
from typing import Any

import pytest

from slim.core.reporter import uncounted
from slim.data.templates import Example
from slim.evaluation.answers import prompts
from slim.models.load import Loaded
from slim.pruning.history import TriedAnswers
from slim.recovery.tried import LONGEST, TRIED, questions, stops_broken, tried


def test_rows_with_short_answers_are_asked(pico: Callable[..., Loaded]) -> None:
    """The first sixteen that ask something, to twice the longest of their own answers with its end, in bytes."""
    loaded = pico("llama")
    good = [Example(f"Question {n}?", "yes" * (1 + n % 2)) for n in range(20)]
    odd = [Example("", "a text"), Example("Long?", "a" * LONGEST), Example("word " * 100, "yes")]
    asked = questions([*odd, *good], loaded, 99)
    assert asked.max_new_tokens == 2 * (len("yesyes") + 1)
    wanted = prompts(good[:TRIED], loaded.tokenizer)
    assert [prompt.tolist() for prompt in asked.prompts] == [prompt.tolist() for prompt in wanted]
    assert len(questions([Example("Long?", "a" * (LONGEST - 1))], loaded, 99).prompts) == 1
    nothing = questions(odd, loaded, 99)
    assert (nothing.prompts, nothing.cost) == ((), 0)
    assert tried(loaded, nothing, None, uncounted()) is None


def test_an_answer_counts_where_the_model_ends_it(pico: Callable[..., Loaded]) -> None:
    """With the token that it is likeliest to say first as its end, and without one that it says."""
    loaded = pico("llama")
    asked = questions([Example("Why?", "So.")] * 3, loaded, 99)
    own: Any = loaded.model.generation_config
    own.eos_token_id = int(loaded.model(input_ids=asked.prompts[0][None]).logits[0, -1].argmax())
    assert tried(loaded, asked, None, uncounted()) == TriedAnswers(rows=3, stopped=3, max_new_tokens=8)
    own.eos_token_id = 263
    assert tried(loaded, asked, None, uncounted()) == TriedAnswers(rows=3, stopped=0, max_new_tokens=8)


@pytest.mark.parametrize(
    ("rows", "before", "after", "broken"),
    [(16, 16, 12, True), (16, 16, 13, False), (16, 2, 0, False), (3, 3, 1, True), (3, 3, 2, False), (16, 3, 16, False)],
)
def test_a_quarter_of_the_answers_and_two_break_it(rows: int, before: int, after: int, broken: bool) -> None:
    """Fewer may be chance."""
    one, other = (TriedAnswers(rows=rows, stopped=stopped, max_new_tokens=9) for stopped in (before, after))
    assert stops_broken(one, other) is broken
    assert not stops_broken(None, other)
