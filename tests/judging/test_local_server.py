"""A judge on this machine: the real servers, started as a child, asked, and gone afterwards, whatever ends the run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from slim.core.errors import InputError, SlimError
from slim.judging import client, judge
from slim.judging.local_server import find_local_judge
from slim.judging.prompt import RUBRIC, messages
from slim.judging.request import JudgeRequest
from slim.models import bundled
from slim.models.load import locate
from slim.pruning.checkpoint import prune
from tests.judging.test_judge import OLD_COMPARISON, OLD_KEYS, OLD_SUMMARY
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.reporting import Heard

KEEP = keeping((), (0, 2, 3, 5), (3, 4, 5), (0, 1, 2, 3, 4, 5))
KEY = "sk-very-secret-0123456789"
TEMPLATE = "{% for m in messages %}<bos> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w1{% endif %}"
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ROWS = 2
PATIENCE = 120.0
"""Seconds after which a test gives up; nothing is asserted about time."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`stock` and `pruned`, which takes no system turns and whose layers differ, `strict`, alike, and `mute`."""
    place = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(place / "workspace"))
        loaded = make_pico("llama", vocab_size=64)
        save_pico(loaded, place / "mute")
        loaded.tokenizer.chat_template = TEMPLATE
        save_pico(loaded, place / "stock")
        loaded.tokenizer.chat_template = REFUSING + TEMPLATE
        strict = save_pico(loaded, place / "strict")
        prune(plan_of(strict.facts, KEEP), place / "pruned")
    return place


def asked(count: int = 2) -> list[client.Messages]:
    return [messages(f"question {place}", "one", "two", "original_first") for place in range(count)]


def children() -> list[psutil.Process]:
    """The servers that this process has started."""
    return [one for one in psutil.Process().children(recursive=True) if "slim.judging.parent_watch" in one.cmdline()]


def gone(pid: int) -> bool:
    """Whether a process has ended; where nobody collects orphans they stay as zombies."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(true: Callable[[], object]) -> None:
    """Comes back once it is, and fails where it never is."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("name", "server", "system"),
    [
        ("stock", "transformers.cli.transformers", True),
        ("strict", "transformers.cli.transformers", False),
        ("pruned", "slim", False),
    ],
)
def test_each_kind_of_model_has_its_server(
    name: str, server: str, system: bool, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers on this machine alone, receives no key, and whether the model takes a system turn is found out."""
    monkeypatch.setenv("SLIM_JUDGE_KEY", KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    found = find_local_judge(str(models / name))
    endpoint = found.endpoint({"max_tokens": 4, "retries": 0})
    assert (endpoint.concurrency, endpoint.timeout) == (1, 600)
    with found.started(endpoint, "cpu") as there, client.open_reply_cache() as cache:
        (process,) = children()
        assert process.cmdline()[4:6] == [server, "serve"]
        assert {one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        surroundings = process.environ()
        assert KEY not in surroundings.values()
        assert surroundings["HF_HUB_OFFLINE"] == "1"
        assert there.system_turn is system
        assert there.key_of(asked()[0]) == endpoint.key_of(asked()[0])
        replies = client.ask(there, asked(), cache)
    assert [reply.failure for reply in replies] == [None, None]
    assert [reply.tokens_out for reply in replies] == [4, 4]
    assert gone(process.pid)
    with client.open_reply_cache() as cache:
        assert all(reply is not None for reply in client.known(endpoint, asked(), cache))


def test_a_model_whose_ends_are_not_all_named_is_served_by_slim(models: Path, tmp_path: Path) -> None:
    """As transformers' own server stops only where the generation config says."""
    for end, by_slim in (("<pad>", True), ("<eos>", False), ("w5", False)):
        folder = shutil.copytree(models / "stock", tmp_path / end)
        (folder / "chat_template.jinja").write_text(TEMPLATE.replace(" {% endfor", f" {end} {{% endfor"))
        assert find_local_judge(str(folder)).by_slim is by_slim
        named = json.loads((folder / "generation_config.json").read_text()) | {"eos_token_id": [2, 0]}
        (folder / "generation_config.json").write_text(json.dumps(named))
        assert not find_local_judge(str(folder)).by_slim


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, SlimError), pytest.param(signal.SIGINT, KeyboardInterrupt, marks=pytest.mark.release)],
)
def test_a_server_goes_with_an_error_in_the_block(
    models: Path, number: signal.Signals, error: type[BaseException]
) -> None:
    """As with the signal that cancels a job, and with Ctrl-C."""
    found = find_local_judge(str(models / "stock"))

    def stop(number: int, frame: object) -> None:
        raise SlimError("cancelled")

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, stop),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job of a shell may ignore it
    }
    try:
        servers: list[psutil.Process] = []
        with pytest.raises(error), found.started(found.endpoint({}), "cpu"):  # noqa: PT012
            servers += children()
            os.kill(os.getpid(), number)
            time.sleep(PATIENCE)
        assert [gone(one.pid) for one in servers] == [True]
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (signal.SIGKILL, "starting"),
        pytest.param(signal.SIGKILL, "answers", marks=pytest.mark.release),
        pytest.param(signal.SIGTERM, "answers", marks=pytest.mark.release),
    ],
)
def test_a_server_goes_with_a_parent_that_is_killed(models: Path, number: signal.Signals, word: str) -> None:
    """By signals that leave it no word, and by one that ends it before the server answers."""
    script = (
        "import sys, time, psutil\n"
        "from slim.core.reporter import Reporter\n"
        "from slim.judging.local_server import find_local_judge\n"
        "class Printing(Reporter):\n"
        "    def progress(self, done, total, message): print('starting', flush=True)\n"
        "found = find_local_judge(sys.argv[1])\n"
        "with found.started(found.endpoint({}), 'cpu', Printing()):\n"
        "    print('answers', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(models / "stock")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        assert any(line.strip() == word for line in parent.stdout)
        wait_for(lambda: psutil.Process(parent.pid).children())
        (server,) = psutil.Process(parent.pid).children()
        parent.send_signal(number)
        assert parent.wait() == -number
        wait_for(lambda: gone(server.pid))
    finally:
        parent.kill()
        parent.communicate()


def test_a_server_that_fails_says_why(models: Path, tmp_path: Path) -> None:
    """Weights that cannot be read, a model without a chat template, and one that takes too long; nothing runs on."""
    shutil.copytree(models / "stock", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")
    for place, patience, reason in (
        (tmp_path / "broken", PATIENCE, r"broken': its server ended \(.*[Ss]afetensor"),
        (models / "mute", PATIENCE, r"mute': no chat, HTTP 500 \(.*chat_template"),
        (models / "stock", 0.01, r"stock': its server did not answer within 0\.01 s \(its log is empty\)"),
    ):
        found = find_local_judge(str(place))
        with pytest.raises(SlimError, match=reason), found.started(found.endpoint({}), "cpu", patience=patience):
            pass
        assert not children()


def test_what_is_no_judge_is_refused(models: Path, tmp_path: Path) -> None:
    """Before anything starts."""
    with pytest.raises(InputError, match=r"nowhere' was not found"):
        find_local_judge("/nowhere")
    shutil.copytree(models / "stock", tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").rename(tmp_path / "bare" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"local_judge='.*bare': it has no safetensors weights"):
        find_local_judge(str(tmp_path / "bare"))
    shutil.copytree(models / "stock", tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"odd': its config.json cannot be read"):
        find_local_judge(str(tmp_path / "odd")).endpoint({})
    for name in ("endpoint", "judge_model"):
        given = {"endpoint": None, "judge_model": None, name: f"http://host/{KEY}/v1"}
        with pytest.raises(InputError, match=f"{name}, local_judge='mine': one run has one judge") as refused:
            JudgeRequest.asked(original="x", pruned="y", local_judge="mine", **given)
        assert KEY not in str(refused.value)


def test_a_judge_is_its_files_and_not_its_place(models: Path, tmp_path: Path) -> None:
    """A copy elsewhere is the same judge; other weights or another template make another."""
    (question,) = asked(1)
    first = find_local_judge(str(models / "stock")).endpoint({})
    shutil.copytree(models / "stock", tmp_path / "copy")
    assert find_local_judge(str(tmp_path / "copy")).endpoint({}).key_of(question) == first.key_of(question)
    for name in ("strict", "pruned"):
        assert find_local_judge(str(models / name)).endpoint({}).key_of(question) != first.key_of(question)
    assert find_local_judge(str(models / "stock")).endpoint({"max_tokens": 9}).key_of(question) != first.key_of(
        question
    )


@pytest.mark.integration
def test_the_real_server_judges_with_the_bundled_model(
    models: Path, tmp_path: Path, shared_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`slim judge` from its first word to its file. The judge is a poor one: each call gives a verdict or a reason.

    Once more, from the command line, everything is known, so that no server is started.
    """
    home = tmp_path / "workspace"
    locate(bundled.NAME)  # which unpacks it there, where no test has yet
    shutil.copytree(shared_workspace / "models", home / "models", copy_function=os.link)
    monkeypatch.setenv("SLIM_HOME", str(home))
    rows = [{"question": f"What is {row} + 1?", "answer": str(row + 1)} for row in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: dict[int, list[str]] = {}

    class Watching(Heard):
        def progress(self, done: float, total: float, message: str) -> None:
            super().progress(done, total, message)
            seen.update({one.pid: one.cmdline() for one in children()} if message == "Judging" else {})

    output, heard = tmp_path / "out.json", Watching()
    both = {"original": models / "stock", "pruned": models / "pruned", "dataset": tmp_path / "rows.jsonl"}
    short = {"samples": ROWS, "max_new_tokens": 4, "max_tokens": 24, "device": "cpu", "output": output}
    found = judge.judge(JudgeRequest.asked(local_judge=bundled.NAME, **both, **short), heard).record
    ((pid, command),) = seen.items()
    assert command[4:7] == ["transformers.cli.transformers", "serve", str(home / "models" / "smollm2-135m")]
    assert gone(pid)
    stages = [message for *_, message in heard.steps]
    assert stages.index("Starting the judge") > stages.index("Answering")
    assert heard.estimates[0].startswith(f"{ROWS} pairs, {2 * ROWS} calls, at most")
    facts = found.judge
    assert (facts.kind, facts.name, facts.endpoint, facts.rubric) == ("local", bundled.NAME, None, RUBRIC)
    assert facts.fingerprint == find_local_judge(bundled.NAME).fingerprint
    assert (facts.calls, facts.known_calls) == (2 * ROWS, 0)
    assert facts.tokens_in > 200 * 2 * ROWS
    assert 0 < facts.tokens_out <= 24 * 2 * ROWS
    file: dict[str, Any] = json.loads(output.read_text())
    assert list(file)[:7] == OLD_KEYS
    assert file["summary"].keys() == OLD_SUMMARY
    for one in file["comparisons"]:
        assert one.keys() >= OLD_COMPARISON
        assert [bool(opinion["verdict"]) != bool(opinion["failure"]) for opinion in one["orders"]] == [True, True]
        assert all(opinion["raw"] for opinion in one["orders"])
        assert (one["judgment"] == "error") == bool(one["failure"])
    assert "127.0.0.1" not in output.read_text()

    options = both | {"samples": ROWS, "max-new-tokens": 4, "max-tokens": 24, "device": "cpu", "min-coverage": 0}
    options |= {"local-judge": bundled.NAME, "output": output}
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "COLUMNS": "200"}
    again = subprocess.run(
        [sys.executable, "-m", "slim", "judge", *given],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert f"Judge: {bundled.NAME}" in again.stdout
    repeated = judge.load_judgment(output)
    assert (repeated.judge.calls, repeated.judge.known_calls) == (0, 2 * ROWS)
    assert repeated.comparisons == found.comparisons
