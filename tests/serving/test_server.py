"""Serving: OpenAI's own client against the real server in a process of its own."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import openai
import pytest

from slim.evaluation import streaming
from slim.models import bundled
from slim.models.load import load_model
from slim.pruning.checkpoint import prune
from tests.commands import Run
from tests.pico import keeping, make_pico, plan_of, save_pico

PATIENCE = 120.0
"""Seconds after which a test gives up; nothing is asserted about time."""
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}"
    "<bos> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w1{% endif %}"
)
PROMPT = "w3 w7 w20"
KEEP = keeping((), (0, 2, 3, 5), (3, 4, 5), (0, 1, 2, 3, 4, 5))
TRAP = "import pathlib\npathlib.Path({!r}).touch()\nraise SystemExit('code was run')\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose layers differ, the first without attention, in a folder whose code would leave a trace.

    Its tokens are words, so that all that it may say is text.
    """
    place = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(place / "workspace"))
        loaded = make_pico("llama", vocab_size=64)
        save_pico(loaded, place / "untold")
        loaded.tokenizer.chat_template = TEMPLATE
        original = save_pico(loaded, place / "original")
        folder = prune(plan_of(original.facts, KEEP), place / "pruned")
    (folder / "modeling_slim.py").write_text(TRAP.format(str(place / "trace")))
    return folder


class Server:
    """`slim serve` as the user runs it, once it says that it answers."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "slim", "serve", *map(str, arguments), "--json", "--device", "cpu"]
        environment = {**os.environ, "COLUMNS": "200"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environment, text=True, start_new_session=True, stdout=pipe, stderr=pipe
        )
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: [lines.put(line) for line in self.process.stdout or ()], daemon=True).start()
        said = ""
        while not said.rstrip().endswith("}"):
            said += lines.get(timeout=PATIENCE)
        told = json.loads(said)
        self.url: str = told["url"]
        self.model: str = told["model"]
        self.client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=PATIENCE)

    def stop(self) -> tuple[int, str]:
        """Ctrl-C; the exit code and what was said."""
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said


@contextmanager
def serving(*arguments: object) -> Iterator[Server]:
    """A server that is gone afterwards, whatever happens."""
    server = Server(*arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Server]:
    """One for the tests that only ask."""
    with serving(checkpoint, "--port", "0", "--dtype", "float64") as running:
        yield running


def said_here(source: object, count: int, prompt: str = PROMPT, dtype: str = "float64") -> str:
    """The answer of the page's own loop."""
    loaded = load_model(str(source), device="cpu", dtype=dtype)
    return list(streaming.stream(loaded, prompt, count))[-1].text


def ask(server: Server, count: int = 24, prompt: str = PROMPT, **more: Any) -> Any:
    """A chat of one turn, greedy."""
    turns: Any = [{"role": "user", "content": prompt}]
    return server.client.chat.completions.create(
        model=server.model, messages=turns, max_tokens=count, temperature=0, **more
    )


def test_a_chat_says_what_generate_says(server: Server, checkpoint: Path) -> None:
    """The same greedy text and its tokens, at once and streamed, twice over."""
    expected = said_here(checkpoint, 24)
    assert len(set(expected.split())) > 3
    for _ in range(2):
        answer = ask(server)
        assert answer.choices[0].message.content == expected
        assert answer.model == server.model == checkpoint.name
        assert answer.usage.completion_tokens == 24
        assert answer.choices[0].finish_reason == "length"
        pieces = [chunk.choices[0].delta.content for chunk in ask(server, stream=True) if chunk.choices]
        assert "".join(filter(None, pieces)) == expected
        assert sum(map(bool, pieces)) > 1


def test_a_prompt_is_continued(server: Server, checkpoint: Path) -> None:
    """The endpoint without a chat template."""
    prompt = f"<bos> {PROMPT} w1"
    done = server.client.completions.create(model=server.model, prompt=prompt, max_tokens=24, temperature=0)
    assert done.choices[0].text == said_here(checkpoint, 24)


def test_it_lists_its_model_and_no_other(server: Server) -> None:
    """By the name that requests use."""
    assert [model.id for model in server.client.models.list()] == [server.model]


def test_another_model_is_refused_and_never_loaded(server: Server, checkpoint: Path) -> None:
    """Neither by a chat nor by the server's own way of loading one."""
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.chat.completions.create(model="gpt2", messages=[{"role": "user", "content": "x"}])
    assert "pinned to" in refused.value.response.json()["detail"]
    asked = Request(
        server.url.replace("/v1", "/load_model"), b'{"model": "gpt2"}', {"Content-Type": "application/json"}
    )
    with urlopen(asked, timeout=PATIENCE) as events:
        assert "model='gpt2': " in events.read().decode()
    assert ask(server, 2).choices[0].message.content
    assert not (checkpoint.parent / "trace").exists()


def test_a_prompt_beyond_the_context_is_refused(server: Server) -> None:
    """In OpenAI's form, of a chat, of a streamed one and of a plain prompt; the server goes on."""
    long = "w3 " * 1025
    asked = (
        lambda: ask(server, 2, long),
        lambda: ask(server, 2, long, stream=True),
        lambda: server.client.completions.create(model=server.model, prompt=long, max_tokens=2),
    )
    for one in asked:
        with pytest.raises(openai.BadRequestError, match="context holds 1,024: shorten it") as refused:
            one()
        assert refused.value.code == "context_length_exceeded"
    assert ask(server, 2).choices[0].message.content


def test_what_a_template_refuses_is_an_error_with_its_reason(server: Server) -> None:
    """And the server goes on."""
    turns: Any = [{"role": "system", "content": "w2"}, {"role": "user", "content": "w3"}]
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.chat.completions.create(model=server.model, messages=turns)
    assert refused.value.response.json()["error"]["message"] == "no system turn, please"
    assert ask(server, 2).choices[0].message.content


def test_ctrl_c_ends_it_quietly(checkpoint: Path) -> None:
    """Code 130 and one line, after a chat that a model without a template cannot answer too."""
    with serving(checkpoint.parent / "untold", "--port", "0") as idle:
        with pytest.raises(openai.BadRequestError) as refused:
            ask(idle)
        assert "chat_template" in refused.value.response.json()["error"]["message"]
        assert idle.stop() == (130, "slim: stopped.\n")


def test_ctrl_c_ends_it_while_it_answers(checkpoint: Path) -> None:
    """In the middle of a stream that would go on for long."""
    with serving(checkpoint, "--port", "0") as busy:
        stream = ask(busy, 100_000, stream=True, extra_body={"generation_config": json.dumps({"eos_token_id": None})})
        chunks = iter(stream)
        for _ in range(3):
            next(chunks)
        code, said = busy.stop()
        assert code == 130
        assert said.endswith("slim: stopped.\n")
        assert "Traceback" not in said


@pytest.mark.integration
def test_the_bundled_model_is_served_by_default(shared_workspace: Path) -> None:
    """Under the name that it has everywhere, with the answer that it gives everywhere."""
    question = "What do ships need a lighthouse for?"
    with serving("--port", "0") as real:
        assert real.model == bundled.NAME
        answer = ask(real, prompt=question)
        assert answer.choices[0].message.content == said_here(bundled.NAME, 24, question, "float32")
        assert real.stop()[0] == 130


def test_a_place_that_cannot_be_had_is_one_sentence(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    """Before the model is loaded: a port that is taken or none, a host of elsewhere; then a folder without a model."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            ((checkpoint, "--port", port), f"port={port}: it cannot be used on 127.0.0.1 (Address already in use)"),
            ((checkpoint, "--port", 70000), "'--port'"),
            ((checkpoint, "--port", "x"), "'--port'"),
            ((checkpoint, "--host", "nowhere.invalid", "--port", 0), "host='nowhere.invalid': "),
            ((checkpoint, "--host", "192.0.2.1", "--port", 0), "port=0: it cannot be used on 192.0.2.1"),
            ((tmp_path, "--port", 0), "is a folder without a config.json"),
        ]
        for arguments, sentence in cases:
            done = run("serve", *arguments)
            assert done.code == 2, done.err
            assert len(done.err.splitlines()) == 1
            assert sentence in done.err
