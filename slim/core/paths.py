"""Paths of user input: checked before they are used, and on the dashboard kept to the folders it may use.

On the command line users may name whatever they may read. The dashboard calls `confine` once, and from then on that
process and the workers it starts refuse what lies elsewhere, links followed.
"""

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import get_args

from slim.core import workspace
from slim.core.errors import InputError
from slim.core.run_index import runs

FOLDERS = "SLIM_FOLDERS"
"""Environment variable with the folders that the dashboard may read besides the workspace."""
CONFINED = "SLIM_CONFINED"
"""Environment variable by which workers know the folders; a JSON list, empty or unset without a limit."""
OF_THE_SYSTEM = tuple(map(Path, ("/proc", "/sys", "/dev")))
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_A_NAME = re.compile(r"[A-Za-z0-9][\w.:-]*(/[\w.-]+)?")
"""Names that may be those of a bundled model or dataset, or of one of the Hub."""
_A_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def confine(shared: bool) -> None:
    """From now on paths must lie in the workspace or in a folder of `SLIM_FOLDERS`.

    Where the dashboard is not `shared`, it is its own user's: their home and the current folder count as well.
    """
    named = [folder for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]
    own = [] if shared else [folder for folder in (os.path.expanduser("~"), os.getcwd()) if folder not in ("/", "~")]
    folders = [workspace.place(), *map(os.path.expanduser, named), *own]
    os.environ[CONFINED] = json.dumps(list(dict.fromkeys(map(os.path.realpath, folders))))


def local(text: str, field: str = "path") -> Path:
    """The path that `text` names, with `~` as the home of who runs Slim; there need be nothing there.

    Raises InputError for what can be no path, for what is neither a file nor a folder, as a device or a pipe, and,
    where paths are confined, for what lies elsewhere or leads there.
    """
    if _A_URL.match(text):
        raise InputError(f"{field}: a URL is not fetched: download the file and name it.")  # which may hold a password
    path = _expanded(text, field)
    there = _looked_at(path, text, field)
    if there is not None and not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)):
        raise InputError(f"{field} {text!r} is neither a file nor a folder: name one.")
    folders = json.loads(os.environ.get(CONFINED) or "[]")
    if not folders or (_A_NAME.fullmatch(text) and not os.path.lexists(path)):
        return path
    _check_inside(path, folders, text, field)
    if there is not None and stat.S_ISDIR(there.st_mode):
        _check_entries(path, folders, text, field)
    return path


def is_file(path: Path) -> bool:
    """Whether a file is there; False, too, for what no file can be called or one may not look at."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _expanded(text: str, field: str) -> Path:
    try:
        os.fsencode(text)
        if "\0" in text:
            raise ValueError("it holds a null character")
        return Path(text).expanduser()
    except (ValueError, RuntimeError) as error:  # of signs that no file system takes; of the home of a user unknown
        raise InputError(f"{field} {text!r} can be no path ({error}): write it out in full.") from error


def _looked_at(path: Path, text: str, field: str) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise InputError(f"{field} {text[:200]!r} cannot be looked at ({error.strerror}): name another.") from error


def _check_inside(path: Path, folders: list[str], text: str, field: str) -> None:
    real = Path(os.path.realpath(path))
    holders = [Path(folder) for folder in folders if real.is_relative_to(folder)]
    for special in OF_THE_SYSTEM:
        if real.is_relative_to(special):
            holders = [folder for folder in holders if folder.is_relative_to(special)]
    if not holders and not _of_a_run(real):
        raise InputError(
            f"{field} {text!r} lies outside the folders that the dashboard may use: put it into the workspace, or "
            f"start the dashboard with its folder in {FOLDERS}."
        )


def _check_entries(folder: Path, folders: list[str], text: str, field: str) -> None:
    """Check the entries of a model folder: each must be a file or folder, and none may lead out."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(f"{field} {text!r} cannot be looked at ({error.strerror}): name another.") from error
    for entry in entries:
        if entry.is_symlink():
            _check_inside(Path(entry.path), folders, os.path.join(text, entry.name), field)
        if not (entry.is_file() or entry.is_dir() or entry.is_symlink()):
            raise InputError(f"{field} {text!r}: {entry.name!r} in it is neither a file nor a folder: remove it.")


def _of_a_run(real: Path) -> bool:
    """Whether it is a run that the workspace knows, which somebody at the command line put elsewhere."""
    known = (run for kind in get_args(workspace.Kind) for run in runs(kind))
    return any(real.is_relative_to(os.path.realpath(run)) for run in known)
