"""Whatever lies in the workspace's SQLite stores: the value that was kept, or none."""

import json
import pickle
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slim.core.cache import RowCache, open_cache
from slim.jobs.store import Job, JobStore
from tests.fuzz import LEAVES, ODD, clean, damaged, edited

ROW = torch.arange(5)
ARRAYS = {"tokens": np.arange(4), "kl": np.linspace(0, 1, 6).reshape(2, 3)}
PACKED = st.one_of(ODD, edited({"a": [1, {"b": None}]})).map(lambda value: zlib.compress(json.dumps(value).encode()))
CELLS = st.one_of(
    PACKED,
    PACKED.flatmap(damaged),
    st.sampled_from(
        [None, 0, 1.5, "text", "{}", b"", pickle.dumps([1]), zlib.compress(b"[" * 100_000), zlib.compress(b"\xff")]
    ),
)
MODES = st.sampled_from([0, 1, 2, 3, 4, 5, None])
"""Ways in which diskcache marks how a value is stored; 4 is a pickle."""


def put(store: Path, value: Any, mode: int | None) -> None:
    """Another content for every value of a store, as somebody with an editor would do it."""
    with sqlite3.connect(store / "cache.db") as base:
        base.execute("UPDATE Cache SET value = ?, mode = ?, filename = NULL", (value, mode))
    base.close()


@pytest.fixture(scope="module", autouse=True)
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One for all cases: a store takes a while to make."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def at_home(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIM_HOME", str(workspace))
    return workspace


def test_results(at_home: Path) -> None:
    """Rows that were computed: what is damaged is computed again."""

    @given(CELLS, MODES)
    def every(value: Any, mode: int | None) -> None:
        with open_cache() as cache:
            held = RowCache(cache, kind="test")
            held.put(ROW, 1, ARRAYS)
            assert held.get(ROW, 1) is not None
            put(at_home / "results", value, mode)
            found = held.get(ROW, 1)
            assert found is None or all(isinstance(array, np.ndarray) for array in found.values())

    every()


@given(st.one_of(st.text(max_size=40), LEAVES, st.binary(max_size=60)))
def test_kept_arrays_of_any_text(value: Any) -> None:
    """A value that the store gives but that Slim did not write as an array."""
    held = RowCache(dict.fromkeys([RowCache(None, a=1)._key(ROW, 0)], value), a=1)  # type: ignore[arg-type]
    found = held.get(ROW, 0)
    assert found is None or isinstance(found, dict)


GOOD = {"id": "a", "kind": "calibrate", "arguments": {"model": "x"}, "created": 1.0, "state": "queued"}


def test_jobs(at_home: Path) -> None:
    """A job that cannot be read is left out; the others are there."""
    with JobStore() as store:
        store.put(Job.model_validate(GOOD))

    @given(st.one_of(edited(GOOD).map(lambda value: zlib.compress(json.dumps(value).encode())), CELLS), MODES)
    def every(value: Any, mode: int | None) -> None:
        put(at_home / "jobs" / "store", value, mode)
        with JobStore() as store:
            found: Callable[[], list[Job]] = store.all
            assert all(isinstance(job, Job) for job in clean(found) or [])
            assert store.get("a") is None or isinstance(store.get("a"), Job)

    every()
