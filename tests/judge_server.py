"""A chat endpoint on this machine that does what a script says: answers, refuses, breaks off, waits or fails."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Scripted:
    """One answer of the server. Without a `body` it is a completion with `content` in it."""

    content: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    wait: float = 0.0
    drip: float = 0.0
    """Seconds between two bytes of the body."""
    hang_up: bool = False
    finish: str = "stop"
    refusal: str | None = None


Script = Callable[[dict[str, Any], int], Scripted]
"""From a request's body, and how many came before it."""


def verdict(letter: str, reason: str = "because") -> Scripted:
    """The answer that was asked for."""
    return Scripted(json.dumps({"reason": reason, "verdict": letter}))


def always(answer: Scripted) -> Script:
    """The same answer to everything."""
    return lambda asked, count: answer


def shown(asked: dict[str, Any]) -> dict[str, str]:
    """The question and the two answers that a request shows."""
    return json.loads(asked["messages"][-1]["content"])


def by_length(asked: dict[str, Any], count: int) -> Scripted:
    """A judge that prefers the longer answer, wherever it stands."""
    first, second = (len(shown(asked)[name]) for name in ("answer_A", "answer_B"))
    return verdict("tie" if first == second else "A" if first > second else "B")


class JudgeServer(ThreadingHTTPServer):
    """Counts what it is asked and says what `script` says. Where `key` is set no other is let in."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script, models: tuple[str, ...] = ("pico-judge",), key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.models, self.key = script, models, key
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing where a client went away."""


@contextmanager
def serving(script: Script, **options: Any) -> Iterator[JudgeServer]:
    """A server that runs until the block ends."""
    server = JudgeServer(script, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: JudgeServer  # type: ignore[override]

    def do_GET(self) -> None:
        """The list of models."""
        if self.locked():
            return
        self.answer(200, json.dumps({"object": "list", "data": [_model(name) for name in self.server.models]}).encode())

    def do_POST(self) -> None:
        """A completion."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.locked():
            return
        with self.server.lock:
            count = len(self.server.asked)
            self.server.asked.append(asked)
            self.server.times.append(time.monotonic())
        said = self.server.script(asked, count)
        time.sleep(said.wait)
        if said.hang_up:
            self.close_connection = True
            self.connection.close()
            return
        body = said.body if said.body is not None else _completion(said)
        self.answer(said.status, body, said.headers, said.drip)

    def locked(self) -> bool:
        """Whether the key is another one; the refusal repeats it, as some endpoints do."""
        given = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if self.server.key is None or given == self.server.key:
            return False
        error = {"message": f"Incorrect API key provided: {given}", "code": "invalid_api_key"}
        self.answer(401, json.dumps({"error": error}).encode())
        return True

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, drip: float = 0) -> None:
        """Status, headers and body."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for part in [body[place : place + 1] for place in range(len(body))] if drip else [body]:
            self.wfile.write(part)
            time.sleep(drip)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tests"}


def _completion(said: Scripted) -> bytes:
    message = {"role": "assistant", "content": said.content, "refusal": said.refusal}
    choice = {"index": 0, "message": message, "finish_reason": said.finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    done = {"id": "1", "object": "chat.completion", "created": 0, "model": "pico-judge", "choices": [choice]}
    return json.dumps(done | {"usage": usage}).encode()
