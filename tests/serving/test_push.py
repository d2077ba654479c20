"""Pushing: the Hub's real client against a server of our own that knows as much of the Hub as it asks for."""

import json
import re
import time
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from threading import Thread

import pytest
from streamlit.testing.v1 import AppTest

from slim import jobs
from slim.core.errors import InputError
from slim.models.units import whole_model
from slim.pruning.checkpoint import prune
from slim.serving import push
from tests.commands import in_another_process
from tests.hub_server import TOKEN, Repositories, environment
from tests.pico import keeping, make_pico, plan_of, save_pico

PATIENCE = 120.0
"""Seconds after which a test gives up; nothing is asserted about time."""


@pytest.fixture
def hub() -> Iterator[Repositories]:
    """The server."""
    server = Repositories()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned llama's folder, with a hidden file and a folder in it."""
    place = tmp_path_factory.mktemp("push")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(place / "workspace"))
        original = save_pico(make_pico("llama"), place / "original")
        keep = keeping((), (0, 2, 3, 5), *whole_model(original.facts)[2:])
        folder = prune(plan_of(original.facts, keep), place / "pruned")
    (folder / ".secret").write_text("stays here")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "kept").write_text("stays here")
    (folder / "extra").mkdir()
    (folder / "extra" / "notes [1].txt").write_text("goes along")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Files that are not hidden, with no folder of this machine in them."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    found = {str(name): (folder / name).read_bytes() for name in names if not str(name).startswith(".")}
    source = json.loads(found["slim_plan.json"])["model"]["source"]
    assert Path(source).is_absolute()
    found["slim_plan.json"] = found["slim_plan.json"].replace(source.encode(), Path(source).name.encode())
    assert not any(str(folder.parent).encode() in content for content in found.values())
    return found


def test_without_yes_it_is_told_and_nothing_is_sent(hub: Repositories, checkpoint: Path, tmp_path: Path) -> None:
    """Every file with its size, where they would go, and what to add; no request; the same as JSON."""
    with in_another_process(**environment(hub.url, tmp_path)) as slim:
        shown = slim("push", checkpoint, "me/small")
        told = json.loads(slim("push", checkpoint, "me/small", "--private", "--json").out)
    assert shown.code == 0, shown.err
    for name, content in files_of(checkpoint).items():
        assert re.search(rf"{re.escape(name)} +│ +{len(content):,} ", shown.out)
    assert "secret" not in shown.out
    assert f"These would go to {hub.url}/me/small (open to everyone, if it is new).\n" in shown.out
    assert "Nothing was sent. Add --yes to send them.\n" in shown.out
    assert told["files"] == {name: len(content) for name, content in files_of(checkpoint).items()}
    assert told["bytes"] == sum(told["files"].values())
    assert (told["repository"], told["private"], told["pushed"], told["url"]) == ("me/small", True, False, None)
    assert hub.asked == []


def test_every_file_arrives_with_its_bytes(hub: Repositories, checkpoint: Path, tmp_path: Path) -> None:
    """Into a repository that is made for it, open or private; again into the one that is there."""
    with in_another_process(**environment(hub.url, tmp_path)) as slim:
        for name, flags in (("small", ()), ("mine", ("--private",)), ("mine", ("--private",)), ("open", ())):
            done = slim("push", checkpoint, f"me/{name}", "--yes", *flags)
            assert done.code == 0, done.err
            assert f"Model: {hub.url}/me/{name}" in done.out
            assert hub.files.pop(f"me/{name}") == files_of(checkpoint)
            hub.files[f"me/{name}"] = {}
        assert hub.private == {"me/open": False, "me/small": False, "me/mine": True}
        told = json.loads(slim("push", checkpoint, "me/small", "--yes", "--json").out)
    assert (told["pushed"], told["url"]) == (True, f"{hub.url}/me/small")


def test_what_the_hub_refuses_is_one_sentence(hub: Repositories, checkpoint: Path, tmp_path: Path) -> None:
    """No token, a wrong one, another's name, a private push to an open repository, no connection."""
    there, gone = (environment(url, tmp_path, token=None) for url in (hub.url, "http://127.0.0.1:9"))
    known = {"HF_TOKEN": TOKEN}
    cases = [
        (there, {}, "me/new", 2, r"token: .*`hf auth login`"),
        (there, {"HF_TOKEN": "hf_bad"}, "me/new", 2, r"'me/new'.*your token.*\(401\)"),
        (there, known, "you/new", 2, r"'you/new'.*your token.*\(403\)"),
        (there, known, "me/open", 2, r"repository='me/open': .*public"),
        (gone, known, "me/new", 1, r"repository='me/new': .*http://127\.0\.0\.1:9"),
        (there | {"HF_HUB_OFFLINE": "1"}, known, "me/new", 1, r"HF_HUB_OFFLINE: "),
    ]
    for settings, same in groupby(cases, key=itemgetter(0)):
        with in_another_process(**settings) as slim:
            for _, token, repository, code, sentence in same:
                done = slim("push", checkpoint, repository, "--yes", "--private", **token)
                assert (done.code, done.out) == (code, ""), done.err
                assert len(done.err.splitlines()) == 1
                assert re.search(sentence, done.err), done.err
    assert hub.files == {"me/open": {}}


@pytest.mark.parametrize("name", ["small", "me/small/er", "me/sm all", "me/a--b", ""])
def test_a_name_that_is_none_is_refused(checkpoint: Path, name: str) -> None:
    """Before anything is asked."""
    with pytest.raises(InputError, match=f"repository={name!r}"):
        push.plan_upload(checkpoint, name)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """Missing, empty, or without safetensors."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("x")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"folder='.*': .*config\.json"):
            push.plan_upload(folder, "me/small")


def page(folder: str) -> None:
    """Show a checkpoint as the Prune page does."""
    from pathlib import Path

    from pages.views.publish import show_publish

    show_publish(Path(folder))


def test_the_page_lists_first_and_sends_on_a_button(
    hub: Repositories, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad name is one sentence; a good one lists the files; the button starts a job whose end is reported."""
    for name, value in environment(hub.url, tmp_path / "hub").items():
        monkeypatch.setenv(name, value)
    opened = AppTest.from_function(page, kwargs={"folder": str(checkpoint)}, default_timeout=60).run()
    assert not opened.exception
    assert not opened.button
    opened.text_input[0].set_value("small").run()
    assert "owner/" in opened.error[0].value
    assert not opened.button
    opened.text_input[0].set_value("me/small").run()
    table = opened.dataframe[0].value
    assert dict(zip(table["file"], table["bytes"], strict=True)) == {
        name: len(content) for name, content in files_of(checkpoint).items()
    }
    assert hub.asked == []
    opened.button[0].click().run()
    (job,) = jobs.jobs("push")
    deadline = time.monotonic() + PATIENCE
    while (found := jobs.state_of(job.id)) and found.unfinished and time.monotonic() < deadline:
        time.sleep(0.1)
    opened.run()
    assert not opened.exception
    assert opened.success[0].value.replace("\\", "") == f"Sent: {hub.url}/me/small"
    assert hub.files["me/small"] == files_of(checkpoint)
    assert hub.private["me/small"] is True
