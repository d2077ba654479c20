"""Asking a judge: real HTTP to a server that answers, refuses, breaks off, waits or fails as a script says."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from slim.core.errors import InputError, SlimError
from slim.judging import client
from slim.judging.address import base_url
from slim.judging.client import Reply
from slim.judging.connection import models_of, prepare
from slim.judging.endpoint import Endpoint
from slim.judging.prompt import messages
from tests.judge_server import JudgeServer, Script, Scripted, always, serving, verdict

KEY = "sk-very-secret-0123456789"
FINE = '{"reason": "because", "verdict": "A"}'


def questions(count: int) -> list[client.Messages]:
    """That many different ones."""
    return [messages(f"question {place}", "one", "two", "original_first") for place in range(count)]


def ask(server: JudgeServer, count: int = 6, **settings: Any) -> list[Reply]:
    """The replies to that many questions; without retries unless they are asked for."""
    asked = Endpoint.checked(**{"url": server.url, "model": "pico-judge", "retries": 0, "concurrency": 4} | settings)
    with client.open_reply_cache() as cache:
        return client.ask(asked, questions(count), cache)


def failures(replies: list[Reply]) -> set[str | None]:
    return {reply.failure for reply in replies}


def test_answers_come_in_the_order_of_the_questions() -> None:
    """Whichever ends first, and each question once."""

    def script(asked: dict[str, Any], count: int) -> Scripted:
        number = json.loads(asked["messages"][1]["content"])["question"]
        return Scripted(number, wait=0.03 if number.endswith("0") else 0)

    with serving(script) as server:
        replies = ask(server, 12)
        assert [reply.text for reply in replies] == [f"question {place}" for place in range(12)]
        assert len(server.asked) == 12
        assert (replies[0].tokens_in, replies[0].tokens_out, replies[0].known) == (100, 10, False)
        first = server.asked[0]
        assert first["model"] == "pico-judge"
        assert first["temperature"] == 0
        assert first["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == ["A", "B", "tie"]


def test_what_was_answered_is_not_asked_again() -> None:
    """Not by the same judge; another model, another limit or another question is another call."""
    with serving(always(verdict("A"))) as server:
        ask(server, 4)
        again = ask(server, 6)
        assert [reply.known for reply in again] == [True] * 4 + [False] * 2
        assert len(server.asked) == 6
        ask(server, 6, model="other")
        assert len(server.asked) == 12
        ask(server, 6, concurrency=1, timeout=5, retries=3)
        assert len(server.asked) == 12
    assert all(reply.known and reply.text == FINE for reply in ask(server, 6))  # the server is gone


def test_where_an_event_loop_runs_already() -> None:
    """As in a notebook: the models are listed and the questions asked all the same, and what fails says so."""

    async def cell(server: JudgeServer) -> tuple[list[str], list[Reply]]:
        return models_of(server.url, 5), ask(server, 3)

    with serving(always(verdict("A"))) as server:
        names, replies = asyncio.run(cell(server))
        assert (names, failures(replies)) == (["pico-judge"], {None})
    with pytest.raises(SlimError, match="does not answer"):
        asyncio.run(cell(server))


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("taken", ["json_object", None])
def test_an_endpoint_without_schemas_is_asked_in_plainer_ways(taken: str | None, status: int) -> None:
    """One that refuses schemas, or any form, is found out once and asked in the next way from then on."""

    def script(asked: dict[str, Any], count: int) -> Scripted:
        form = asked.get("response_format", {}).get("type")
        return verdict("B") if form in (taken, None) else Scripted(status=status, body=b'{"error": {"message": "no"}}')

    with serving(script) as server:
        replies = ask(server, 5, concurrency=1)
        assert failures(replies) == {None}
        forms = [asked.get("response_format", {}).get("type") for asked in server.asked]
        assert (
            forms == (["json_schema", "json_object"] if taken else ["json_schema", "json_object", None]) + [taken] * 4
        )


def test_settings_that_a_model_refuses_by_name_are_left_out() -> None:
    """As the reasoning models do with the temperature and the older name of the limit."""

    def script(asked: dict[str, Any], count: int) -> Scripted:
        for name in ("max_tokens", "temperature"):
            if name in asked:
                error = {"message": "Unsupported parameter", "param": name, "code": "unsupported_parameter"}
                return Scripted(status=400, body=json.dumps({"error": error}).encode())
        return verdict("A")

    with serving(script) as server:
        assert failures(ask(server, 3, concurrency=1)) == {None}
        assert len(server.asked) == 5
        assert server.asked[-1]["max_completion_tokens"] == 512
        assert server.asked[-1]["response_format"]["type"] == "json_schema"


def test_a_storm_of_429_is_waited_out_as_long_as_it_says() -> None:
    """No call comes back sooner than Retry-After, and all are answered in the end."""

    def script(asked: dict[str, Any], count: int) -> Scripted:
        busy = Scripted(status=429, headers={"Retry-After": "1"}, body=b'{"error": {"message": "slow down"}}')
        return busy if count < 4 else verdict("A")

    with serving(script) as server:
        assert failures(ask(server, 4, retries=2)) == {None}
        assert len(server.asked) == 8
        assert min(server.times[4:]) - max(server.times[:4]) > 0.9


def test_errors_of_the_server_are_tried_again_and_then_told() -> None:
    """A single 500 costs nothing but time; one on every call is a failure, told as such and asked again next time."""
    broken = Scripted(status=500, body=b"oops")
    with serving(lambda asked, count: broken if count == 0 else verdict("A")) as server:
        assert failures(ask(server, 1, retries=1)) == {None}
        assert len(server.asked) == 2
    with serving(always(broken)) as server:
        assert failures(ask(server, 3)) == {"HTTP 500 from the endpoint"}
        ask(server, 3)
        assert len(server.asked) == 6


def test_a_timeout_is_a_failure() -> None:
    """The endpoint is given no more than what was asked for."""
    with serving(always(Scripted("late", wait=1.0))) as server:
        assert failures(ask(server, 2, timeout=0.2)) == {"the endpoint took longer than the timeout"}


def test_the_timeout_holds_for_an_answer_that_drips() -> None:
    """A byte now and then keeps no try alive, and what follows a try that was given up is another try."""
    with serving(always(Scripted("late", drip=0.05))) as server:
        assert failures(ask(server, 2, timeout=0.3)) == {"the endpoint took longer than the timeout"}
        assert len(server.asked) == 2
        assert failures(ask(server, 1, timeout=0.3, retries=1)) == {"the endpoint took longer than the timeout"}
        assert len(server.asked) == 4
        server.script = lambda asked, count: verdict("A") if count > 4 else Scripted("late", drip=0.05)
        assert failures(ask(server, 1, timeout=0.3, retries=1)) == {None}


def no_system(message: dict[str, Any], status: int = 400) -> Script:
    """An endpoint that takes no system turn, and says so."""

    def script(asked: dict[str, Any], count: int) -> Scripted:
        if any(turn["role"] == "system" for turn in asked["messages"]):
            return Scripted(status=status, body=json.dumps(message).encode())
        return verdict("A")

    return script


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ({"error": {"message": "System role not supported", "type": "BadRequestError"}}, 400),
        ({"error": {"message": "Unsupported value", "param": "messages[0].role", "code": "unsupported_value"}}, 400),
        ({"message": "Only user and assistant roles are supported!"}, 400),
        ({"detail": [{"loc": ["messages", 0, "role"], "msg": "Input should be 'user' or 'assistant'"}]}, 422),
    ],
)
def test_a_refused_system_turn_goes_into_the_users(message: dict[str, Any], status: int) -> None:
    """Once for the run, with nothing lost; what is kept is under what was asked, not how."""
    with serving(no_system(message, status)) as server:
        assert failures(ask(server, 4, concurrency=1)) == {None}
        assert [len(asked["messages"]) for asked in server.asked] == [2, 1, 1, 1, 1]
        system, user = (turn["content"] for turn in questions(1)[0])
        assert server.asked[1]["messages"] == [{"role": "user", "content": f"{system}\n\n{user}"}]
        assert {asked["response_format"]["type"] for asked in server.asked} == {"json_schema"}
        server.script = always(verdict("B"))
        assert all(reply.known for reply in ask(server, 4))


def test_an_endpoint_that_takes_neither_system_turns_nor_schemas() -> None:
    """Both are found out, whichever it says first."""
    refuses = no_system({"error": {"message": "System role not supported"}})

    def script(asked: dict[str, Any], count: int) -> Scripted:
        plain = "response_format" not in asked
        return refuses(asked, count) if plain else Scripted(status=400, body=b'{"error": {"message": "no forms"}}')

    for first in (script, lambda asked, count: _worse(refuses(asked, count), script(asked, count))):
        with serving(first) as server:
            assert failures(ask(server, 3, concurrency=1)) == {None}
            assert [len(asked["messages"]) for asked in server.asked[-2:]] == [1, 1]
            assert not any("response_format" in asked for asked in server.asked[-2:])


def _worse(one: Scripted, other: Scripted) -> Scripted:
    return one if one.status != 200 else other


def test_a_question_too_long_for_the_judge_fails_alone() -> None:
    """With the endpoint's own code; the others are asked as before."""

    def script(asked: dict[str, Any], count: int) -> Scripted:
        if "question 3" not in asked["messages"][1]["content"]:
            return verdict("A")
        error = {"message": "This model's maximum context length is 8 tokens", "code": "context_length_exceeded"}
        return Scripted(status=400, body=json.dumps({"error": error}).encode())

    with serving(script) as server:
        found = [reply.failure for reply in ask(server, 6, concurrency=1)]
        assert found == [None] * 3 + ["HTTP 400 from the endpoint (context_length_exceeded)"] + [None] * 2
        assert server.asked[-1]["response_format"]["type"] == "json_schema"


def test_an_endpoint_that_goes_down_is_left_alone() -> None:
    """Its answers up to then are kept, the calls under way fail, and the rest is not asked."""
    with serving(lambda asked, count: verdict("A") if count < 10 else Scripted(hang_up=True)) as server:
        replies = ask(server, 60)
        assert sum(reply.failure is None for reply in replies) == 10
        gone = "the endpoint does not answer"
        assert failures(replies) == {None, gone, f"not asked: the endpoint had stopped answering ({gone})"}
        assert len(server.asked) < 30
        server.script = always(verdict("B"))
        before = len(server.asked)
        again = ask(server, 60)
        assert failures(again) == {None}
        assert sum(reply.known for reply in again) == 10
        assert len(server.asked) - before == 50


def test_a_refused_key_ends_the_asking() -> None:
    """No further call is made, and the refusal is the reason of each."""
    with serving(always(verdict("A")), key=KEY) as server:
        assert failures(ask(server, 50)) == {"the endpoint refuses the key (HTTP 401)"}
        assert not server.asked


def test_an_unknown_model_ends_the_asking() -> None:
    """As every call would end so."""
    with serving(always(Scripted(status=404, body=b'{"error": {"code": "model_not_found"}}'))) as server:
        assert failures(ask(server, 50)) == {"HTTP 404 from the endpoint (model_not_found)"}
        assert len(server.asked) <= 4


@pytest.mark.parametrize(
    ("script", "reply"),
    [
        (always(Scripted("", refusal="I cannot.")), Reply(text="I cannot.", failure="refusal")),
        (always(Scripted("A", finish="content_filter")), Reply(text="A", failure="refusal")),
        (always(Scripted(None)), Reply()),
        (always(Scripted("so far", finish="length")), Reply(text="so far", cut=True)),
        (always(Scripted(body=b"<html>hello</html>")), Reply(failure="an answer that does not follow the OpenAI API")),
        (always(Scripted(body=b'{"choices": []}')), Reply(failure="an answer that does not follow the OpenAI API")),
        (always(Scripted(body=b'{"choices": [{}]}')), Reply(failure="an answer that does not follow the OpenAI API")),
        (always(Scripted(body=b'{"choices": 3}')), Reply(failure="an answer that does not follow the OpenAI API")),
    ],
)
def test_odd_answers(script: Script, reply: Reply) -> None:
    """Refusals, nothing, an answer that was cut, and one that cannot be read at all."""
    with serving(script) as server:
        (found,) = ask(server, 1)
        assert (found.text, found.failure, found.cut) == (reply.text, reply.failure, reply.cut)


def test_the_key_is_sent_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, own_workspace: Path) -> None:
    """It opens the endpoint; an endpoint that repeats it in its answers does not get it into what is kept."""
    monkeypatch.setenv("SLIM_JUDGE_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with serving(always(Scripted(f"Your key {KEY} is fine. Verdict: A")), key=KEY) as server:
        (found,) = ask(server, 1)
        assert found.text == "Your key … is fine. Verdict: A"
        with client.open_reply_cache() as cache:
            kept = [cache[name] for name in cache]
    assert len(kept) == 1
    assert KEY not in json.dumps(kept)
    assert not any(KEY.encode() in file.read_bytes() for file in own_workspace.rglob("*") if file.is_file())
    monkeypatch.delenv("SLIM_JUDGE_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    with serving(always(verdict("B")), key="second") as server:
        assert failures(ask(server, 1)) == {None}


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        (" https://api.example.com/v1/chat/completions ", "https://api.example.com/v1"),
        ("https://api.example.com/v1/chat/completions/", "https://api.example.com/v1"),
    ],
)
def test_both_kinds_of_url_are_taken(given: str, base: str) -> None:
    """The base, and the full one of chat completions."""
    assert base_url(given) == base


@pytest.mark.parametrize(
    "given",
    [
        "",
        "api.example.com/v1",
        "ftp://x/v1",
        "http://",
        "http://x:port/v1",
        "http://[::1",
        "https://me:secret@x/v1",
        "https://x/v1?key=secret",
    ],
)
def test_other_urls_are_refused(given: str) -> None:
    """So are those that hold a key, which is not repeated."""
    with pytest.raises(InputError) as refused:
        base_url(given)
    assert "endpoint: the URL" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_only_model_is_the_default() -> None:
    """Several have to be chosen from; an endpoint that keeps no list is asked for a name of no meaning."""
    with serving(always(verdict("A"))) as server:
        assert prepare(server.url, None, {})[0].model == "pico-judge"
        assert prepare(server.url, "mine", {})[0].model == "mine"
        server.models = ("one", "two")
        with pytest.raises(InputError, match=r"judge_model: .* has 2 models \(one, two …\): name one of them"):
            prepare(server.url, None, {})
        server.models = ()
        assert prepare(server.url, None, {})[0].model == "default"
        with pytest.raises(InputError, match="concurrency=0: "):
            prepare(server.url, None, {"concurrency": 0})


def test_what_is_wrong_with_an_endpoint_is_known_before_it_is_needed() -> None:
    """A wrong key and an endpoint that is not there; with a model named, earlier answers may still do."""
    with serving(always(verdict("A")), key=KEY) as server, pytest.raises(InputError, match="refuses the key"):
        models_of(server.url, 5)
    with pytest.raises(SlimError, match="does not answer"):
        models_of(server.url, 5)
    asked, trouble = prepare(server.url, "named", {})
    assert asked.model == "named"
    assert isinstance(trouble, SlimError)
