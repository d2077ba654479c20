"""The files of a run of each kind, which are counted, deleted, exported and imported."""

import re
from pathlib import Path

from slim.calibration.record import CHECK_FILE
from slim.core.workspace import Kind
from slim.evaluation.record import SCORES, TABLE
from slim.judging.votes import file_of as votes_of
from slim.models.original import PLAN_FILE
from slim.models.source import CARRIED, WEIGHTS
from slim.planning.after_repair_record import FILE as ABSORBED
from slim.planning.slicing import MODELING_FILE
from slim.pruning.history import RECOVERY_FILE

PLAN, JUDGEMENT, VOTES = "plan.json", "judgement.json", "judgement.votes.json"
"""Names of the files of runs that are files themselves, inside a folder or an archive of runs."""
REQUIRED: dict[Kind, tuple[str, ...]] = {
    "calibration": ("record.json", "tensors.safetensors"),
    "plan": (PLAN,),
    "checkpoint": ("config.json",),
    "evaluation": ("record.json", TABLE, SCORES),
    "judgement": (JUDGEMENT,),
}
POSSIBLE: dict[Kind, tuple[str, ...]] = {
    "calibration": (CHECK_FILE, ABSORBED),
    "plan": (),
    "checkpoint": (WEIGHTS, PLAN_FILE, RECOVERY_FILE, MODELING_FILE, "README.md"),
    "evaluation": (),
    "judgement": (VOTES,),
}
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
TEMPLATES = "additional_chat_templates/"
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(?<!\.)")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that are devices on Windows."""


def belongs(kind: Kind, name: str) -> bool:
    """Return whether a run of a kind may hold a file of this name, which is a path within the run."""
    if name in REQUIRED[kind] or name in POSSIBLE[kind]:
        return True
    if kind != "checkpoint":
        return False
    if name.startswith(TEMPLATES):
        return is_plain(name.removeprefix(TEMPLATES)) and name.endswith(".jinja")
    return bool(SHARD.fullmatch(name)) or (is_plain(name) and Path(name).suffix in CARRIED)


def is_plain(name: str) -> bool:
    """Return whether a file's name means the same file on every system."""
    return bool(PLAIN.fullmatch(name)) and not RESERVED.fullmatch(name)


def files_of(kind: Kind, path: Path) -> dict[str, Path]:
    """The files of a run by their names within it, foreign ones included. Links count as files."""
    if kind == "plan":
        return {PLAN: path}
    if kind == "judgement":
        votes = votes_of(path)
        return {JUDGEMENT: path} | ({VOTES: votes} if votes.is_file() else {})
    return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if not is_folder(file)}


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder. Links are not followed; a file that vanishes counts as 0."""
    files = path.rglob("*") if is_folder(path) else (path,)
    total = 0
    for file in files:
        try:
            total += 0 if is_folder(file) else file.lstat().st_size
        except OSError:
            continue
    return total
