"""The workspace on disk: where runs live, how a run folder appears all at once or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import psutil
from safetensors import SafetensorError

from slim.core.errors import InputError, SlimError

Kind = Literal["calibration", "plan", "checkpoint", "evaluation", "judgement"]
PARTIAL = re.compile(r"\..+\.partial-(\d{1,9})")
SECONDS_APART = 60
"""By which the clocks of processes and files may disagree."""


def place() -> Path:
    """Where the workspace lies, or will: `SLIM_HOME`, or `./cache`."""
    return Path(os.path.expanduser(os.environ.get("SLIM_HOME") or "cache")).absolute()


def home() -> Path:
    """The workspace folder. Raises InputError when it cannot be written to."""
    folder = place()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"workspace {str(folder)!r} is not writable: set SLIM_HOME to a folder you may write to.")
    return folder


def subfolder(*names: str) -> Path:
    """A folder inside the workspace, made when it is missing."""
    folder = home().joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fresh_path(kind: Kind, name: str) -> Path:
    """A path for a new run inside the workspace that nothing occupies yet."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    stem = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "run"
    folder = subfolder(f"{kind}s")
    suffix = ".json" if kind in ("plan", "judgement") else ""
    number, path = 1, folder / f"{stem}-{stamp}{suffix}"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{stamp}-{number}{suffix}"
    return path


def check_output(output: Path, needed_bytes: int = 0) -> None:
    """Raises InputError when `output` is taken, cannot be written, or its disk lacks `needed_bytes`.

    Files that killed processes left beside it are removed first.
    """
    sweep(output.absolute().parent)
    if output.is_file():
        raise InputError(f"output {str(output)!r} is an existing file: name a new folder.")
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"output {str(output)!r} exists and is not empty: name a new folder, or empty this one.")
    _check_room(output, needed_bytes)


def check_file(output: Path, needed_bytes: int = 0) -> None:
    """Raises InputError when the file `output` exists, cannot be written, or its disk lacks `needed_bytes`."""
    sweep(output.absolute().parent)
    if output.exists():
        raise InputError(f"output {str(output)!r} exists: name a new file.")
    _check_room(output, needed_bytes)


def _check_room(output: Path, needed_bytes: int) -> None:
    parent = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"output {str(output)!r} cannot be written: {str(parent)!r} is read-only for you.")
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise InputError(
            f"output {str(output)!r} needs {needed_bytes / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB free: "
            "free some space or choose another disk."
        )


@contextmanager
def new_folder(output: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A temporary sibling to fill, renamed to `output` when the block ends well and removed when it does not."""
    check_output(output, needed_bytes)
    output = output.absolute()
    partial, missing = _partial(output), _missing(output.parent)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        _remove_empty(missing)
        raise _as_slim_error(error, output) from error
    try:
        yield partial
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
    except Exception as error:
        if isinstance(error, OSError | SafetensorError) or "os error" in str(
            error
        ):  # as the tokenizers' library has it
            raise _as_slim_error(error, output) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _remove_empty(missing)


@contextmanager
def new_file(output: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """The same for a file: a temporary sibling that takes its place when the block ends well."""
    check_file(output, needed_bytes)
    with _whole(output) as partial:
        yield partial


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    path = path.absolute()
    partial, missing = _partial(path), _missing(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise _as_slim_error(error, path) from error
    finally:
        partial.unlink(missing_ok=True)
        _remove_empty(missing)


def _missing(folder: Path) -> list[Path]:
    """The folders that are made where `folder` is, the innermost first."""
    return list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders that were made for something that did not come to be."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A folder inside the workspace for the length of the block; of a process that was killed, `sweep` removes it."""
    with TemporaryDirectory(prefix=".", suffix=f".partial-{os.getpid()}", dir=subfolder(name)) as folder:
        yield Path(folder)


def sweep(folder: Path) -> None:
    """Removes what was half written in `folder` by processes of this machine that are gone."""
    with suppress(OSError):
        for path in folder.iterdir():
            if not is_abandoned(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_abandoned(path: Path) -> bool:
    """Whether a path was half written by a process of this machine that is gone."""
    found = PARTIAL.fullmatch(path.name)
    return found is not None and not _is_at_work(int(found[1]), path)


def _is_at_work(pid: int, on: Path) -> bool:
    """Whether a process is still the one that made a path, and not one that got its number later."""
    try:
        return psutil.Process(pid).create_time() <= on.lstat().st_mtime + SECONDS_APART
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True


def _partial(path: Path) -> Path:
    """Where `path` is written until all of it is there."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def write_file(path: Path, content: str | bytes | memoryview) -> None:
    """Writes `content` so that `path` holds all of it or what it held before."""
    with _whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def _as_slim_error(error: Exception, path: Path) -> SlimError:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
    if full:
        return SlimError(
            f"no space left while writing {str(path)!r}: nothing was kept of it; free some space and run again."
        )
    return SlimError(f"{str(path)!r} could not be written: {getattr(error, 'strerror', None) or error}.")


def discard(path: Path) -> None:
    """Removes a file or folder: at once it is hidden, and what a kill leaves of it is swept up later.

    A link is never followed. Raises SlimError where it cannot be removed.
    """
    hidden = _partial(path.absolute())
    try:
        path.rename(hidden)
        if hidden.is_dir() and not hidden.is_symlink():
            os.utime(hidden)  # the time by which `sweep` tells the process that hid it
            shutil.rmtree(hidden)
        else:
            hidden.unlink()
    except OSError as error:
        raise SlimError(f"{str(path)!r} could not be removed: {error.strerror or error}.") from error
