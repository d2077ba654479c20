"""Where servers listen, where keys go and do not go, what redirects lead to, and text that would rather be HTML."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from huggingface_hub import HfApi, constants
from streamlit.testing.v1 import AppTest

from slim import __version__, jobs
from slim.calibration import check_charts
from slim.core import errors, launch, workspace
from slim.core.chart_style import visible
from slim.core.errors import InputError, SlimError
from slim.core.markdown import escaped
from slim.core.network import is_local
from slim.core.run_index import remember
from slim.data.sources import open_source
from slim.judging.connection import models_of
from slim.judging.request import JudgeRequest
from slim.models.load import Loaded, load_model
from tests import ROOT, audit
from tests.judge_server import Scripted, _Handler, always, serving, verdict
from tests.judgements import compared, judgement
from tests.judging.test_client import ask, failures
from tests.pico import make_pico, save_pico

KEY = "sk-very-secret-0123456789"
PATIENCE = 120.0
"""Seconds after which a test gives up; nothing is asserted about time."""
HOSTILE = (
    "<img src=x onerror=alert(1)> [here](https://evil.example) ![](https://evil.example/x.png) $a$ :red[b] `c` %{x}"
)


@contextmanager
def started(*command: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, with all that it starts."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **settings, "COLUMNS": "400", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def places(process: subprocess.Popen[str], port: int) -> set[str]:
    """The addresses at which a process and its children listen on a port, once they do."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        top = psutil.Process(process.pid)
        found = {
            place.laddr.ip
            for one in (top, *top.children(recursive=True))
            for place in one.net_connections("inet")
            if place.status == psutil.CONN_LISTEN and place.laddr.port == port
        }
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError("it does not listen")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A llama's folder."""
    folder = tmp_path_factory.mktemp("safety") / "model"
    save_pico(make_pico("llama"), folder)
    return str(folder)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("slim", "app", "--no-browser"), "--port"),
        (("streamlit", "run", "app.py"), "--server.port"),
        (("slim", "serve", "MODEL", "--device", "cpu"), "--port"),
    ],
)
def test_servers_listen_to_this_machine_alone(model: str, command: tuple[str, ...], option: str) -> None:
    """By the addresses that the system says."""
    port = free_port()
    words = [model if word == "MODEL" else word for word in command]
    with started(*words, option, str(port)) as process:
        assert places(process, port) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("app", "--no-browser"), "its runs and uploads, starting and stopping jobs"),
        (("serve", "MODEL", "--device", "cpu"), "the model, without a key"),
    ],
)
def test_who_asks_for_more_is_told_what_others_get(model: str, command: tuple[str, ...], words: str) -> None:
    """Before anything else."""
    named = [model if word == "MODEL" else word for word in command]
    with started("slim", *named, "--host", "0.0.0.0", "--port", str(free_port())) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "careful, it listens at 0.0.0.0: whoever reaches this machine gets" in first
        assert words in first


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.0.0.2", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        (None, False),
        ("192.168.1.4", False),
        ("no such host", False),
    ],
)
def test_which_addresses_are_this_machines_own(host: str | None, local: bool) -> None:
    """An address that cannot be resolved counts as open."""
    assert is_local(host) is local


def test_the_judge_of_the_tests_listens_to_this_machine_alone() -> None:
    with serving(always(verdict("A"))) as server:
        assert server.server_address[0] == "127.0.0.1"


@pytest.fixture
def with_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIM_JUDGE_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_redirect_is_not_followed(with_key: None, status: int, host: str) -> None:
    """Neither to another host nor to another port; the request, the key and the rows stay with who was named."""
    with serving(always(verdict("A"))) as other:
        location = f"http://{host}:{other.server_port}/v1/chat/completions"
        away = Scripted(status=status, headers={"Location": location}, body=b"{}")
        with serving(always(away), key=KEY) as server:
            (reason,) = failures(ask(server, 5, retries=2))
            assert f"redirects to another address (HTTP {status})" in str(reason)
            assert len(server.asked) <= 4  # then the rest is not asked
        assert other.asked == []


def test_a_list_of_models_elsewhere_is_not_asked_for(with_key: None) -> None:
    """The first look at an endpoint carries the key as well."""
    with serving(always(verdict("A"))) as other:
        heard: list[str] = []

        class Handler(_Handler):
            def do_GET(self) -> None:
                heard.append(self.headers["Authorization"])
                self.answer(307, b"{}", {"Location": f"{other.url}/models"})

        other.RequestHandlerClass = Handler  # type: ignore[assignment]
        with pytest.raises(InputError, match="redirects to another address"):
            models_of(other.url, 5)
        assert heard == [f"Bearer {KEY}"]


def test_the_hub_token_stays_with_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's own client does not send it where a Hub redirects it."""
    heard: list[str | None] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(always(verdict("A"))) as other, serving(always(verdict("A"))) as hub:
        for server, then in ((other, None), (hub, f"http://localhost:{other.server_port}/api/models/me/small")):

            class Handler(_Handler):
                goes = then

                def do_GET(self) -> None:
                    heard.append(self.headers["Authorization"])
                    self.answer(307 if self.goes else 200, b"{}", {"Location": self.goes} if self.goes else {})

            server.RequestHandlerClass = Handler  # type: ignore[assignment]
        with suppress(Exception):  # the stand-in's answer is not the Hub's
            HfApi(endpoint=f"http://127.0.0.1:{hub.server_port}", token="hf_secret_0123").repo_info("me/small")
    assert heard[0] == "Bearer hf_secret_0123"
    assert not any(heard[1:])


def test_a_key_is_nowhere_but_in_the_request(
    with_key: None, own_workspace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A judge in a worker, whose endpoint repeats the key: not in the workspace, the worker's words, or what ran."""
    rows = "".join(json.dumps({"question": f"w{row} w3", "answer": "w1"}) + "\n" for row in range(3))
    (tmp_path / "rows.jsonl").write_text(rows)
    for seed, name in enumerate(("one", "two")):
        save_pico(make_pico("llama", seed=seed), tmp_path / name)
    seen: set[str] = set()
    answer = {"reason": f"your key is {KEY}", "verdict": "A"}
    with serving(always(Scripted(json.dumps(answer), wait=0.2)), key=KEY) as server:
        job = jobs.start(
            JudgeRequest.asked(
                original=tmp_path / "one",
                pruned=tmp_path / "two",
                dataset=tmp_path / "rows.jsonl",
                samples=3,
                max_new_tokens=2,
                batch_size=3,
                endpoint=server.url,
                concurrency=1,
                device="cpu",
            )
        )
        deadline = time.monotonic() + PATIENCE
        while (now := jobs.state_of(job.id)) and now.unfinished and time.monotonic() < deadline:
            seen |= {" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])}
            time.sleep(0.1)
        assert now is not None
        assert now.state == "done", now.error
        assert len(server.asked) == 6  # both orders, with the right key: another is refused
    assert any("slim.jobs.worker" in line for line in seen)
    assert not any(KEY in line for line in seen)
    files = [file for file in own_workspace.rglob("*") if file.is_file()]
    assert Path(now.result or "") in files
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
    said = capfd.readouterr()
    assert KEY not in said.out + said.err


def test_errors_hold_no_secret(with_key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the keys of the environment nor who a URL logs in as."""
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    text = f"{KEY} and hf_0123456789 at https://me:pass@host/x and http://host/a@b"
    assert str(SlimError(text)) == "… and … at https://…@host/x and http://host/a@b"
    monkeypatch.setenv("HF_TOKEN", "and")
    assert errors.without_secrets("this and that") == "this and that"


@pytest.mark.parametrize(
    ("look", "field"), [(open_source, "dataset"), (lambda url: load_model(url, device="cpu"), "model")]
)
def test_a_url_with_a_password_is_refused_unseen(look: Callable[[str], Any], field: str) -> None:
    with pytest.raises(InputError, match=f"{field}: a URL is not fetched") as refused:
        look("https://me:word-of-passing@host/rows.csv")
    assert "word-of-passing" not in str(refused.value)


def test_weights_that_are_pickles_are_refused_with_the_way_out(tmp_path: Path, pico: Callable[..., Loaded]) -> None:
    """By whatever name they go; nothing in them is run."""
    folder = tmp_path / "model"
    save_pico(pico("llama"), folder)
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"):
        (folder / name).write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode())
        with pytest.raises(InputError, match=r"no safetensors weights.*save_pretrained"):
            load_model(str(folder), device="cpu")
    for name in ("rows.pkl", "rows.npy", "rows.arrow", "rows.pt", "rows.py"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match="has the ending"):
            open_source(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


def test_a_dataset_is_never_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a loading script of its own name is not a dataset, on the command line either."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    for text in ("rows", str(tmp_path / "rows"), "rows/rows.py"):
        with pytest.raises(InputError):
            list(open_source(text).rows())
    assert not (tmp_path / "ran").exists()


def test_a_file_in_the_current_folder_is_not_a_module(tmp_path: Path) -> None:
    """Whatever it is called: processes that Slim starts import Python's modules, the installed ones and its own."""
    for name in ("slim", "typer", "torch", "fractions"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    command, environment = launch.module_command("slim", "--version"), launch.environment()
    said = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert said == f"slim {__version__}\n"
    assert not (tmp_path / "ran").exists()


def test_no_call_in_slim_trusts_code_or_pickles() -> None:
    """Whatever a later change brings: a folder's code stays off, weights are never pickles, nothing goes to a shell."""
    for file in (*(ROOT / "slim").rglob("*.py"), *(ROOT / "pages").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            said = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert said.get("trust_remote_code", "False") == "False", (file, call.lineno)
            assert {said.get(name, "False") for name in ("shell", "allow_pickle", "unsafe_allow_html")} == {"False"}
            name = ast.unparse(call.func)
            assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load"), (file, call.lineno)
            assert not name.startswith(("pickle.", "dill.", "joblib.", "marshal.")), (file, call.lineno)
            assert name != "torch.load" or said.get("weights_only") == "True", (file, call.lineno)


def test_text_is_shown_as_text() -> None:
    """Markdown and plotly take nothing in it for a sign."""
    shown = escaped(HOSTILE + "\n# Title")
    assert "\n" not in shown
    for sign in "<[`$:*_#|&":
        assert shown.count(sign) == shown.count(f"\\{sign}")
    assert visible("<a href='x'>%{y}</a>&amp;") == "&lt;a href='x'&gt;%&#123;y&#125;&lt;/a&gt;&amp;amp;"


def test_a_criterion_of_a_record_is_text_in_charts() -> None:
    """A check that was brought along may name anything."""
    assert check_charts._title("<b>x</b>", {"entropy": "Entropy"}) == "&lt;b&gt;x&lt;/b&gt;"
    assert check_charts._title("entropy", {"entropy": "Entropy"}) == "Entropy"


def test_a_hostile_judgement_is_text_on_its_page(own_workspace: Path) -> None:
    """All that a model, a judge, a dataset and a record say."""
    pair = compared("oo", HOSTILE, HOSTILE, question=HOSTILE, reference=HOSTILE)
    given = judgement([pair], original_model=HOSTILE, pruned_model=HOSTILE, dataset=HOSTILE, notes=(HOSTILE,))
    path = workspace.subfolder("judgements") / "x.json"
    workspace.write_file(path, given.model_dump_json())
    remember(path, "judgement")
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run().switch_page("pages/compare.py").run()
    page.segmented_control(key="compare-view").set_value("Judge").run()
    assert not page.exception
    for element in (*page.markdown, *page.caption, *page.warning, *page.info):
        for sign in ("<img", "[here](", "![]", ":red[", "$a$"):
            assert sign not in element.value.replace("\\[", "").replace("\\<", "").replace("\\$", ""), element.value
    bodies = [str(block.proto.body) for block in page.get("html")]
    assert any("&lt;img src=x" in body for body in bodies)
    assert not any("<img" in body for body in bodies)


def test_the_audit_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A version that was not tested, a licence that may not be used, a file that changed."""
    found, _ = audit.needed()
    assert {"slim", "torch", "streamlit", "ruff"} <= found.keys()
    (tmp_path / "constraints.txt").write_text("torch==1.0\n")
    monkeypatch.setattr(audit, "CONSTRAINTS", tmp_path / "constraints.txt")
    assert "torch is " in "\n".join(audit.versions(found))
    package = tmp_path / "thing-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\nLicense: GPL-3.0-only\n")
    (package / "RECORD").write_text("thing.py,sha256=0000,1\ngone.py,sha256=0000,1\nplain.py,,\n")
    (tmp_path / "thing.py").write_text("x")
    thing = audit.Distribution.at(package)
    assert [problem.split(": ")[1] for problem in audit.altered(thing)] == [
        "thing.py is not as it was installed",
        "gone.py is not as it was installed",
    ]
    assert list(audit.licences({"thing": thing})) == ["thing 1.0: its licence is GPL-3.0-only"]
    assert audit.altered(found["typer"]) == []


@pytest.mark.parametrize("code", [0, 1])
def test_vulnerabilities_are_asked_of_pip_audit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    """All but the accepted ones. A finding counts as a problem, and so does its absence."""
    monkeypatch.setattr(audit, "find_spec", lambda name: None)
    assert "pip-audit is not installed" in audit.online()[0]
    (tmp_path / "pip_audit.py").write_text(
        f"import sys; open('asked', 'w').write(' '.join(sys.argv[1:])); sys.exit({code})"
    )
    monkeypatch.setattr(audit, "find_spec", lambda name: name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert len(audit.online()) == code
    assert (tmp_path / "asked").read_text() == "--skip-editable --ignore-vuln CVE-2025-69872"
