"""The durable list of jobs: one JSON value each in a diskcache (SQLite in WAL mode) inside the workspace."""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from diskcache import Cache, Timeout
from pydantic import ValidationError

from slim.core import workspace
from slim.core.errors import SlimError
from slim.core.json_disk import JsonDisk
from slim.jobs.job import UNFINISHED, Job, State

BALLAST = 2**20
"""Bytes that are freed when the disk is full, so that a job's end can still be written."""
LARGEST = 2**26
"""Bytes up to which a job is stored inside the database."""
TRIES, PAUSE = 10, 0.1
FAULTS = (sqlite3.OperationalError, OSError, Timeout)
"""Errors of a write to a disk that is full or gone."""


class StoreFull(SlimError):
    """Raised where the list cannot be written. It can still be read."""


class JobStore:
    """Reads and writes jobs; safe to use from many processes. A `read_only` one leaves the workspace as it is.

    On a full disk writing first frees the reserved space, then raises StoreFull; reading goes on.
    """

    def __init__(self, read_only: bool = False) -> None:
        self.folder = workspace.place() / "jobs" if read_only else workspace.subfolder("jobs")
        self._file, self._ballast = self.folder / "store" / "cache.db", self.folder / "ballast"
        self._cache: Cache | None = None
        if read_only:
            return
        with suppress(*FAULTS):
            self._cache = self._open()
            self._take_ballast()

    def __enter__(self) -> "JobStore":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._cache is not None:
            self._cache.close()

    def get(self, job_id: str) -> Job | None:
        return _job(self._plain().get(job_id) if self._cache is None else self._cache.get(job_id))

    def put(self, job: Job) -> Job:
        self._write(lambda cache: cache.set(job.id, job.model_dump(mode="json")))
        self._flush()
        return job

    def update(
        self, job_id: str, only_if: tuple[State, ...] = UNFINISHED, *, dear: bool = True, **changes: Any
    ) -> Job | None:
        """Change fields of a job that is in one of the states `only_if`, and return the job.

        A change that is not `dear` does not use the reserved space. An end is on the disk when this returns, so that it
        survives a loss of power.
        """

        def write(cache: Cache) -> Job | None:
            with cache.transact(retry=True):
                job = _job(cache.get(job_id))
                if job is not None and job.state in only_if:
                    job = job.model_copy(update=changes)
                    cache.set(job.id, job.model_dump(mode="json"))
                return job

        job = self._write(write, dear)
        if changes.get("state", "running") not in UNFINISHED:
            self._flush()
        return job

    def delete(self, job_id: str) -> None:
        self._write(lambda cache: cache.delete(job_id))

    def all(self) -> list[Job]:
        """Every job, newest first."""
        cache = self._cache
        values = self._plain().values() if cache is None else [cache.get(key) for key in cache]
        found = [job for value in values if (job := _job(value)) is not None]
        return sorted(found, key=lambda job: job.created, reverse=True)

    def _open(self) -> Cache:
        return Cache(
            str(self._file.parent), disk=JsonDisk, eviction_policy="none", disk_min_file_size=LARGEST, size_limit=2**40
        )

    def _write(self, action: Callable[[Cache], Any], dear: bool = True) -> Any:
        for left in reversed(range(TRIES if dear else 1)):
            try:
                self._cache = self._open() if self._cache is None else self._cache  # an empty one is false
                return action(self._cache)
            except FAULTS as error:
                if not left:
                    raise StoreFull(
                        f"jobs={str(self.folder)!r}: they cannot be written ({error}); free some space on that disk."
                    ) from error
                self._ballast.unlink(missing_ok=True)
                time.sleep(PAUSE)
        return None

    def _take_ballast(self) -> None:
        with suppress(OSError):
            if not self._ballast.exists():
                with self._ballast.open("xb") as file:
                    try:
                        file.write(
                            os.urandom(BALLAST)
                        )  # random, so that a file system can neither skip nor compress it
                        file.flush()
                    except OSError:
                        self._ballast.unlink(missing_ok=True)

    def _flush(self) -> None:
        """Sync the database to the disk."""
        log = self._file.with_name("cache.db-wal")
        with suppress(OSError):
            descriptor = os.open(log if log.exists() else self._file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _plain(self) -> dict[str, Any]:
        """The keys and values, read without writing anything.

        SQLite makes a small file to read while other processes write; where it cannot, no process can write.
        """
        for way in ("mode=ro", "immutable=1"):
            with (
                suppress(sqlite3.Error),
                closing(sqlite3.connect(f"{self._file.as_uri()}?{way}", uri=True)) as database,
            ):
                disk = JsonDisk(str(self._file.parent))
                rows = database.execute("SELECT key, raw, mode, filename, value FROM Cache").fetchall()
                return {
                    str(disk.get(key, raw)): disk.fetch(mode, name, value, False)
                    for key, raw, mode, name, value in rows
                }
        return {}


def _job(value: Any) -> Job | None:
    try:
        return None if value is None else Job.model_validate(value)
    except ValidationError:  # written by another version
        return None
