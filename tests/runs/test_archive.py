"""Archives of runs: taken to another workspace whole, and refused, with nothing left behind, when anything is wrong."""

import hashlib
import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slim.calibration.record import load_calibration
from slim.core import workspace
from slim.core.errors import InputError
from slim.data.request import DataSource
from slim.evaluation.record import load_evaluation
from slim.judging import judge, votes
from slim.models.load import load_model
from slim.planning.files import load_plan
from slim.pruning import held_out
from slim.pruning.checkpoint import recipe
from slim.pruning.history import load_recovery
from slim.runs import archive, lineage
from slim.runs.archive import LONGEST_DIRECTORY, export_runs, import_runs, with_ancestors
from slim.runs.manage import find_run, rename, tag
from slim.runs.manifest import MANIFEST, Manifest
from tests import FILES
from tests.pipeline import ARROWS, Pipeline, make_pipeline

OLD = FILES / "0.1.0"
Members = dict[str, bytes]
"""The members of an archive, by name."""
Edit = Callable[[Members], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("archive")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        pipeline = make_pipeline(folder / "workspace", folder / "model")
        votes.file_of(pipeline.judgement).write_text(votes.Votes().model_dump_json())
        yield pipeline


@pytest.fixture(scope="module")
def exported(made: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All six runs: evaluation and judgement with what they were made from."""
    file = tmp_path_factory.mktemp("exported") / "all.slim.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(made.calibration.parent.parent))
        found = lineage.read_lineage()
        chosen = {
            node.key: node
            for stage in ("evaluation", "judgement")
            for node in with_ancestors(found, next(one for one in found.runs if one.stage == stage))
        }
        tag(next(node for node in chosen.values() if node.stage == "plan"), "kept")
        rename(found, next(node for node in chosen.values() if node.stage == "recovered"), "Better & <b>best</b>")
        found = lineage.read_lineage()
        export_runs(found, [found.nodes[key] for key in chosen], file)
    return file


@pytest.fixture
def members(exported: Path) -> Members:
    with zipfile.ZipFile(exported) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def written(members: Members, file: Path, **changes: Any) -> Path:
    """An archive of these members. `changes` are attributes of all members' entries."""
    with zipfile.ZipFile(file, "w") as target:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            for field, value in changes.items():
                setattr(info, field, value)
            target.writestr(info, content)
    return file


def sealed(members: Members) -> Members:
    """The members with a manifest that agrees with them, as one who made them by hand would write it."""
    manifest = json.loads(members[MANIFEST])
    for run in manifest["runs"]:
        prefix = f"{run['number']}/"
        run["files"] = [
            {
                "name": name.removeprefix(prefix),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for name, content in members.items()
            if name.startswith(prefix)
        ]
    return members | {MANIFEST: json.dumps(manifest).encode()}


def number_of(members: Members, kind: str, last: bool = False) -> int:
    """The number of the first run of a kind."""
    found = [run["number"] for run in json.loads(members[MANIFEST])["runs"] if run["kind"] == kind]
    return found[-1 if last else 0]


def refused(file: Path | io.BytesIO, match: str) -> str:
    """That an archive is refused in a sentence with `match`, and nothing of it is left in the workspace."""
    with pytest.raises(InputError, match=match) as caught:
        import_runs(file)
    assert str(caught.value).startswith("archive=")
    left = [path for path in workspace.home().rglob("*") if not path.is_dir()]
    assert not left, left
    assert not lineage.read_lineage().runs
    assert not [path for path in workspace.home().glob("*/*") if path.name.startswith(".")]
    return str(caught.value)


def test_a_round_trip(exported: Path, made: Pipeline, own_workspace: Path) -> None:
    """Every run loads in a workspace elsewhere, names the others by their folders there, and the lineage is whole."""
    taken = import_runs(exported)
    found = lineage.read_lineage()
    by_stage = {node.stage: node for node in found.nodes.values()}
    assert [found.nodes[entry.key].stage for entry in taken][-1] == "judgement"
    assert len(found.runs) == len(taken) == 6
    stages = {node.stage: [parent.stage for parent in found.parents(node.key)] for node in found.nodes.values()}
    assert stages == ARROWS
    assert not [node.notes for node in found.nodes.values() if node.notes]
    assert by_stage["plan"].tags == ("kept",)
    assert by_stage["recovered"].name == "Better & <b>best</b>"
    places = {stage: node.path for stage, node in by_stage.items() if node.path}
    assert all(path.is_relative_to(own_workspace) for path in places.values())

    there = load_calibration(places["calibration"])
    assert there.facts == load_calibration(made.calibration).facts
    cut = load_plan(places["plan"])
    assert cut.calibration == str(places["calibration"])
    assert cut.keep == load_plan(made.plan).keep
    assert recipe(places["checkpoint"]) == recipe(places["recovered"]) == cut
    assert len(load_recovery(places["recovered"]).steps) == 1
    measured = load_evaluation(places["evaluation"])
    assert [one.model.source for one in measured.facts.models[1:]] == [
        str(places["checkpoint"]),
        str(places["recovered"]),
    ]
    verdict = judge.load_judgment(places["judgement"])
    assert verdict.pruned_model == str(places["recovered"])
    assert votes.load_votes(places["judgement"]) == votes.Votes()
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        mine, theirs = (load_model(str(path)).model(ids).logits for path in (places["recovered"], made.recovered))
    assert torch.equal(mine, theirs)
    task = held_out.open_task(DataSource(source="bundled:triage", split="train"))
    plan = recipe(places["recovered"])
    assert held_out.calibrated_on(plan, task)  # the rows are known by the calibration's place here


def test_a_second_import_stands_beside_the_first(exported: Path, own_workspace: Path) -> None:
    """Under names of its own, and each lineage holds together."""
    first, second = import_runs(exported), import_runs(exported)
    assert not {entry.path for entry in first} & {entry.path for entry in second}
    assert Path(second[-1].path).name == "verdict-2.json"
    assert second[-1].name is None
    found = lineage.read_lineage()
    for taken in (first, second):
        keys = {entry.key for entry in taken}
        for entry in taken:
            assert {node.key for node in found.parents(entry.key) if node.path} <= keys


def test_one_run_alone(exported: Path, made: Pipeline, own_workspace: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A plan without its calibration comes in, and says what it lacks; the calibration alone may follow."""
    monkeypatch.setenv("SLIM_HOME", str(made.calibration.parent.parent))
    found = lineage.read_lineage()
    for name in ("eight", "task"):
        export_runs(found, [find_run(found, name)], tmp_path / f"{name}.zip")
    monkeypatch.setenv("SLIM_HOME", str(own_workspace))
    (entry,) = import_runs(tmp_path / "eight.zip")
    assert lineage.read_lineage().nodes[entry.key].notes
    import_runs(tmp_path / "task.zip")
    found = lineage.read_lineage()
    assert [node.stage for node in found.parents(entry.key)] == ["calibration"]
    assert not found.nodes[entry.key].notes


def test_what_a_browser_sends(exported: Path, own_workspace: Path) -> None:
    """An upload is read where it is held."""
    assert len(import_runs(io.BytesIO(exported.read_bytes()), "upload.zip")) == 6


def test_an_archive_holds_no_more_than_it_must(exported: Path, members: Members) -> None:
    """Members are stored as they are and say nothing of the machine; the manifest describes each."""
    with zipfile.ZipFile(exported) as opened:
        for info in opened.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
    manifest = Manifest.model_validate_json(members.pop(MANIFEST))
    assert {name: len(content) for name, content in members.items()} == {
        name: file.bytes for name, file in manifest.members.items()
    }


def test_what_is_not_a_runs_own_is_not_exported(made: Pipeline, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SLIM_HOME", str(made.calibration.parent.parent))
    (made.checkpoint / "secret.pem").write_text("key")
    try:
        found = lineage.read_lineage()
        with pytest.raises(InputError, match=r"holds 'secret.pem', which does not belong to a checkpoint"):
            export_runs(found, [find_run(found, str(made.checkpoint))], tmp_path / "x.zip")
    finally:
        (made.checkpoint / "secret.pem").unlink()
    assert not list(tmp_path.glob("*.zip"))
    assert not list(tmp_path.glob(".*"))


NAMES = {
    "absolute": "/etc/cron.d/evil",
    "up": "../../evil.json",
    "up inside": "1/../../evil.json",
    "backslashes": "1\\..\\evil.json",
    "drive": "C:\\evil.json",
    "drive of a run": "1/C:evil.json",
    "a device": "1/NUL.json",
    "a hidden file": "1/.bashrc",
    "another ending": "1/evil.sh",
    "code": "1/evil.py",
    "a pickle": "1/pytorch_model.bin",
    "a folder below": "1/below/evil.json",
    "a trailing dot": "1/evil.json.",
    "a control sign": "1/ev\nil.json",
    "empty": "1/",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
def test_names_that_are_none_of_a_runs(
    members: Members, tmp_path: Path, own_workspace: Path, name: str, listed: bool
) -> None:
    """Whether the manifest speaks of them or not, nothing is written."""
    bad = members | {name: b"{}"}
    if listed:
        manifest = json.loads(bad[MANIFEST])
        run = manifest["runs"][number_of(bad, "checkpoint") - 1]
        entry = {"name": name.removeprefix("1/"), "bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
        run["files"].append(entry)
        bad[MANIFEST] = json.dumps(manifest).encode()
    refused(
        written(bad, tmp_path / "bad.zip"), "does not belong to a checkpoint" if listed and name != "1/" else "archive"
    )
    assert not (tmp_path / "evil.json").exists()


KINDS: dict[str, dict[str, Any]] = {
    "a link": {"external_attr": (stat.S_IFLNK | 0o777) << 16},
    "a device": {"external_attr": (stat.S_IFBLK | 0o600) << 16},
    "a pipe": {"external_attr": (stat.S_IFIFO | 0o600) << 16},
    "a folder": {"external_attr": (stat.S_IFDIR | 0o700) << 16},
    "compressed": {"compress_type": zipfile.ZIP_DEFLATED},
    "compressed otherwise": {"compress_type": zipfile.ZIP_BZIP2},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_members_that_are_no_plain_files(
    members: Members, tmp_path: Path, own_workspace: Path, changes: dict[str, Any]
) -> None:
    refused(written(members, tmp_path / "bad.zip", **changes), "is a folder, a link or a device|is compressed")


def test_an_encrypted_member(members: Members, tmp_path: Path, own_workspace: Path) -> None:
    content = bytearray(written(members, tmp_path / "bad.zip").read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 8] |= 1
    refused(io.BytesIO(bytes(content)), "is encrypted")


def test_names_that_are_there_twice(members: Members, tmp_path: Path, own_workspace: Path) -> None:
    """Or that some systems take for one."""
    file = written(members, tmp_path / "bad.zip")
    name = next(name for name in members if name.endswith("config.json"))
    with zipfile.ZipFile(file, "a") as opened, pytest.warns(UserWarning, match="Duplicate name"):
        opened.writestr(name, b"{}")
    refused(file, "occurs twice")
    upper = members | {name.replace("config", "CONFIG"): members[name]}
    refused(written(sealed(upper), tmp_path / "upper.zip"), "in case alone")


def test_a_bomb_of_overlapping_members(members: Members, tmp_path: Path, own_workspace: Path) -> None:
    """Many names for one stretch of the file: more comes out than went in."""
    number = number_of(members, "checkpoint")
    for at in range(40):
        members[f"{number}/extra{at}.json"] = b"0" * 50_000
    content = bytearray(written(sealed(members), tmp_path / "bad.zip").read_bytes())
    at = 0
    first = None
    while (at := content.find(b"PK\x01\x02", at)) >= 0:
        length = struct.unpack("<H", content[at + 28 : at + 30])[0]
        if b"extra" in content[at + 46 : at + 46 + length]:
            offset = content[at + 42 : at + 46]
            first = first or bytes(offset)
            content[at + 42 : at + 46] = first
        at += 46
    refused(io.BytesIO(bytes(content)), "archive")


def test_sizes_that_are_not_true(members: Members, tmp_path: Path, own_workspace: Path) -> None:
    """In the manifest, or in both headers of the zip."""
    manifest = json.loads(members[MANIFEST])
    manifest["runs"][0]["files"][0]["bytes"] += 1
    lied = members | {MANIFEST: json.dumps(manifest).encode()}
    refused(written(lied, tmp_path / "bad.zip"), "bytes, not")
    huge = json.loads(members[MANIFEST])
    huge["runs"][0]["files"][0]["bytes"] = 10**15
    content = bytearray(written(members | {MANIFEST: json.dumps(huge).encode()}, tmp_path / "huge.zip").read_bytes())
    refused(io.BytesIO(bytes(content)), "bytes, not")


def test_more_than_the_disk_holds(
    members: Members, tmp_path: Path, own_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known before anything is written."""
    file = written(members, tmp_path / "full.zip")
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda place: type("Use", (), {"free": 1000})())
    refused(file, "it needs .* MB of disk, and 0 MB are free")


def test_content_that_was_changed(members: Members, tmp_path: Path, own_workspace: Path) -> None:
    """One bit of the weights; and the same with a checksum that agrees with it."""
    name = next(name for name in members if name.endswith("model.safetensors"))
    changed = bytearray(members[name])
    changed[-1] ^= 1
    refused(written(members | {name: bytes(changed)}, tmp_path / "bad.zip"), "its content is not what was exported")
    content = bytearray(written(members, tmp_path / "good.zip").read_bytes())
    content[content.index(members[name][:64]) + len(members[name]) - 1] ^= 1
    refused(io.BytesIO(bytes(content)), "CRC|content is not")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_an_archive_that_was_cut_off(exported: Path, own_workspace: Path, share: float) -> None:
    content = exported.read_bytes()
    refused(io.BytesIO(content[: int(len(content) * share)]), "not written by Slim")


def test_other_files(tmp_path: Path, own_workspace: Path) -> None:
    for name, content in (("a.zip", b""), ("b.zip", b"PK\x05\x06" + b"\0" * 18), ("c.zip", b"hello" * 100)):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not written by Slim|there are 0 of it")
    refused(tmp_path / "missing.zip", "cannot be read")
    refused(tmp_path, "cannot be read")


def test_a_list_of_a_million_members(tmp_path: Path, own_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by its length, before an object is made of every entry; a length in the other header as well."""
    opened: list[object] = []
    monkeypatch.setattr(archive.zipfile, "ZipFile", lambda *given: opened.append(given))
    entry = b"PK\x01\x02" + b"\0" * 24 + struct.pack("<H", 1) + b"\0" * 16 + b"a"
    entries = entry * (LONGEST_DIRECTORY // len(entry) + 2)
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 65535, 65535, len(entries), 0, 0)
    refused(io.BytesIO(entries + end), "lists more than 10,000 files")
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**6, 10**6, len(entries), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(entries), 1)
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    refused(io.BytesIO(entries + end64 + locator + end), "lists more than 10,000 files")
    assert not opened


def test_a_record_of_an_older_version_comes_in(members: Members, tmp_path: Path, own_workspace: Path) -> None:
    """It is brought up to date, and names the runs of its archive by their folders here as any other does."""
    manifest = json.loads(members[MANIFEST])
    number = next(run["number"] for run in manifest["runs"] if run["kind"] == "plan")
    old = json.loads((OLD / "plan-heads.json").read_bytes())
    manifest["places"] = {old["calibration"]: 1}
    content = json.dumps(old).encode()
    held = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["runs"][number - 1]["files"][0] |= held
    members |= {f"{number}/plan.json": content, MANIFEST: json.dumps(manifest).encode()}
    taken = import_runs(written(members, tmp_path / "old.zip"))
    arrived = load_plan(Path(taken[number - 1].path))
    assert arrived.schema_version == 3
    assert arrived.calibration == taken[0].path
    assert arrived.keep == load_plan(OLD / "plan-heads.json").keep


MANIFESTS: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "Invalid JSON"),
    "no object": (b"[]", "object"),
    "deep": (b"[" * 100_000, "JSON"),
    "newer": (b'{"schema_version": 2, "kind": "runs", "slim": "9", "created": "", "runs": []}', "newer Slim"),
    "no runs": (b'{"kind": "runs", "slim": "0", "created": "", "runs": []}', "runs"),
}


@pytest.mark.parametrize(("content", "match"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_manifests_that_are_none(
    members: Members, tmp_path: Path, own_workspace: Path, content: bytes, match: str
) -> None:
    refused(written(members | {MANIFEST: content}, tmp_path / "bad.zip"), match)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an unknown kind": (lambda found: found["runs"][0].update(kind="program"), "kind"),
    "numbers": (lambda found: found["runs"][0].update(number=7), "numbered from 1"),
    "places": (lambda found: found.update(places={"/x": 99}), "not in the archive"),
    "a missing file": (lambda found: found["runs"][0]["files"].pop(0), "lacks"),
    "a member nobody lists": (lambda found: found["runs"].pop(), "is not in its manifest.json"),
    "another hash": (lambda found: found["runs"][0]["files"][0].update(sha256="0" * 64), "not what was exported"),
    "no hash": (lambda found: found["runs"][0]["files"][0].update(sha256="../x"), "sha256"),
    "an unknown field": (lambda found: found.update(run="rm -rf /"), "run"),
}


@pytest.mark.parametrize(("edit", "match"), EDITS.values(), ids=EDITS.keys())
def test_manifests_that_do_not_fit(
    members: Members, tmp_path: Path, own_workspace: Path, edit: Callable[[dict[str, Any]], Any], match: str
) -> None:
    manifest = json.loads(members[MANIFEST])
    edit(manifest)
    refused(written(members | {MANIFEST: json.dumps(manifest).encode()}, tmp_path / "bad.zip"), match)


def test_a_member_that_is_missing(members: Members, tmp_path: Path, own_workspace: Path) -> None:
    name = next(name for name in members if name.endswith("tensors.safetensors"))
    del members[name]
    refused(written(members, tmp_path / "bad.zip"), f"{name}' is missing")


def replaced(kind: str, name: str, content: bytes, last: bool = False) -> Edit:
    """Another content for a file of the first run of a kind."""
    return lambda members: members.update({f"{number_of(members, kind, last)}/{name}": content})


def configured(**changes: Any) -> Edit:
    """Settings changed in a checkpoint's config."""

    def edit(members: Members) -> None:
        name = f"{number_of(members, 'checkpoint')}/config.json"
        members[name] = json.dumps(json.loads(members[name]) | changes).encode()

    return edit


def without(kind: str, *names: str) -> Edit:
    def edit(members: Members) -> None:
        for name in names:
            members.pop(f"{number_of(members, kind)}/{name}", None)

    return edit


def appended(kind: str, name: str, more: bytes) -> Edit:
    def edit(members: Members) -> None:
        members[f"{number_of(members, kind)}/{name}"] += more

    return edit


RECORDS: dict[str, tuple[Edit, str]] = {
    "a calibration": (replaced("calibration", "record.json", b"{}"), r"calibration .* cannot be read"),
    "its tensors": (replaced("calibration", "tensors.safetensors", b"0" * 100), "cannot be read"),
    "a plan": (replaced("plan", "plan.json", b"{}"), r"plan .* is not valid"),
    "a checkpoint's plan": (replaced("checkpoint", "slim_plan.json", b"[]"), "is not valid"),
    "a recovery": (replaced("checkpoint", "slim_recovery.json", b"[]", True), "slim_recovery.json is damaged"),
    "weights": (replaced("checkpoint", "model.safetensors", b"\x80\x04N."), "cut off or damaged"),
    "no weights": (without("checkpoint", "model.safetensors"), "no safetensors weights"),
    "a tokenizer": (
        replaced("checkpoint", "tokenizer_config.json", b"{"),
        "tokenizer_config.json: it is not valid JSON",
    ),
    "an evaluation": (replaced("evaluation", "record.json", b"{}"), r"evaluation .* cannot be read"),
    "its rows": (replaced("evaluation", "table.parquet", b"PAR1"), "cannot be read"),
    "a judgement": (replaced("judgement", "judgement.json", b"{}"), r"judgement=.* cannot be read"),
    "votes": (replaced("judgement", "judgement.votes.json", b"[]"), "cannot be read as votes"),
    "changed code": (appended("checkpoint", "modeling_slim.py", b"\nimport os\n"), "not the one that Slim writes"),
    "no code": (without("checkpoint", "modeling_slim.py"), "only there"),
    "code elsewhere": (
        configured(auto_map={"AutoModelForCausalLM": "evil/repo--modeling.Evil"}),
        "may load foreign code",
    ),
    "code of a tokenizer": (
        replaced("checkpoint", "tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["evil/repo--x.Y", null]}}'),
        "may load foreign code",
    ),
    "an adapter": (replaced("checkpoint", "adapter_config.json", b"{}"), "adapter"),
    "no plan and no recovery": (
        without("checkpoint", "slim_plan.json", "slim_recovery.json"),
        "not created by Slim",
    ),
}


@pytest.mark.parametrize(("edit", "match"), RECORDS.values(), ids=RECORDS.keys())
def test_runs_that_cannot_be_read(
    members: Members, tmp_path: Path, own_workspace: Path, edit: Edit, match: str
) -> None:
    """Each is loaded as what it says it is before anything appears: a manifest that agrees does not help."""
    edit(members)
    said = refused(written(sealed(members), tmp_path / "bad.zip"), match)
    assert "/ (" in said


def test_weights_of_another_model(members: Members, tmp_path: Path, own_workspace: Path) -> None:
    """Sound weights that are not those of the plan."""
    number = number_of(members, "checkpoint")
    (tmp_path / "w.safetensors").write_bytes(members[f"{number}/model.safetensors"])
    state = load_file(tmp_path / "w.safetensors")
    state["model.norm.weight"] = torch.zeros(7, dtype=torch.float64)
    save_file(state, tmp_path / "w.safetensors", {"format": "pt"})
    members[f"{number}/model.safetensors"] = (tmp_path / "w.safetensors").read_bytes()
    refused(written(sealed(members), tmp_path / "bad.zip"), "is that of another model")


def test_a_name_from_elsewhere_is_made_safe(members: Members, tmp_path: Path, own_workspace: Path) -> None:
    """The name of a run there never leads out of the workspace's folders."""
    manifest = json.loads(members[MANIFEST])
    for run, name in zip(manifest["runs"], ("../../up", "/etc/passwd", "NUL", ".hidden", "a b<i>", "…"), strict=True):
        run["file_name"] = name
    taken = import_runs(written(members | {MANIFEST: json.dumps(manifest).encode()}, tmp_path / "odd.zip"))
    for entry in taken:
        path = Path(entry.path)
        assert path.parent.parent == own_workspace
        assert path.name.isascii()
        assert not path.name.startswith(".")
        assert path.exists()
    assert len(lineage.read_lineage().runs) == 6
