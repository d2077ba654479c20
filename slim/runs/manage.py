"""Management of runs: find by name, rename, tag, and delete with the dependents listed."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slim import jobs
from slim.core import workspace
from slim.core.errors import InputError
from slim.core.run_index import Reference, drop_reference, put_reference, reference
from slim.core.workspace import Kind
from slim.runs.files import REQUIRED, belongs, files_of
from slim.runs.lineage import Lineage, Node

LONGEST = 80
"""Most characters of a name or a tag."""
LISTED = 5
"""Names in one sentence; more are counted."""


def find_run(lineage: Lineage, text: str) -> Node:
    """The run that `text` names: by its path, its name, its key, or an unambiguous start of its name.

    Raises InputError where no run or several runs match.
    """
    place = str(Path(text).expanduser().absolute())
    for names in (
        lambda node: text == node.key or place == str(node.path),
        lambda node: text in _names(node),
        lambda node: bool(text) and any(name.startswith(text) for name in _names(node)),
    ):
        found = [node for node in lineage.runs if names(node)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{node.stage} {str(node.path)!r}" for node in found[:LISTED])
            raise InputError(f"run={text!r}: {len(found)} runs match; name one by its path: {listed}.")
    raise InputError(f"run={text!r}: it is not in the workspace; `slim runs list` shows all runs.")


def _names(node: Node) -> tuple[str, ...]:
    """The names of a run: the displayed one, and that of its file."""
    path = node.path or Path()
    return node.name, path.name, path.stem if path.suffix == ".json" else path.name, node.key


def rename(lineage: Lineage, node: Node, name: str) -> Reference:
    """Change the displayed name of a run; an empty one restores that of its file. Its path, which records name, stays.

    Raises InputError for a name that is too long, holds control characters, or is that of another run.
    """
    name = _checked("name", name) if name.strip() else ""
    if taken := [other for other in lineage.runs if other.key != node.key and name and name in _names(other)]:
        raise InputError(f"name={name!r}: the {taken[0].stage} {str(taken[0].path)!r} has it; choose another.")
    return _changed(node, name=name or None)


def tag(node: Node, *tags: str) -> Reference:
    """Add tags to a run. Raises InputError for one that is empty, too long, or holds control characters."""
    return _changed(node, tags=tuple(dict.fromkeys((*_reference(node).tags, *(_checked("tag", one) for one in tags)))))


def untag(node: Node, *tags: str) -> Reference:
    """Remove tags from a run. Raises InputError for one that it does not have."""
    held = _reference(node).tags
    for one in tags:
        if one not in held:
            raise InputError(
                f"tag={one!r}: {node.name!r} does not have it; its tags: {', '.join(map(repr, held)) or 'none'}."
            )
    return _changed(node, tags=tuple(one for one in held if one not in tags))


def is_name(text: str) -> bool:
    """Return whether a text is a valid name or tag."""
    return 0 < len(text) <= LONGEST and not any(unicodedata.category(sign).startswith("C") for sign in text)


def _checked(field: str, text: str) -> str:
    text = text.strip()
    if not is_name(text):
        raise InputError(f"{field}={text[:LONGEST]!r}: it is not valid; write 1 to {LONGEST} printable characters.")
    return text


def _changed(node: Node, **changes: object) -> Reference:
    return put_reference(_reference(node).model_copy(update=changes))


def _reference(node: Node) -> Reference:
    found = reference(node.key)
    if found is None:
        raise InputError(f"run={node.name!r}: it is not in the workspace any more; `slim runs list` shows all runs.")
    return found


def dependents(lineage: Lineage, nodes: Iterable[Node]) -> list[Node]:
    """The other runs that were made from these, the nearest first."""
    nodes = list(nodes)
    chosen = {node.key for node in nodes}
    found = {other.key: other for node in nodes for other in lineage.dependents(node.key) if other.path is not None}
    return [node for key, node in found.items() if key not in chosen]


def delete(nodes: Sequence[Node]) -> None:
    """Delete these runs from the disk and from the workspace's list, the last first, each atomically.

    All are checked before the first is deleted. Raises InputError, and deletes nothing, for anything but a run, a link,
    a run that a job uses, or a folder that holds foreign files.
    """
    for node in nodes:
        _check_deletable(node)
    for node in reversed(nodes):
        path, kind = _place(node)
        if kind in ("plan", "judgement"):
            for file in reversed(files_of(kind, path).values()):
                workspace.discard(file)
        else:
            workspace.discard(path)
        drop_reference(node.key)


def _check_deletable(node: Node) -> None:
    path, kind = _place(node)
    if path.is_symlink():
        raise InputError(
            f"run={str(path)!r}: it is a link, whose target is outside of the workspace's care; remove it by hand."
        )
    held = files_of(kind, path)
    if strange := [name for name, file in held.items() if not belongs(kind, name) or file.is_symlink()]:
        raise InputError(
            f"run={str(path)!r}: it holds {strange[0]!r}, which does not belong to a {kind}; move that away first."
        )
    if not any(name in held for name in REQUIRED[kind]):
        raise InputError(f"run={str(path)!r}: it holds no {kind} any more; remove it by hand.")
    for job in jobs.jobs():
        if job.unfinished and any(Path(text).expanduser().absolute() == path for text in _texts(job.arguments)):
            raise InputError(f"run={node.name!r}: a job ({job.kind}) uses it; cancel the job, or wait for its end.")


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _place(node: Node) -> tuple[Path, Kind]:
    if node.path is None or node.kind is None:
        raise InputError(f"run={node.name!r}: it is a model, not a run; name a run.")
    return node.path, node.kind
