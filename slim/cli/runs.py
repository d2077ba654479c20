"""The verb `runs`: lists, compares, names, deletes, exports, imports and cleans up runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from slim.cli.shared import AsJson, cli, out, print_json, terminal
from slim.core.errors import InputError
from slim.core.formatting import format_bytes

if TYPE_CHECKING:
    from slim.runs.lineage import Node

runs_app = typer.Typer(name="runs", help="Manage the workspace's runs.", no_args_is_help=True)
cli.add_typer(runs_app)
Run = Annotated[str, typer.Argument(metavar="RUN", help="path or name of the run, or an unambiguous start of its name")]
Yes = Annotated[bool, typer.Option("--yes", help="apply the change; without this nothing is changed")]


@runs_app.command("list")
def list_runs(
    kind: Annotated[str | None, typer.Option(help="calibration, plan, checkpoint, recovered, evaluation …")] = None,
    tag: Annotated[str | None, typer.Option(help="only runs with this tag")] = None,
    as_json: AsJson = False,
) -> None:
    """List every run with its figures, the newest first."""
    from slim.runs import lineage

    found = lineage.read_lineage()
    shown = [node for node in found.runs if kind in (None, node.kind, node.stage) and (not tag or tag in node.tags)]
    if as_json:
        print_json({"runs": [_told(node) for node in shown]})
        return
    table = Table("run", "kind", "made", "size", "figures")
    for node in shown:
        tags = f"  [{', '.join(node.tags)}]" if node.tags else ""
        told = [f"{name} {words}" for name, words in node.figures.items()] + list(node.notes)
        line = (
            node.name + tags,
            node.stage,
            node.created[:16].replace("T", " "),
            format_bytes(node.bytes),
            "; ".join(told),
        )
        table.add_row(*map(Text, line))
    out.print(table)
    out.print(f"{len(shown)} runs, {format_bytes(sum(node.bytes for node in shown))}.")


@runs_app.command()
def show(run: Run, as_json: AsJson = False) -> None:
    """Show one run: its figures, the runs it was made from, and the runs made from it."""
    from slim.runs import lineage
    from slim.runs import manage as runs

    found = lineage.read_lineage()
    node = runs.find_run(found, run)
    before, after = found.ancestors(node.key), found.dependents(node.key)
    if as_json:
        print_json(
            _told(node) | {"made_from": [_told(one) for one in before], "used_by": [_told(one) for one in after]}
        )
        return
    table = Table("", escape(node.name))
    lines = {"kind": node.stage, "path": str(node.path), "made": node.created, "size": format_bytes(node.bytes)}
    lines |= {"tags": ", ".join(node.tags)} if node.tags else {}
    for name, words in (lines | dict(node.figures)).items():
        table.add_row(Text(name), Text(words))
    out.print(table)
    for title, others in (("Made from", before), ("Used by", after)):
        for one in others:
            out.print(Text(f"{title}: {one.stage} {one.path or one.name}"), soft_wrap=True)
    for note in node.notes:
        out.print(Text(f"Note: {note}."), style="yellow", soft_wrap=True)


@runs_app.command()
def compare(one: Run, other: Run, as_json: AsJson = False) -> None:
    """Compare two runs side by side, differences first."""
    from slim.runs import comparison, lineage
    from slim.runs import manage as runs

    found = lineage.read_lineage()
    both = comparison.compare(runs.find_run(found, one), runs.find_run(found, other))
    if as_json:
        told: dict[str, Any] = {"one": str(both.one.path), "other": str(both.other.path)}
        told["lines"] = [
            {"name": line.name, "one": line.one, "other": line.other, "differs": line.differs} for line in both.lines
        ]
        if both.plans:
            told["heads"] = {"only_one": both.plans.only_one, "only_other": both.plans.only_other}
        print_json(told)
        return
    table = Table("", escape(both.one.name), escape(both.other.name))
    for line in both.lines:
        table.add_row(*map(Text, (line.name, line.one, line.other)), style=None if line.differs else "dim")
    out.print(table)
    if both.plans:
        only = f"{len(both.plans.only_one)} that only the first removes, {len(both.plans.only_other)} only the second"
        out.print(f"Heads: both remove {both.plans.shared}; {only}.")


@runs_app.command()
def rename(
    run: Run,
    name: Annotated[str, typer.Argument(help="new name; empty restores that of its file")],
    as_json: AsJson = False,
) -> None:
    """Show a run by another name; its path stays."""
    from slim.runs import lineage
    from slim.runs import manage as runs

    found = lineage.read_lineage()
    _say(runs.rename(found, runs.find_run(found, run), name).key, as_json)


@runs_app.command()
def tag(
    run: Run,
    tags: Annotated[list[str], typer.Argument(help="tags")],
    remove: Annotated[bool, typer.Option("--remove", help="remove the tags")] = False,
    as_json: AsJson = False,
) -> None:
    """Add tags to a run, or remove them."""
    from slim.runs import lineage
    from slim.runs import manage as runs

    node = runs.find_run(lineage.read_lineage(), run)
    _say((runs.untag if remove else runs.tag)(node, *tags).key, as_json)


@runs_app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="runs, each as `slim runs show` takes it")],
    with_dependents: Annotated[
        bool, typer.Option("--with-dependents", help="also delete all runs made from them")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """List the runs to be deleted and their dependents, and delete them with --yes."""
    from slim.runs import lineage
    from slim.runs import manage as runs

    found = lineage.read_lineage()
    chosen = list({node.key: node for node in (runs.find_run(found, name) for name in names)}.values())
    after = runs.dependents(found, chosen)
    if with_dependents:
        chosen, after = [*chosen, *after], []
    if yes:
        runs.delete(chosen)
    if as_json:
        told = {"runs": [_told(node) for node in chosen], "left_without": [_told(node) for node in after]}
        print_json(told | {"deleted": yes})
        return
    for node in chosen:
        word = "Deleted" if yes else "Would be deleted"
        out.print(Text(f"{word}: {node.stage} {node.path} ({format_bytes(node.bytes)})"), soft_wrap=True)
    for node in after:
        out.print(Text(f"Depends on it and stays: {node.stage} {node.path}"), style="yellow", soft_wrap=True)
    if not yes:
        out.print("Nothing was deleted. Add --yes to delete it" + (", --with-dependents for all." if after else "."))


@runs_app.command()
def export(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="runs, each as `slim runs show` takes it")],
    output: Annotated[Path, typer.Option(help="new file, for instance small.slim.zip")],
    with_lineage: Annotated[
        bool, typer.Option("--with-lineage", help="also export all runs that they were made from")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write runs as one file for another machine."""
    from slim.runs import archive, lineage
    from slim.runs import manage as runs

    found = lineage.read_lineage()
    chosen = [runs.find_run(found, name) for name in names]
    if with_lineage:
        chosen = [other for node in chosen for other in archive.with_ancestors(found, node)]
    chosen = list({node.key: node for node in chosen}.values())
    with terminal() as reporter:
        archive.export_runs(found, chosen, output, reporter)
    size = output.stat().st_size
    if as_json:
        print_json({"path": str(output), "bytes": size, "runs": [_told(node) for node in chosen]})
        return
    for node in chosen:
        out.print(Text(f"{node.stage}: {node.name}"), soft_wrap=True)
    out.print(Text(f"File: {output} ({format_bytes(size)})"), soft_wrap=True)


@runs_app.command("import")
def import_runs(
    file: Annotated[Path, typer.Argument(help="a file that `slim runs export` wrote")], as_json: AsJson = False
) -> None:
    """Import the runs of such a file into the workspace, after all of it was validated."""
    from slim.runs import archive, lineage

    with terminal() as reporter:
        keys = [entry.key for entry in archive.import_runs(file, reporter=reporter)]
    found = lineage.read_lineage()
    if as_json:
        print_json({"runs": [_told(found.nodes[key]) for key in keys]})
        return
    for key in keys:
        out.print(Text(f"{found.nodes[key].stage}: {found.nodes[key].path}"), soft_wrap=True)


@runs_app.command()
def clean(
    what: Annotated[
        list[str] | None, typer.Argument(help="kinds of leftovers (default: those that are safe to remove)")
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Show the disk use and the leftovers, and remove leftovers with --yes."""
    from slim.runs import disk_use, lineage

    wanted = what or list(disk_use.SAFE)
    if strange := [one for one in wanted if one not in disk_use.LEFT]:
        raise InputError(
            f"what={strange[0]!r}: there is no such kind of leftover; choose from {', '.join(disk_use.LEFT)}."
        )
    kinds: list[disk_use.Left] = [one for one in disk_use.LEFT if one in wanted]
    found = lineage.read_lineage()
    used, left = disk_use.use(found), disk_use.leftovers(found)
    freed = disk_use.clean(kinds, found) if yes else 0
    if as_json:
        told = [{"what": one.what, "path": str(one.path), "bytes": one.bytes} for one in left]
        print_json({"use": used, "leftovers": told, "chosen": kinds, "cleaned": yes, "freed": freed})
        return
    table = Table("on disk", "size")
    for name, size in used.items():
        table.add_row(Text(name), format_bytes(size))
    out.print(table)
    table = Table("leftovers", "number", "size", "meaning", "chosen")
    for name in disk_use.LEFT:
        here = [one for one in left if one.what == name]
        if here:
            size = format_bytes(sum(one.bytes for one in here))
            table.add_row(name, str(len(here)), size, disk_use.MEANING[name], "yes" if name in kinds else "")
    out.print(table if table.row_count else "There are no leftovers.")
    if yes:
        out.print(f"Freed: {format_bytes(freed)}.")
    else:
        out.print("Nothing was removed. Name the kinds to remove, and add --yes.")


def _say(key: str, as_json: bool) -> None:
    """Print the current state of a run."""
    from slim.runs import lineage

    node = lineage.read_lineage().nodes[key]
    if as_json:
        print_json(_told(node))
        return
    tags = f", tags {', '.join(node.tags)}" if node.tags else ""
    out.print(Text(f"{node.stage} {node.path} is called {node.name}{tags}."), soft_wrap=True)


def _told(node: "Node") -> dict[str, Any]:
    """A run as JSON values."""
    return {
        "key": node.key,
        "kind": node.kind or "model",
        "stage": node.stage,
        "name": node.name,
        "path": None if node.path is None else str(node.path),
        "tags": list(node.tags),
        "created": node.created,
        "bytes": node.bytes,
        "figures": dict(node.figures),
        "parents": list(node.parents),
        "notes": list(node.notes),
    }
