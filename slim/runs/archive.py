"""Archives: runs as one file for another machine, imported only after all of it was validated.

An archive is a zip with uncompressed members: weights hardly compress, and an uncompressed member cannot unpack to more
than its size. `manifest.json` has the size and the hash of every file.
"""

import hashlib
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import slim
from slim.core import workspace
from slim.core.errors import InputError, SlimError
from slim.core.migrations import from_json
from slim.core.records import why_invalid
from slim.core.reporter import SILENT, Reporter
from slim.core.run_index import Reference, reference, remember
from slim.runs.facts import run_facts
from slim.runs.files import REQUIRED, belongs, files_of
from slim.runs.import_check import check, places, rewrite, shown_name, staged
from slim.runs.lineage import Lineage, Node
from slim.runs.manifest import MANIFEST, MOST_FILES, Manifest, PackedFile, PackedRun

SUFFIX = ".slim.zip"
CHUNK = 2**20
LONGEST_MANIFEST = 2**23
LONGEST_DIRECTORY = 512 * MOST_FILES
"""Most bytes of a zip's central directory, which is read into memory before it can be checked."""
END, END64, LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


def with_ancestors(lineage: Lineage, node: Node) -> list[Node]:
    """A run and its ancestors, each after its own parents."""
    found: dict[str, Node] = {}
    seen: set[str] = set()

    def add(one: Node) -> None:
        seen.add(one.key)
        for parent in lineage.parents(one.key):
            if parent.key not in seen:
                add(parent)
        if one.path is not None:
            found[one.key] = one

    add(node)
    return list(found.values())


def export_runs(lineage: Lineage, nodes: Sequence[Node], output: Path, reporter: Reporter = SILENT) -> Manifest:
    """Write runs to the new file `output`, and return its manifest.

    Raises InputError for a run that cannot be read, or holds files that do not belong to a run: no machine would
    import it.
    """
    total = sum(node.bytes for node in nodes)
    done = 0
    with workspace.new_file(output, total) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        runs = []
        for number, node in enumerate(nodes, 1):
            path, kind = node.path or Path(), node.kind or "plan"
            held = files_of(kind, path)
            _check_complete(node, held)
            check(kind, held)
            packed = []
            for name, file in held.items():
                packed.append(_pack(archive, f"{number}/{name}", name, file))
                done += packed[-1].bytes
                reporter.progress(done, total, f"Packing {node.name}")
            stem = path.stem if path.suffix == ".json" else path.name
            named = reference(node.key)
            runs.append(
                PackedRun(
                    number=number,
                    kind=kind,
                    file_name=stem,
                    name=named.name if named else None,
                    tags=node.tags,
                    files=tuple(packed),
                )
            )
        manifest = Manifest(
            slim=slim.__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            runs=tuple(runs),
            places=_places(lineage, nodes),
        )
        archive.writestr(_member(MANIFEST), manifest.model_dump_json(indent=1))
    return manifest


def _check_complete(node: Node, held: Mapping[str, Path]) -> None:
    kind = node.kind or "plan"
    if lacking := [name for name in REQUIRED[kind] if name not in held]:
        raise InputError(f"run={str(node.path)!r}: it lacks {lacking[0]!r}, which every {kind} has; leave it out.")
    for name, file in held.items():
        if not belongs(kind, name) or not file.is_file() or file.is_symlink():
            raise InputError(
                f"run={str(node.path)!r}: it holds {name!r}, which does not belong to a {kind}; move that away first."
            )


def _pack(archive: zipfile.ZipFile, member: str, name: str, file: Path) -> PackedFile:
    total, size = hashlib.sha256(), 0
    with file.open("rb") as source, archive.open(_member(member), "w", force_zip64=True) as target:
        while chunk := source.read(CHUNK):
            target.write(chunk)
            total.update(chunk)
            size += len(chunk)
    return PackedFile(name=name, bytes=size, sha256=total.hexdigest())


def _member(name: str) -> zipfile.ZipInfo:
    """A member without metadata of this machine."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def _places(lineage: Lineage, nodes: Sequence[Node]) -> dict[str, int]:
    """The sources by which the records of these runs name each other, with the numbers of those runs."""
    numbers = {str(node.path): number for number, node in enumerate(nodes, 1)}
    found = {}
    for node in nodes:
        said = run_facts(node.kind or "plan", node.path or Path())
        for source in [one.source for one in said.models] + [said.cut.calibration if said.cut else ""]:
            if source and (number := numbers.get(str(Path(source).expanduser().absolute()))):
                found[source] = number
        for parent in lineage.parents(node.key):  # a calibration that was moved or imported
            if said.cut and said.cut.calibration and parent.kind == "calibration" and str(parent.path) in numbers:
                found[said.cut.calibration] = numbers[str(parent.path)]
    return found


def import_runs(archive: Path | BinaryIO, name: str = "", reporter: Reporter = SILENT) -> list[Reference]:
    """Import the runs of an archive, all or none, and return their references, that of the exported run last.

    Their records name each other by their folders here. Raises InputError, and leaves nothing behind, for anything in
    the archive that is not as `export_runs` writes it, is damaged, or does not fit on the disk.
    """
    name = name or (str(archive) if isinstance(archive, Path) else "upload")
    try:
        with ExitStack() as stack:
            file = stack.enter_context(archive.open("rb")) if isinstance(archive, Path) else archive
            _check_directory(file)
            opened = stack.enter_context(zipfile.ZipFile(file))
            manifest = _manifest(opened)
            _check_members(opened, manifest, _length(file))
            return _take_in(opened, manifest, reporter)
    except InputError as error:
        raise InputError(f"archive={name!r}: {error}") from error
    except (
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        NotImplementedError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise InputError(f"archive={name!r}: it cannot be read ({error}); export it again.") from error


def _length(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _check_directory(file: BinaryIO) -> None:
    """Refuse a file that is not a zip, or lists more members than an archive of Slim can have.

    The check reads what `zipfile` would, which loads the whole list at once and makes an object of each entry.
    """
    tail = _tail(file, 98)
    end = tail[-22:]
    if len(end) < 22 or end[:4] != END or end[-2:] != b"\0\0":
        raise InputError("it was not written by Slim, or it is truncated; export it again.")
    size = struct.unpack("<L", end[12:16])[0]
    if tail[-42:-38] == LOCATOR and tail[-98:-94] == END64:
        size = struct.unpack("<Q", tail[-58:-50])[0]
    if size > LONGEST_DIRECTORY:
        raise InputError(f"it lists more than {MOST_FILES:,} files; export fewer runs at a time.")


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, _length(file) - size))
    return file.read(size)


def _manifest(opened: zipfile.ZipFile) -> Manifest:
    listed = [info for info in opened.infolist() if info.filename == MANIFEST]
    if len(listed) != 1:
        raise InputError(f"{MANIFEST}: there are {len(listed)} of it, not one, so the archive was not written by Slim.")
    _check_plain(listed[0])
    if listed[0].file_size > LONGEST_MANIFEST:
        raise InputError(f"{MANIFEST}: it is {listed[0].file_size:,} bytes; export fewer runs at a time.")
    with opened.open(listed[0]) as source:
        content = source.read(LONGEST_MANIFEST + 1)
    try:
        return from_json(Manifest, content, MANIFEST)
    except ValueError as error:
        raise InputError(f"{MANIFEST}: {why_invalid(error)}; export it again.") from error


def _check_plain(info: zipfile.ZipInfo) -> None:
    """Refuse a member that is anything but an uncompressed regular file."""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG) or info.is_dir():
        raise InputError(f"{info.orig_filename!r} is a folder, a link or a device; remove it.")
    if info.flag_bits & 0x1:
        raise InputError(f"{info.orig_filename!r} is encrypted; export it again.")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise InputError(f"{info.orig_filename!r} is compressed, and Slim stores files uncompressed; export it again.")


def _check_members(opened: zipfile.ZipFile, manifest: Manifest, length: int) -> None:
    """Refuse members that do not match the manifest, and an archive that does not fit on the disk."""
    expected = {MANIFEST: None, **manifest.members}
    seen: set[str] = set()
    for info in opened.infolist():
        _check_plain(info)
        if info.orig_filename.casefold() in seen:
            raise InputError(
                f"{info.orig_filename!r} occurs twice, or differs from another name in case alone; export it again."
            )
        seen.add(info.orig_filename.casefold())
        if info.orig_filename not in expected:
            raise InputError(f"{info.orig_filename!r} is not in its {MANIFEST}; export it again.")
        file = expected.pop(info.orig_filename)
        if file is not None and file.bytes != info.file_size:
            raise InputError(
                f"{info.orig_filename!r} has {info.file_size:,} bytes, not {file.bytes:,}; export it again."
            )
    if expected:
        raise InputError(f"{next(iter(expected))!r} is missing; export it again.")
    if manifest.bytes > length:
        raise InputError(f"its files overlap: {manifest.bytes:,} bytes in a file of {length:,}; export it again.")
    free = shutil.disk_usage(workspace.home()).free
    if manifest.bytes > free:
        raise InputError(
            f"it needs {manifest.bytes / 1e6:,.0f} MB of disk, and {free / 1e6:,.0f} MB are free; free some space."
        )


def _take_in(opened: zipfile.ZipFile, manifest: Manifest, reporter: Reporter) -> list[Reference]:
    finals = places(manifest)
    moved = {place: str(finals[number - 1]) for place, number in manifest.places.items()}
    done, arrived = 0, list[Path]()
    try:
        with ExitStack() as stack:
            for run, final in zip(manifest.runs, finals, strict=True):
                held = staged(stack, run, final, arrived)
                for name, file in run.members.items():
                    with _blamed(name):
                        _unpack(opened, name, file, held[file.name])
                    done += file.bytes
                    reporter.progress(done, manifest.bytes, f"Reading {run.file_name}")
                with _blamed(f"{run.number}/ ({run.kind} {run.file_name!r})"):
                    check(run.kind, held)
                    rewrite(run.kind, held, moved)
    except BaseException:
        for path in arrived:
            workspace.discard(path)
        raise
    return [
        remember(final, run.kind, shown_name(run), run.tags) for run, final in zip(manifest.runs, finals, strict=True)
    ]


@contextmanager
def _blamed(member: str) -> Iterator[None]:
    """Name the member in errors of the block."""
    try:
        yield
    except (SlimError, zipfile.BadZipFile) as error:
        raise InputError(f"{member}: {error}") from error


def _unpack(opened: zipfile.ZipFile, member: str, file: PackedFile, target: Path) -> None:
    """Write a member, counting its true bytes. Raises InputError where its content does not match the manifest."""
    total, size = hashlib.sha256(), 0
    target.parent.mkdir(exist_ok=True)
    with opened.open(member) as source, target.open("xb") as written:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > file.bytes:
                break
            total.update(chunk)
            written.write(chunk)
    if size != file.bytes or total.hexdigest() != file.sha256:
        raise InputError("its content is not what was exported; copy the archive, or export it, again.")
