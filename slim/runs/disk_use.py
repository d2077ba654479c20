"""Disk use of the workspace, its leftovers, and their removal."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from diskcache import Cache
from filelock import FileLock, Timeout

from slim import jobs
from slim.core import workspace
from slim.core.errors import SlimError
from slim.core.json_disk import JsonDisk
from slim.core.run_index import reference
from slim.core.workspace import PARTIAL, Kind
from slim.models import bundled
from slim.runs.facts import RunFacts, run_facts
from slim.runs.files import files_of, is_folder, size_of
from slim.runs.lineage import Lineage

Left = Literal["partial", "locks", "gone", "trainings", "rounds", "results", "models", "uploads", "logs"]
LEFT: tuple[Left, ...] = get_args(Left)
MEANING: dict[Left, str] = {
    "partial": "half written by processes that were killed",
    "locks": "locks that no process holds",
    "gone": "references to runs that were moved or deleted",
    "trainings": "saved states of stopped trainings, which could resume",
    "rounds": "saved states of stopped pruning in rounds, which could resume",
    "results": "cached results of rows: the next calibration or evaluation computes them again",
    "models": "models unpacked from GGUF that no run uses: they are unpacked again when needed",
    "uploads": "uploaded files that no calibration used",
    "logs": "logs of jobs that were deleted from the list",
}
"""Each kind of leftover, and the cost of its removal."""
SAFE: tuple[Left, ...] = ("partial", "locks", "gone", "logs")
"""Leftovers that are safe to remove."""
OF_JOBS: tuple[Left, ...] = ("rounds", "models", "uploads")
"""Leftovers that a running job may need."""
QUIET = 3600
"""Seconds without a change after which unfinished work without a lock of its own counts as stopped."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder that may be removed, and its bytes."""

    what: Left
    path: Path
    bytes: int


def use(lineage: Lineage) -> dict[str, int]:
    """Bytes by kind of run, and of everything else in the workspace by its folder, the largest first."""
    found: dict[str, int] = {}
    for node in lineage.runs:
        found[f"{node.kind}s"] = found.get(f"{node.kind}s", 0) + node.bytes
    places = {file for node in lineage.runs if node.kind and node.path for file in _of_run(node.kind, node.path)}
    for folder in workspace.home().iterdir():
        inside = [folder] if not is_folder(folder) else [path for path in folder.iterdir() if path not in places]
        size = sum(size_of(path) for path in inside)
        if size:
            name = f"{folder.name}, not of a run" if folder.name in found else folder.name
            found[name] = found.get(name, 0) + size
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _of_run(kind: Kind, path: Path) -> list[Path]:
    """The paths of a run: itself, and the files beside it that belong to it."""
    return [path, *files_of(kind, path).values()] if kind == "judgement" else [path]


def leftovers(lineage: Lineage) -> list[Leftover]:
    """The files that may be removed: only in the workspace, never behind a link, and never in use."""
    found: list[Leftover] = []
    busy = any(job.unfinished for job in jobs.jobs())
    for what, search in SEARCH.items():
        for path in () if busy and what in OF_JOBS else search(lineage):
            if _is_inside(path):
                found.append(Leftover(what, path, size_of(path)))
    return found


def clean(kinds: Iterable[Left], lineage: Lineage) -> int:
    """Remove the current leftovers of these kinds, and return the bytes that were freed.

    Raises SlimError where one cannot be removed.
    """
    kinds, freed = set(kinds), 0
    for one in leftovers(lineage):
        if one.what not in kinds:
            continue
        if one.what == "results":
            with Cache(str(one.path), disk=JsonDisk) as cache:
                cache.clear()
            freed += one.bytes - size_of(one.path)
        elif one.what in ("locks", "trainings"):
            freed += _discard_locked(one)
        else:
            workspace.discard(one.path)
            freed += one.bytes
    return freed


def _discard_locked(one: Leftover) -> int:
    """The bytes that were freed; 0 where another process took the lock meanwhile."""
    lock = _lock_of(one.path)
    with suppress(Timeout), FileLock(lock).acquire(timeout=0):
        if one.path != lock:
            workspace.discard(one.path)
        lock.unlink(missing_ok=True)
        return one.bytes
    return 0


def _lock_of(path: Path) -> Path:
    return path if path.suffix == ".lock" else path.with_name(f"{path.name}.lock")


def _is_free(path: Path) -> bool:
    """Return whether no process holds a lock, or the lock of a folder."""
    lock = _lock_of(path)
    if not lock.exists():
        return True
    try:
        with FileLock(lock).acquire(timeout=0):
            return True
    except (Timeout, OSError):
        return False


def _is_quiet(path: Path) -> bool:
    """Return whether nothing in a folder has changed for a while."""
    newest = max((inner.lstat().st_mtime for inner in (path, *path.rglob("*"))), default=0.0)
    return time.time() - newest > QUIET


def _is_inside(path: Path) -> bool:
    """Return whether a path, with links resolved, lies in the workspace."""
    home = workspace.home().resolve()
    return not path.is_symlink() and path.resolve().is_relative_to(home) and path.resolve() != home


def _within(*names: str) -> Iterator[Path]:
    folder = workspace.home().joinpath(*names)
    if folder.is_dir():
        yield from sorted(folder.iterdir())


def _partial(lineage: Lineage) -> Iterator[Path]:
    for folder in (workspace.home(), *filter(is_folder, _within())):
        yield from (path for path in folder.iterdir() if PARTIAL.fullmatch(path.name) and workspace.is_abandoned(path))
    yield from (path for path in _within("cut") if _is_quiet(path))


def _locks(lineage: Lineage) -> Iterator[Path]:
    for path in (*_within("trainings"), *_within("models")):
        if path.suffix == ".lock" and not path.with_suffix("").exists() and _is_free(path):
            yield path


def _gone(lineage: Lineage) -> Iterator[Path]:
    for file in _within("runs"):
        entry = reference(file.stem)
        if file.suffix == ".json" and (entry is None or not Path(entry.path).exists()):
            yield file


def _trainings(lineage: Lineage) -> Iterator[Path]:
    return (path for path in _within("trainings") if is_folder(path) and _is_free(path))


def _rounds(lineage: Lineage) -> Iterator[Path]:
    return (path for path in _within("rounds") if is_folder(path) and _is_quiet(path))


def _results(lineage: Lineage) -> Iterator[Path]:
    if any(_within("results")):
        yield workspace.home() / "results"


def _models(lineage: Lineage) -> Iterator[Path]:
    """The unpacked models that no run uses; each is named after its file, followed by a part of its hash."""
    sources = {one.source for run in _facts(lineage) for one in run.models}
    used = {bundled.FOLDER} if bundled.NAME in sources else set[str]()
    files = {Path(source).stem for source in sources if source.endswith(".gguf")}
    for path in _within("models"):
        needed = path.name in used or path.name.rpartition("-")[0] in files
        if is_folder(path) and not needed and not PARTIAL.fullmatch(path.name):
            yield path


def _uploads(lineage: Lineage) -> Iterator[Path]:
    used = {Path(source).name for run in _facts(lineage) for source in run.data}
    for path in _within("uploads"):
        if path.name not in used and not PARTIAL.fullmatch(path.name) and _is_quiet(path):
            yield path


def _logs(lineage: Lineage) -> Iterator[Path]:
    known = {job.id for job in jobs.jobs()}
    return (path for path in _within("jobs") if path.suffix == ".log" and path.stem not in known and _is_quiet(path))


def _facts(lineage: Lineage) -> Iterator[RunFacts]:
    for node in lineage.runs:
        if node.kind is not None and node.path is not None:
            with suppress(SlimError, OSError):
                yield run_facts(node.kind, node.path)


SEARCH: dict[Left, Callable[[Lineage], Iterator[Path]]] = {
    "partial": _partial,
    "locks": _locks,
    "gone": _gone,
    "trainings": _trainings,
    "rounds": _rounds,
    "results": _results,
    "models": _models,
    "uploads": _uploads,
    "logs": _logs,
}
