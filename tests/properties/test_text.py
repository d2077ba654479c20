"""Whatever is typed as an option, linked to, or answered by a judge: a value, or one clean line."""

import json
from collections.abc import Callable
from math import isfinite
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim.cli.plan import _pins, _thresholds
from slim.cli.shared import parse_numbers, parse_pairs, parse_places, parse_weights
from slim.judging.client import Reply, _as_reply, _of_cache
from slim.judging.endpoint import base_url
from slim.judging.prompt import LONGEST, as_data, messages, read
from slim.planning.board_choice import from_query, to_query
from tests.fuzz import ODD, TEXTS, clean, edited
from tests.pico import make_pico, random_rows
from tests.reference import measured

WORDS = st.one_of(
    TEXTS,
    st.text("0123456789:=,. \t-e", max_size=12),
    st.sampled_from(
        ["kl_output=1", "3:1,7", "nan", "a=nan", "0=inf", "a=1,a=2", "9" * 5000, f"a={'9' * 5000}", "٣:١", "1_0"]
    ),
)
PARSERS: dict[str, Callable[[str], Any]] = {
    "weights": parse_weights,
    "numbers": lambda text: parse_numbers("budget", text, "limit=number"),
    "places": lambda text: parse_places("keep", text),
    "pairs": lambda text: parse_pairs("columns", text),
    "thresholds": _thresholds,
    "pins": lambda text: _pins(text, "1:1", text),
}


@pytest.mark.parametrize("name", PARSERS)
def test_options(name: str) -> None:
    """Numbers are finite, layers small."""

    @given(st.lists(WORDS, min_size=1, max_size=4).map(",".join))
    def every(text: str) -> None:
        found = clean(lambda: PARSERS[name](text))
        if isinstance(found, dict):
            assert all(isfinite(value) for value in found.values() if isinstance(value, float))
        if isinstance(found, tuple):
            assert all(0 <= number < 10**9 for place in found for number in place)

    every()


@pytest.fixture(scope="module")
def calibrated() -> Any:
    return measured(make_pico("llama"), random_rows((5, 6)))


def test_links(calibrated: Any) -> None:
    """What a link names is a choice that can be linked to again; what cannot be followed is told in one line."""
    names = ("unit", "threshold", "weights", "keep", "drop", "protect", "layers", "uniform", "other")

    @given(st.dictionaries(st.sampled_from(names), WORDS, max_size=5))
    def every(query: dict[str, str]) -> None:
        found, _ = from_query(query, calibrated)
        again, notes = from_query(to_query(found), calibrated)
        assert again == found
        assert notes == ()

    every()


MARKS = ("<think>", "</think>", "{", "}", '"', "[[", "]]", " ", "\n", ", ", "\\ud800", "\\u0000", "null", "1e999", "İ")
SAID = ('{"verdict":', '"A"', '"reason":', "Verdict: ", "A", "B", "tie", "winner is", "sorry", "answer")
PIECES = st.sampled_from((*MARKS, *SAID))
ANSWERS = st.one_of(
    st.lists(st.one_of(PIECES, TEXTS), max_size=14).map("".join),
    edited({"reason": "more exact", "verdict": "A"}).map(json.dumps),
    st.builds(lambda piece, times: piece * times, PIECES, st.integers(1, 40_000)),
    st.builds(lambda one, two, times: one + two * times, PIECES, PIECES, st.integers(1, 40_000)),
    st.builds(lambda one, two, times: (one + two) * times, PIECES, PIECES, st.integers(1, 40_000)),
)


@given(ANSWERS)
def test_answers_of_a_judge(text: str) -> None:
    """A verdict or a reason for none, however long and odd it is; it can be kept."""
    found = read(text)
    assert (found.verdict is None) != (found.failure is None)
    found.model_dump_json().encode()
    assert len(found.reason) <= LONGEST


@given(st.one_of(ANSWERS, TEXTS), TEXTS)
def test_what_a_judge_is_asked(answer: str, other: str) -> None:
    """Answers stay data: the message is one JSON object that gives them back."""
    told = {"question": other, "answer_A": answer, "answer_B": other}
    assert json.loads(as_data(told)) == told
    asked = messages(other, answer, other, "original_first")
    assert json.loads(asked[1]["content"])["answer_A"] == answer


GOOD = {"text": '{"verdict": "A"}', "refusal": "", "finish": "stop", "tokens": [3, 4]}


@given(st.one_of(edited(GOOD), ODD))
def test_kept_answers_of_a_judge(value: Any) -> None:
    """What is in the store is an answer or nothing."""
    found = _of_cache({"key": value}, "key")  # type: ignore[arg-type]
    assert found is None or isinstance(found, Reply)
    if value == GOOD:
        assert found == _as_reply(GOOD, known=True)


ADDRESSES = st.one_of(
    TEXTS,
    st.lists(
        st.sampled_from(
            ["http", "https", "file", "://", ":", "/", "@", "user", "127.0.0.1", "[::1]", "[", "]", "99999", "%00"]
        )
        | st.sampled_from(
            ["?k=v", "#f", "..", "v1", "/chat/completions", " ", "\n", "\t", "例え.jp", "\\", "localhost", ":0"]
        ),
        max_size=8,
    ).map("".join),
    st.text("htps:/.@[]0123456789#?", max_size=20).map("http://".__add__),
)


@given(ADDRESSES)
def test_addresses_of_judges(text: str) -> None:
    """What is taken is http or https with a host, and holds neither user nor query; it stays the same."""
    found = clean(lambda: base_url(text), "endpoint")
    if found is not None:
        assert found.startswith(("http://", "https://"))
        parts = urlsplit(found)
        assert parts.hostname
        assert (parts.query, parts.fragment, parts.username) == ("", "", None)
        assert not set("?#\n\t ") & set(found)
        assert base_url(found) == found
