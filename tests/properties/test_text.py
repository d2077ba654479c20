"""Whatever is typed as an option, linked to, shown, or answered by a judge: a value, or one clean line."""

import json
from math import isfinite
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim.core.markdown import escaped
from slim.core.request import Option, Request, Text
from slim.jobs.kinds import ROWS
from slim.judging.address import base_url
from slim.judging.client import Reply, _as_reply, _of_cache
from slim.judging.prompt import LONGEST, as_data, messages, read
from slim.planning.board_choice import from_query, to_query
from slim.planning.request import PlanRequest
from tests.core.test_markdown import SIGNS, shown
from tests.fuzz import ODD, TEXTS, cases, clean, edited
from tests.pico import make_pico, random_rows
from tests.reference import measured

WORDS = st.one_of(
    TEXTS,
    st.text("0123456789:=,. \t-e", max_size=12),
    st.sampled_from(
        ["kl_output=1", "3:1,7", "nan", "a=nan", "0=inf", "a=1,a=2", "9" * 5000, f"a={'9' * 5000}", "٣:١", "1_0"]
    ),
)
REQUESTS: tuple[type[Request], ...] = (PlanRequest, *(row.request for row in ROWS))
FORMS = {f"{kind.verb} {option.name}": (kind, option) for kind in REQUESTS for option in kind.options()}
READ = [name for name, (_, option) in FORMS.items() if option.marker(Text) and option.name != "rubric"]
"""Options whose value is read from one text; the criteria of a judge are a whole file."""


def asked(kind: type[Request], option: Option, value: Any) -> Request:
    """The request with one option, and in those that it needs besides something that can be."""
    needed = {one.name: ["x"] if one.name == "checkpoints" else "x" for one in kind.options() if one.required}
    return kind.asked(**needed | {option.name: value})


@pytest.mark.parametrize("name", READ)
def test_what_is_typed_as_an_option(name: str) -> None:
    """Numbers are finite, layers small; it is written as it was read, and what a stage can not do is one line too."""
    kind, option = FORMS[name]
    form = option.marker(Text)
    assert form is not None

    @given(st.lists(WORDS, min_size=1, max_size=4).map(",".join))
    def every(text: str) -> None:
        found = clean(lambda: form.read(option.name, text), option.name)
        if found is None:
            return
        assert form.read(option.name, form.write(found)) == found
        if isinstance(found, dict):
            assert all(isfinite(value) for value in found.values() if isinstance(value, float))
        numbers = [number for one in found for number in (one if isinstance(one, tuple) else [one])]
        assert all(0 <= number < 10**9 for number in numbers if isinstance(number, int))
        clean(lambda: asked(kind, option, found))

    every()


@pytest.mark.parametrize("name", FORMS)
def test_what_a_program_gives_for_an_option(name: str) -> None:
    """A request that can be stored and asked again, or one line."""
    kind, option = FORMS[name]

    @cases(0.3)
    @given(ODD)
    def every(value: Any) -> None:
        found = clean(lambda: asked(kind, option, value))
        if found is not None:
            assert kind.of_job(json.loads(json.dumps(found.arguments()))).changed().keys() == found.changed().keys()

    every()


@pytest.fixture(scope="module")
def calibrated() -> Any:
    return measured(make_pico("llama"), random_rows((5, 6)))


def test_links(calibrated: Any) -> None:
    """A link gives a board state that can be linked to again; what cannot be followed is reported in one line."""
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
    """A value in the store is read as an answer or as nothing."""
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
    """An accepted address is http or https with a host, and holds neither user nor query; it stays the same."""
    found = clean(lambda: base_url(text), "endpoint")
    if found is not None:
        assert found.startswith(("http://", "https://"))
        parts = urlsplit(found)
        assert parts.hostname
        assert (parts.query, parts.fragment, parts.username) == ("", "", None)
        assert not set("?#\n\t ") & set(found)
        assert base_url(found) == found


PIECES = st.one_of(st.sampled_from([*SIGNS, *"\\`*_[]<>|~$#&@:!(){}+-=.^ \n\t", "www.", "https://"]), TEXTS)


@given(st.lists(PIECES, min_size=1, max_size=6).map("".join))
def test_text_stays_text_in_markdown(said: str) -> None:
    """Word for word; NUL alone has another sign there."""
    said = said.replace("\0", "")
    assert (shown(escaped(said)) or "") == " ".join(said.split())
