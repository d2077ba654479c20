"""Perplexity, KL and the ranking of choices against explicit sums over explicit softmaxes in float64."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from slim.core.cache import open_cache
from slim.core.errors import SlimError
from slim.core.reporter import SILENT, Work
from slim.data.encode import Encoded, encode
from slim.data.templates import Example
from slim.evaluation.likelihood import Passes, against, ranked
from slim.models.load import Loaded
from tests.pico import random_rows

ROWS = random_rows((9, 30, 4, 17, 2, 23))
STARTS = (3, 1, 2, 9, 1, 20)


def log_probabilities(loaded: Loaded, row: Tensor) -> list[list[float]]:
    """Of the next token at each position, by an explicit softmax.  # (T, V)"""
    with torch.no_grad():
        logits = loaded.model(row[None]).logits[0].double()
    found = []
    for position in logits:
        shifted = position - position.max()
        found.append((shifted - torch.log(torch.exp(shifted).sum())).tolist())
    return found


@pytest.fixture
def pair(pico: Callable[..., Loaded]) -> tuple[Loaded, Loaded]:
    return pico("llama"), pico("llama", seed=1)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_surprise_and_kl_are_the_sums_they_say(pair: tuple[Loaded, Loaded], batch_size: int, padding_side: str) -> None:
    """At the counted positions alone, whatever the batch and its padding."""
    original, other = pair
    encoded = Encoded(ROWS, 0, STARTS)
    first, mine = against(original, other, encoded, Passes(batch_size, padding_side=padding_side))
    for index, (row, start) in enumerate(zip(ROWS, STARTS, strict=True)):
        p, q = log_probabilities(original, row), log_probabilities(other, row)
        surprise, other_surprise, kl = 0.0, 0.0, 0.0
        for place in range(start, len(row)):
            token = int(row[place])
            surprise -= p[place - 1][token]
            other_surprise -= q[place - 1][token]
            pairs = zip(p[place - 1], q[place - 1], strict=True)
            kl += sum(float(np.exp(one)) * (one - another) for one, another in pairs)
        assert first["surprise"][index] == pytest.approx(surprise, rel=1e-6)
        assert mine["surprise"][index] == pytest.approx(other_surprise, rel=1e-6)
        assert mine["kl"][index] == pytest.approx(kl, rel=1e-5)
        assert first["predicted"][index] == mine["predicted"][index] == len(row) - start


def test_a_model_is_not_away_from_itself(pair: tuple[Loaded, Loaded]) -> None:
    """KL is zero, and the negative log-likelihood the same."""
    original, _ = pair
    first, mine = against(original, original, Encoded(ROWS, 0), Passes())
    np.testing.assert_allclose(mine["kl"], 0, atol=1e-9)
    np.testing.assert_allclose(first["surprise"], mine["surprise"])


def test_what_is_cached_is_not_measured_again(pair: tuple[Loaded, Loaded]) -> None:
    """Of the same two models; another pair is another matter."""
    original, other = pair
    encoded = Encoded(ROWS, 0)
    work = Work(SILENT, encoded.tokens)
    with open_cache() as cache:
        passes = Passes(cache=cache, step=work.step("Reading rows"))
        once = against(original, other, encoded, passes)
        assert (work.done, work.cached) == (encoded.tokens, 0)
        again = against(original, other, encoded, passes)
        assert (work.done, work.cached) == (2 * encoded.tokens, encoded.tokens)
        against(other, original, encoded, passes)
        assert (work.done, work.cached) == (3 * encoded.tokens, encoded.tokens)
    for one, other_time in zip(once, again, strict=True):
        for name, values in one.items():
            np.testing.assert_array_equal(values, other_time[name])


CHOICES = (
    Example("Which?\n", "north", choices=("north", "a very long way to the south", "up")),
    Example("And?\n", "two", choices=("one", "two")),
    Example("Last?\n", "c", choices=("aaaaaaaa", "b", "c")),
)


def test_choices_are_ranked_by_explicit_sums(pair: tuple[Loaded, Loaded]) -> None:
    """The likeliest per character, and the likeliest as a whole, of the same candidates."""
    for loaded in pair:
        found = ranked(loaded, CHOICES, 64, Passes())
        for index, example in enumerate(CHOICES):
            whole = []
            for choice in example.choices:
                asked = loaded.tokenizer(f"{example.prompt}\n", return_tensors="pt")["input_ids"][0]
                both = loaded.tokenizer(f"{example.prompt}\n{choice}", return_tensors="pt")["input_ids"][0]
                p = log_probabilities(loaded, both)
                whole.append(sum(p[place - 1][int(both[place])] for place in range(len(asked), len(both))))
            per_character = [one / len(choice) for one, choice in zip(whole, example.choices, strict=True)]
            said, said_whole = int(np.argmax(per_character)), int(np.argmax(whole))
            assert found["ranked_place"][index] == said
            assert found["ranked"][index] == (example.choices[said] == example.answer)
            assert found["chance"][index] == 1 / len(example.choices)
            assert found["ranked_whole"][index] == (example.choices[said_whole] == example.answer)


def test_choices_that_do_not_fit_are_not_ranked(pair: tuple[Loaded, Loaded]) -> None:
    """Nor where there is nothing to choose; the rows around them are."""
    alone = replace(CHOICES[1], choices=("two",))
    found = ranked(pair[0], (CHOICES[0], alone, CHOICES[1]), 20, Passes())
    np.testing.assert_array_equal(np.isnan(found["ranked"]), [True, True, False])
    assert np.isnan(ranked(pair[0], (alone,), 20, Passes())["ranked_place"]).all()
    assert found["ranked_place"][2] == ranked(pair[0], (CHOICES[1],), 20, Passes())["ranked_place"][0]


def test_a_model_without_numbers_is_named(pair: tuple[Loaded, Loaded]) -> None:
    """Rather than a NaN in the record."""
    original, other = pair
    with torch.no_grad():
        other.model.get_output_embeddings().weight[5, 0] = float("nan")  # type: ignore[union-attr, index]
    with pytest.raises(SlimError, match=r"model='pico-llama': .*row 0"):
        against(original, other, Encoded(ROWS, 0), Passes())


def test_rows_know_their_example(pair: tuple[Loaded, Loaded]) -> None:
    """Also where examples before them predict nothing."""
    examples = [Example("", "a"), Example("Ask", "yes"), Example("", "b"), Example("", "long enough")]
    encoded = encode(examples, pair[0].tokenizer, 64)
    assert encoded.places == (1, 3)
    assert encoded.left_out == 2
