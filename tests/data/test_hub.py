"""The Hub: its real client against a server of our own that knows as much of the Hub as it asks for."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from slim.core.errors import InputError
from slim.data import tasks
from slim.models import tokenizer
from slim.models.load import Loaded
from slim.planning.files import save_plan
from tests.pico import keeping, plan_of, save_pico

COMMIT = "a" * 40
ROWS = "".join(json.dumps({"question": f"{row} + 1?", "answer": str(row + 1)}) + "\n" for row in range(30))
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "nobody/toy": {"README.md": b"---\nlicense: mit\n---\n", "train.jsonl": ROWS.encode()},
    "nobody/script": {"README.md": b"---\nlicense: mit\n---\n", "script.py": b"raise SystemExit('code was run')\n"},
}
ASK = """
import json, sys
from slim.data import tasks
from slim.core.errors import InputError
for given in json.loads(sys.argv[1]):
    try:
        task = tasks.load_task(given.pop("source"), **given)
        said = [task.rows, task.revision, task.examples[0].prompt, tasks.choose(task, 1, 0)[0].answer]
    except InputError as error:
        said = str(error)
    print("said " + json.dumps(said))
"""


ASK_MODEL = """
import sys
from pathlib import Path
from slim.models.load import load_model
from slim.planning.files import load_plan
from slim.core.errors import InputError
from slim.pruning.checkpoint import prune
source, file = sys.argv[1:]
for output in sys.stdin:
    try:
        said = prune(load_plan(Path(file)), Path(output.strip()))
    except InputError as error:
        said = error
    print(load_model(source, device="cpu").facts.fingerprint, said, flush=True)
"""


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the Hub that serves facts, the tree and files of a dataset or a model."""

    commit = COMMIT
    down = False
    fetched: list[str] = []  # noqa: RUF012  the names of the files that were asked for, over all requests

    def do_GET(self) -> None:
        """Any question."""
        if self.down:
            return self.answer(503, b"", {})
        path = self.path.split("?")[0].removeprefix("/api")
        path = path.removeprefix("/datasets").removeprefix("/models").removeprefix("/")
        name, rest = "/".join(path.split("/")[:2]), path.split("/")[2:]
        files = REPOSITORIES.get(name)
        if files is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["resolve"]:
            content = files.get(rest[-1])
            if content is None:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit})
            self.fetched.append(rest[-1])
            return self.answer(200, content, {"ETag": f'"{len(content)}"', "X-Repo-Commit": self.commit})
        if rest[:1] == ["revision"] and rest[-1] not in ("main", self.commit):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        tree = [{"type": "file", "oid": "b" * 40, "size": len(files[file]), "path": file} for file in files]
        facts = {"id": name, "sha": self.commit, "siblings": [{"rfilename": file} for file in files], "tags": []}
        return self.answer(200, json.dumps(tree if rest[:1] == ["tree"] else facts).encode(), {})

    do_HEAD = do_GET

    def answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        """Status, headers, and the body unless only the head was asked for."""
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    """The server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(endpoint: str, home: Path, *given: dict[str, str]) -> tuple[list[Any], str]:
    """Results of loading these datasets, and the log. The client reads its settings but once, hence a new process."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", ASK, json.dumps(given)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    said = [line.removeprefix("said ") for line in run.stdout.splitlines() if line.startswith("said ")]
    return [json.loads(line) for line in said], run.stderr


def test_a_dataset_of_the_hub(hub: str, tmp_path: Path) -> None:
    """Downloaded at the commit of today; what does not exist is named; and it is still there without a connection."""
    toy = {"source": "nobody/toy"}
    found, _ = ask(
        hub,
        tmp_path,
        toy,
        toy | {"revision": "main"},
        toy | {"revision": "v9"},
        toy | {"split": "dev"},
        toy | {"config": "other"},
        {"source": "nobody/other"},
        {"source": "nobody/script"},
    )
    assert found[0] == found[1] == [30, COMMIT, "0 + 1?", found[0][3]]
    assert found[2] == "revision 'v9' of dataset 'nobody/toy' does not exist: name another."
    assert "split 'dev'" in found[3]
    assert "['train']" in found[3]
    assert "'other' not found" in found[4]
    assert found[5].startswith("dataset 'nobody/other' was not found")
    assert "scripts are no longer supported" in found[6]

    kept, log = ask("http://127.0.0.1:9", tmp_path, toy, toy | {"revision": "main"}, {"source": "nobody/other"})
    assert "Retry" not in log  # which takes the client most of a minute
    assert kept[0] == [30, None, *found[0][2:]]
    assert "at revision 'main' cannot be had: the Hub was not reached" in kept[1]
    assert kept[2].startswith("dataset 'nobody/other' is not a file here, and the Hub was not reached")


@pytest.mark.parametrize("given", [{}, {"split": "dev"}, {"revision": "main"}])
def test_a_name_without_a_connection(given: dict[str, Any]) -> None:
    """The client is set to stay offline."""
    with pytest.raises(InputError, match=r"'nobody/nothing'.*the Hub was not reached \(HF_HUB_OFFLINE is set\)"):
        tasks.load_task("nobody/nothing", **given)


def test_a_tokenizer_of_the_hub_without_a_connection() -> None:
    """One sentence as well."""
    with pytest.raises(InputError, match="model 'nobody/nothing' is not here, and the Hub was not reached"):
        tokenizer.load_tokenizer("nobody/nothing")


def test_a_model_of_the_hub(
    hub: str, pico: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at the commit its plan was made for, without a connection too, and refused once the Hub has another.

    No code and no other format of its weights is downloaded.
    """
    made = save_pico(pico("llama"), tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    others = {"modeling_x.py": b"raise SystemExit", "pytorch_model.bin": b"x", "consolidated.safetensors": b"x"}
    monkeypatch.setitem(REPOSITORIES, "nobody/model", files | others)
    monkeypatch.setattr(Hub, "fetched", [])
    facts = made.facts.model_copy(update={"source": "nobody/model", "fingerprint": COMMIT})
    plan = save_plan(plan_of(facts, keeping((), *((0, 1, 2, 3, 4, 5),) * 3)), tmp_path / "plan.json")

    command = [sys.executable, "-c", ASK_MODEL, "nobody/model", str(plan)]
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as client:

        def ask_for(output: str) -> list[str]:
            assert client.stdin is not None
            assert client.stdout is not None
            print(tmp_path / output, file=client.stdin)
            return client.stdout.readline().strip().split(" ", 1)

        assert ask_for("first") == [COMMIT, str(tmp_path / "first")]
        assert set(Hub.fetched) == set(files)
        monkeypatch.setattr(Hub, "down", True)
        assert ask_for("second") == [COMMIT, str(tmp_path / "second")]
        monkeypatch.setattr(Hub, "down", False)
        monkeypatch.setattr(Hub, "commit", "c" * 40)
        newer, refused = ask_for("third")
    assert newer == "c" * 40
    assert "fingerprint aaaaaaaaaaaa, and that model is now cccccccccccc; calibrate and plan again" in refused
    assert not (tmp_path / "third").exists()
