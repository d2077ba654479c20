"""Verbs for the workspace's jobs: list, show, log, cancel, again, move, delete."""

import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from slim.cli.shared import AsJson, cli, out, print_json
from slim.core.errors import InputError

verbs = typer.Typer(help="The workspace's jobs: those of the dashboard and those of commands.")
cli.add_typer(verbs, name="jobs")
JobId = Annotated[str, typer.Argument(metavar="JOB", help="id of the job, or the start of it")]


@verbs.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show_all()


@verbs.command(name="list")
def show_all(as_json: AsJson = False) -> None:
    """List all jobs: those that run, those that wait in their order, those that are over."""
    from slim import jobs

    found = jobs.in_order(jobs.jobs())
    if as_json:
        print_json({"jobs": [_as_json(job) for job in found]})
        return
    table = Table("job", "kind", "device", "state", "progress", "peak, MB", "from")
    table.columns[0].no_wrap = True
    for job in found:
        table.add_row(job.id[:8], job.kind, job.device, *_standing(job), job.origin)
    out.print(table)


@verbs.command()
def show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job with its arguments and its state."""
    found = _found(job)
    if as_json:
        print_json(_as_json(found))
        return
    state, progress, peak = _standing(found)
    table = Table("", found.id, show_header=True)
    for name, value in (
        ("kind", found.kind),
        ("device", found.device),
        ("state", state),
        ("progress", progress),
        ("peak memory, MB", peak),
        ("from", found.origin),
        ("repeats", found.repeats),
        ("begun", _moment(found.started)),
        ("ended", _moment(found.ended)),
        ("result", found.result),
        ("error", found.error),
        *((f"  {name}", value) for name, value in found.arguments.items()),
    ):
        if value not in (None, ""):
            table.add_row(name, escape(str(value)))
    out.print(table)


@verbs.command()
def log(job: JobId) -> None:
    """Print the log of a job's process."""
    from slim import jobs

    out.print(jobs.log_of(_found(job).id, most=10**9), markup=False, highlight=False, soft_wrap=True, end="")


@verbs.command()
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Stop a job: asked first, killed after two seconds. One that waits leaves the queue."""
    from slim import jobs

    found = _found(job)
    if not found.unfinished:
        raise InputError(f"job={found.id!r}: it is {found.state}; cancel a job that waits or runs.")
    after = jobs.cancel(found.id) or found
    if as_json:
        print_json(_as_json(after))
        return
    out.print(
        f"Job {after.id} is {after.state}." + (f" {jobs.what_is_kept(after)}" if after.state == "cancelled" else "")
    )


@verbs.command()
def again(job: JobId, as_json: AsJson = False) -> None:
    """Queue a job that is over again: it resumes where its stage can."""
    from slim import jobs

    before = _found(job)
    new = jobs.again(before.id, origin="command line")
    if as_json:
        print_json(_as_json(new))
        return
    out.print(
        f"Job {new.id} waits for {new.device}." + ("" if before.state == "done" else f" {jobs.what_is_kept(before)}")
    )


@verbs.command()
def move(
    job: JobId,
    before: Annotated[
        str | None, typer.Option(help="job that comes after it (default: the first in the queue)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Move a job that waits before another, or to the front."""
    from slim import jobs

    moved = jobs.move(_found(job).id, _found(before).id if before else None)
    if as_json:
        print_json(_as_json(moved))
        return
    out.print(f"Job {moved.id} waits for {moved.device}, " + (f"before {before}." if before else "as the next."))


@verbs.command()
def delete(job: JobId, as_json: AsJson = False) -> None:
    """Delete a job that is over from the list, with its log. Its result stays."""
    from slim import jobs

    found = _found(job)
    if found.unfinished:
        raise InputError(f"job={found.id!r}: it is {found.state}; cancel it first, or wait for it.")
    jobs.forget(found.id)
    if as_json:
        print_json({"deleted": found.id})
        return
    out.print(f"Job {found.id} is off the list.")


def _found(start: str) -> Any:
    """The one job whose id starts with `start`. Raises InputError where no job or several jobs match."""
    from slim import jobs

    found = [job for job in jobs.jobs() if start and job.id.startswith(start)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"job={start!r}: it is not in the workspace; `slim jobs` lists all jobs.")
    named = ", ".join(sorted(job.id for job in found[:4]))
    raise InputError(f"job={start!r}: {len(found)} jobs match ({named} …); write more of the id.")


def _standing(job: Any) -> tuple[str, str, str]:
    """State, progress with the remaining time, and peak memory as text; empty where they are unknown."""
    now = time.time()
    state = "not answering" if job.silent(now) else job.state
    left = job.remaining(now) if job.state == "running" else None
    done = f"{job.fraction:.0%} {job.message}" + ("" if left is None else f", about {left:,.0f} s left")
    return (
        state,
        done if job.state in ("running", "cancelling") else "",
        "" if job.peak is None else f"{job.peak / 1e6:,.0f}",
    )


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _as_json(job: Any) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude={"curve"}) | {"fraction": job.fraction, "silent": job.silent()}
