"""A few short jobs through the queue, as benchmarks/soak.py puts hundreds."""

from pathlib import Path

import pytest

from benchmarks.soak import soak


@pytest.mark.parametrize("count", [3, pytest.param(12, marks=pytest.mark.release)])
def test_nothing_is_left_behind_by_jobs(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, no open file, no growing memory, in the one that starts them and in the runner."""
    monkeypatch.setenv("SLIM_HOME", str(tmp_path))
    found = soak(count, tmp_path)
    assert found.problems() == []
    assert found.jobs == count
    assert found.peak > found.runner[1].memory
