"""Runs found, named, tagged, compared, deleted; what the disk is used for, and what may go."""

import os
import shutil
import time
from pathlib import Path

import pytest
from filelock import FileLock

from slim import jobs
from slim.calibration.record import CHECK_FILE
from slim.core import workspace
from slim.core.cache import open_cache
from slim.core.errors import InputError
from slim.core.run_index import remember
from slim.jobs.store import JobStore
from slim.judging import votes
from slim.planning.files import load_plan, save_plan
from slim.runs import disk_use, lineage
from slim.runs.comparison import NOTHING, compare
from slim.runs.disk_use import Left
from slim.runs.lineage import Lineage, Node
from slim.runs.manage import delete, dependents, find_run, rename, tag, untag
from tests.pipeline import Pipeline

DEAD = 999_999_999
"""No process has this number."""


def by_stage(found: Lineage) -> dict[str, Node]:
    return {node.stage: node for node in found.nodes.values()}


def test_a_run_is_found_by_what_a_person_has_at_hand(made: Pipeline) -> None:
    """Path, file name, shown name, key, and the beginning of a name."""
    found = lineage.read_lineage()
    node = by_stage(found)["plan"]
    rename(found, node, "the good one")
    found = lineage.read_lineage()
    for text in (str(made.plan), "eight.json", "eight", "the good one", "the g", node.key, node.key[:10]):
        assert find_run(found, text).key == node.key
    with pytest.raises(InputError, match=r"run='nothing': it is not in the workspace"):
        find_run(found, "nothing")
    with pytest.raises(InputError, match=r"run='': it is not in the workspace"):
        find_run(found, "")


def test_what_may_be_several_is_asked_back(made: Pipeline) -> None:
    other = made.plan.with_name("eight-more.json")
    save_plan(load_plan(made.plan), other)
    third = made.plan.with_name("eight-most.json")
    save_plan(load_plan(made.plan), third)
    found = lineage.read_lineage()
    assert find_run(found, "eight").path == made.plan  # all of its name counts for more than a beginning
    with pytest.raises(InputError, match=r"run='eight-mo': 2 runs match; name one by its path") as caught:
        find_run(found, "eight-mo")
    assert str(other) in str(caught.value)
    assert str(third) in str(caught.value)


def test_names_and_tags(made: Pipeline) -> None:
    """They are shown, the files stay, and an empty name gives the file's again."""
    found = lineage.read_lineage()
    node = by_stage(found)["calibration"]
    rename(found, node, "  Our task ")
    tag(node, "kept", "v1", "kept")
    changed = by_stage(lineage.read_lineage())["calibration"]
    assert (changed.name, changed.tags, changed.path) == ("Our task", ("kept", "v1"), made.calibration)
    untag(node, "kept")
    rename(lineage.read_lineage(), node, "")
    changed = by_stage(lineage.read_lineage())["calibration"]
    assert (changed.name, changed.tags) == ("task", ("v1",))
    with pytest.raises(InputError, match=r"tag='kept': 'task' does not have it; its tags: 'v1'"):
        untag(node, "kept")


@pytest.mark.parametrize("name", ["x" * 81, "two\nlines", "\x1b[31mred", "zero\u200bwidth", "\u202eback"])
def test_names_that_cannot_be(made: Pipeline, name: str) -> None:
    found = lineage.read_lineage()
    node = by_stage(found)["plan"]
    with pytest.raises(InputError, match=r"^name=.*write 1 to 80"):
        rename(found, node, name)
    with pytest.raises(InputError, match=r"^tag=.*write 1 to 80"):
        tag(node, name)


def test_a_name_belongs_to_one_run(made: Pipeline) -> None:
    found = lineage.read_lineage()
    with pytest.raises(InputError, match=r"name='small': the checkpoint .*choose another"):
        rename(found, by_stage(found)["plan"], "small")


def test_two_runs_side_by_side(made: Pipeline) -> None:
    """Differences come first, of circumstances last, and two plans say which heads only one of them removes."""
    cut = load_plan(made.plan)
    other = made.plan.with_name("other.json")
    keep = (cut.keep[0], *cut.keep[1:])
    save_plan(cut.model_copy(update={"notes": ("a word",), "keep": keep}), other)
    found = lineage.read_lineage()
    both = compare(find_run(found, "eight"), find_run(found, "other"))
    assert [line.name for line in both.lines if line.differs] == ["notes"]
    assert both.plans is not None
    assert both.plans.shared == cut.removed_heads
    stages = by_stage(found)
    both = compare(stages["checkpoint"], stages["recovered"])
    order = [line.differs for line in both.lines]
    assert order == sorted(order, reverse=True)
    told = {line.name: line for line in both.lines}
    assert told["recovered by"].one == NOTHING
    assert told["recovered by"].other == "repair"
    assert told["reason.threshold"].one == told["reason.threshold"].other == "0.7"
    assert not any("shapes" in name or "matrices.1" in name for name in told)
    for one in stages.values():
        if one.path:
            assert compare(one, stages["judgement"]).lines
    with pytest.raises(InputError, match="it is a model, not a run"):
        compare(stages["model"], stages["plan"])


def test_deleting_names_what_depends_on_it(made: Pipeline) -> None:
    """One goes alone and the others lose their parent; or all go."""
    found = lineage.read_lineage()
    stages = by_stage(found)
    after = dependents(found, [stages["plan"]])
    assert [node.stage for node in after] == ["checkpoint", "recovered", "evaluation", "judgement"]
    delete([stages["plan"]])
    assert not made.plan.exists()
    assert by_stage(lineage.read_lineage())["checkpoint"].notes == ("its plan is gone",)
    delete(after)
    left = lineage.read_lineage()
    assert [node.stage for node in left.runs] == ["calibration"]
    assert len(list((workspace.home() / "runs").iterdir())) == 1
    assert not list(workspace.home().rglob("*partial*"))


def test_votes_go_with_their_judgement(made: Pipeline) -> None:
    file = votes.file_of(made.judgement)
    file.write_text(votes.Votes().model_dump_json())
    node = by_stage(lineage.read_lineage())["judgement"]
    assert node.bytes == file.stat().st_size + made.judgement.stat().st_size
    delete([node])
    assert not file.exists()
    assert not made.judgement.exists()


def test_only_a_runs_own_files_are_deleted(made: Pipeline) -> None:
    """The user's file in the folder, or a folder without a run, and nothing is touched."""
    thesis = made.calibration / "thesis.tex"
    thesis.write_text("years of work")
    stages = by_stage(lineage.read_lineage())
    with pytest.raises(InputError, match=r"holds 'thesis.tex', which does not belong to a calibration"):
        delete([stages["plan"], stages["calibration"]])
    assert made.plan.exists()
    assert thesis.exists()


def test_a_folder_that_is_no_run(made: Pipeline, tmp_path: Path) -> None:
    """Whatever a reference says."""
    place = tmp_path / "home"
    place.mkdir()
    (place / "notes.json").write_text("{}")
    remember(place, "checkpoint")
    with pytest.raises(InputError, match="holds no checkpoint any more"):
        delete([find_run(lineage.read_lineage(), str(place))])
    assert (place / "notes.json").exists()


def test_links_are_not_followed(made: Pipeline, tmp_path: Path) -> None:
    """A run that is a link, and a link within a run, are left alone with all that they lead to."""
    outside = tmp_path / "outside"
    shutil.copytree(made.calibration, outside)
    link = made.calibration.with_name("link")
    link.symlink_to(outside)
    remember(link, "calibration")
    with pytest.raises(InputError, match="is a link"):
        delete([find_run(lineage.read_lineage(), "link")])
    (made.calibration / CHECK_FILE).symlink_to(outside / "record.json")
    with pytest.raises(InputError, match=f"holds '{CHECK_FILE}'"):
        delete([find_run(lineage.read_lineage(), "task")])
    assert len(list(outside.iterdir())) == 2
    assert made.calibration.exists()


def test_a_run_outside_of_the_workspace_may_go(made: Pipeline, tmp_path: Path) -> None:
    """The workspace refers to it."""
    place = tmp_path / "elsewhere.json"
    save_plan(load_plan(made.plan), place)
    delete([find_run(lineage.read_lineage(), str(place))])
    assert not place.exists()
    assert tmp_path.exists()


def test_a_run_that_a_job_works_with_stays(made: Pipeline) -> None:
    job = jobs.Job(
        id="busy",
        kind="prune",
        arguments={"plan": str(made.plan)},
        created=time.time(),
        pid=os.getpid(),
        state="running",
    )
    with JobStore() as store:
        store.put(job)
    with pytest.raises(InputError, match=r"run='eight': a job \(prune\) uses it"):
        delete([by_stage(lineage.read_lineage())["plan"]])
    assert made.plan.exists()


def left(what: Left) -> list[str]:
    return [one.path.name for one in disk_use.leftovers(lineage.read_lineage()) if one.what == what]


def old(path: Path) -> Path:
    """A path as of last week."""
    week = time.time() - 7 * 86400
    os.utime(path, (week, week))
    return path


def test_what_the_disk_is_used_for(made: Pipeline) -> None:
    """Every byte in the workspace is somewhere once, runs by their kind."""
    votes.file_of(made.judgement).write_text(votes.Votes().model_dump_json())
    found = lineage.read_lineage()
    used = disk_use.use(found)
    sizes = by_stage(found)
    assert used["checkpoints"] == sizes["checkpoint"].bytes + sizes["recovered"].bytes
    assert used["plans"] == made.plan.stat().st_size
    every = sum(file.stat().st_size for file in workspace.home().rglob("*") if file.is_file())
    assert sum(used.values()) == every


def test_leftovers_are_told_and_removed(made: Pipeline) -> None:
    """Each kind is found, with its bytes, and only what was chosen goes."""
    home = workspace.home()
    abandoned = home / "checkpoints" / f".lost.partial-{DEAD}"
    abandoned.mkdir()
    (abandoned / "model.safetensors").write_bytes(b"0" * 1000)
    under_way = home / "checkpoints" / f".now.partial-{os.getpid()}"
    under_way.mkdir()
    (home / "trainings" / "stopped").mkdir(parents=True)
    (home / "trainings" / "stopped" / "state.safetensors").write_bytes(b"0" * 500)
    (home / "trainings" / "gone.lock").touch()
    (home / "rounds" / "one").mkdir(parents=True)
    old(home / "rounds" / "one")
    (home / "rounds" / "fresh").mkdir()
    (home / "models" / "other-0123456789ab").mkdir(parents=True)
    (home / "models" / "mine-0123456789ab").mkdir()
    (home / "uploads").mkdir(exist_ok=True)
    old_upload = home / "uploads" / "rows-12345678.csv"
    old_upload.write_text("a,b\n")
    old(old_upload)
    (home / "jobs").mkdir(exist_ok=True)
    (home / "jobs" / "000.log").write_text("gone")
    old(home / "jobs" / "000.log")
    (home / "runs" / "ffffffffffffffff.json").write_text("{")
    assert left("partial") == [abandoned.name]
    assert left("trainings") == ["stopped"]
    assert left("locks") == ["gone.lock"]
    assert left("rounds") == ["one"]
    assert sorted(left("models")) == ["mine-0123456789ab", "other-0123456789ab"]
    assert left("uploads") == [old_upload.name]
    assert left("logs") == ["000.log"]
    assert left("gone") == ["ffffffffffffffff.json"]
    assert left("results") == ["results"]

    assert disk_use.clean(["partial"], lineage.read_lineage()) == 1000
    assert not abandoned.exists()
    assert under_way.exists()
    assert (home / "trainings" / "stopped").exists()
    assert (
        disk_use.clean(["trainings", "locks", "rounds", "models", "uploads", "logs", "gone"], lineage.read_lineage())
        >= 509
    )
    assert [one.what for one in disk_use.leftovers(lineage.read_lineage())] == ["results"]
    assert (home / "rounds" / "fresh").exists()
    assert len(lineage.read_lineage().runs) == 6


def test_results_are_emptied_and_can_be_used_on(made: Pipeline) -> None:
    with open_cache() as cache:
        assert list(cache)
        disk_use.clean(["results"], lineage.read_lineage())
        assert not list(cache)
        cache.set("a", "b")
    assert len(lineage.read_lineage().runs) == 6


def test_a_training_under_way_is_no_leftover(made: Pipeline) -> None:
    folder = workspace.subfolder("trainings", "busy")
    with FileLock(f"{folder}.lock"):
        assert left("trainings") == []
        assert disk_use.clean(["trainings", "locks"], lineage.read_lineage()) == 0
    assert left("trainings") == ["busy"]
    assert folder.exists()


def test_nothing_behind_a_link_is_a_leftover(made: Pipeline, tmp_path: Path) -> None:
    """The workspace's folder of models may be a link to a shared one."""
    shared = tmp_path / "shared"
    (shared / "theirs-0123456789ab").mkdir(parents=True)
    shutil.rmtree(workspace.home() / "models", ignore_errors=True)
    (workspace.home() / "models").symlink_to(shared)
    (workspace.home() / "rounds").mkdir(exist_ok=True)
    (workspace.home() / "rounds" / "link").symlink_to(shared)
    assert left("models") == left("rounds") == []
    disk_use.clean(disk_use.LEFT, lineage.read_lineage())
    assert (shared / "theirs-0123456789ab").exists()
    (workspace.home() / "models").unlink()


def test_discarding_is_at_once(made: Pipeline, tmp_path: Path) -> None:
    """A link goes, not what it leads to."""
    link = tmp_path / "link"
    link.symlink_to(made.calibration)
    workspace.discard(link)
    assert not link.is_symlink()
    assert made.calibration.exists()
    workspace.discard(made.calibration)
    assert not made.calibration.exists()
    assert not list(made.calibration.parent.iterdir())
