"""Finished work is kept row by row: it is used again where it is the same question, and only there."""

import json
import pickle
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diskcache import Cache

from slim.calibration import passes
from slim.calibration.calibrate import measure
from slim.calibration.criteria import CRITERIA, kl_output
from slim.calibration.facts import CalibrationSettings
from slim.calibration.record import Calibration
from slim.core.cache import RowCache, open_cache
from slim.core.errors import Cancelled
from slim.core.reporter import SILENT, Reporter
from slim.data.batch_runner import stacked
from slim.data.tasks import Encoded
from slim.models.load import Loaded
from tests.pico import random_rows
from tests.reference import TASK

ROWS = random_rows((9, 12, 7, 10, 20, 5))


@pytest.fixture(scope="module")
def loaded(pico: Callable[..., Loaded]) -> Loaded:
    """A llama of two layers."""
    return pico("llama", layers=2)


@pytest.fixture
def cache() -> Iterator[Cache]:
    """That of the test's own workspace."""
    with open_cache() as kept:
        yield kept


def run(
    loaded: Loaded,
    cache: Cache | None,
    rows: tuple[torch.Tensor, ...] = ROWS,
    reporter: Reporter = SILENT,
    starts: tuple[int, ...] = (),
    **settings: Any,
) -> Calibration:
    """A calibration of ready rows, one at a time unless told otherwise, so that equal means equal to the last bit."""
    chosen = CalibrationSettings.model_validate({"batch_size": 1, "draws": 2} | settings)
    return measure(loaded, Encoded(rows, 0, starts), TASK, chosen, reporter, cache=cache)


def forwards(loaded: Loaded, work: Callable[[], Any]) -> int:
    """How often the model runs meanwhile."""
    count = 0

    def counted(*arguments: Any) -> None:
        nonlocal count
        count += 1

    handle = loaded.model.register_forward_pre_hook(counted)
    try:
        work()
    finally:
        handle.remove()
    return count


def assert_same(one: Calibration, other: Calibration, rtol: float = 0) -> None:
    """Every array, and every fact but when it was, how long it took and how much was known."""
    left, right = (c.facts.model_dump(exclude={"started", "seconds", "reused"}) for c in (one, other))
    assert left == right
    assert one.estimates.keys() == other.estimates.keys()
    for name, levels in one.estimates.items():
        for level, estimate in levels.items():
            for part in ("value", "low", "high"):
                found, expected = (getattr(e, part) for e in (estimate, other.estimates[name][level]))
                np.testing.assert_allclose(found, expected, rtol=rtol, err_msg=f"{name}.{level}.{part}")
    if one.sketch is None or other.sketch is None:
        assert one.sketch is other.sketch
        return
    np.testing.assert_array_equal(one.sketch.sequence, other.sketch.sequence)
    np.testing.assert_array_equal(one.sketch.tokens, other.sketch.tokens)
    np.testing.assert_allclose(one.sketch.scores, other.sketch.scores, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("kl", ["fisher", "exact", "none"])
def test_the_second_run_computes_nothing(loaded: Loaded, cache: Cache, kl: str) -> None:
    """Not one forward, everything known, and the same record, also after the cache was closed and opened again."""
    first = run(loaded, cache, kl=kl)
    assert first.facts.reused == 0
    again: list[Calibration] = []
    assert forwards(loaded, lambda: again.append(run(loaded, cache, kl=kl))) == 0
    cache.close()
    with open_cache() as reopened:
        assert forwards(loaded, lambda: again.append(run(loaded, reopened, kl=kl, batch_size=4))) == 0
    assert [calibration.facts.reused for calibration in again] == [1, 1]
    assert_same(again[0], first)
    assert_same(replace(again[1], facts=first.facts), first)
    assert_same(run(loaded, None, kl=kl), first)


class Stopped(Reporter):
    """Ends the work once the share `at` of it is done."""

    def __init__(self, at: float) -> None:
        self.at = at

    def progress(self, done: float, total: float, message: str) -> None:
        if done >= self.at * total:
            raise Cancelled("cancelled")


@pytest.mark.parametrize(("batch_size", "rtol"), [(1, 0), (2, 1e-5)])
@pytest.mark.parametrize(("kl", "at"), [("exact", 0.3), ("fisher", 0.2), ("fisher", 0.7)])
def test_a_stopped_run_goes_on_where_it_was(
    loaded: Loaded, cache: Cache, kl: str, at: float, batch_size: int, rtol: float
) -> None:
    """Finished work is not done again, and the record is that of a run that never stopped."""
    settings = {"kl": kl, "batch_size": batch_size}
    with pytest.raises(Cancelled):
        run(loaded, cache, reporter=Stopped(at), **settings)
    again: list[Calibration] = []
    left = forwards(loaded, lambda: again.append(run(loaded, cache, **settings)))
    whole: list[Calibration] = []
    every = forwards(loaded, lambda: whole.append(run(loaded, None, **settings)))
    assert 0 < left < every
    assert at - 0.15 * (batch_size - 1) <= again[0].facts.reused < 1
    assert_same(again[0], whole[0], rtol)
    assert forwards(loaded, lambda: run(loaded, cache, **settings)) == 0


def test_a_batch_that_fails_leaves_those_before_it(
    loaded: Loaded, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in the third of six forwards: two rows are known afterwards."""
    model, calls = loaded.model, 0

    def fails(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("something else")

    handle = model.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="something else"):
        run(loaded, cache, kl="none")
    handle.remove()
    assert forwards(loaded, lambda: run(loaded, cache, kl="none")) == 4


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "draws": {"draws": 3},
    "starts": {"starts": (2, 3, 4, 5, 6, 4)},
    "kl": {"kl": "exact"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_settings_are_another_question(loaded: Loaded, cache: Cache, change: dict[str, Any]) -> None:
    """After a run with the old ones, a run with the new ones gives what it gives without any cache."""
    old = run(loaded, cache)
    new = run(loaded, cache, **change)
    assert_same(new, run(loaded, None, **change))
    assert new.facts.reused < 1
    assert old.sketch is not None
    assert new.sketch is not None
    changed = old.metrics["kl_output"]["head"] != new.metrics["kl_output"]["head"]
    assert changed.all()


def test_another_model_or_number_format_is_another_question(
    pico: Callable[..., Loaded], loaded: Loaded, cache: Cache
) -> None:
    """The fingerprint of the weights, the config beside them, and the dtype they run in."""
    run(loaded, cache)
    rotated = pico("llama", layers=2, rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    assert rotated.facts.fingerprint == loaded.facts.fingerprint
    for other in (pico("llama", layers=2, seed=1), pico("llama", layers=2, dtype=torch.float32), rotated):
        found = run(other, cache)
        assert found.facts.reused == 0
        assert_same(found, run(other, None))


def test_newer_code_does_not_use_what_older_code_found(
    loaded: Loaded, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that goes up is a new question for its own pass and for no other."""
    run(loaded, cache)
    watched = forwards(loaded, lambda: run(loaded, None, kl="none"))
    monkeypatch.setitem(CRITERIA, "variance", replace(CRITERIA["variance"], version=2))
    assert forwards(loaded, lambda: run(loaded, cache)) == watched == len(ROWS)
    monkeypatch.setattr(passes, "VERSION", 2)
    assert forwards(loaded, lambda: run(loaded, cache)) == len(ROWS)
    monkeypatch.setattr(kl_output, "CRITERION", replace(kl_output.CRITERION, version=2))
    once = forwards(loaded, lambda: run(loaded, None))
    assert forwards(loaded, lambda: run(loaded, cache)) == once - len(ROWS), "it was watched and sketched before"
    assert forwards(loaded, lambda: run(loaded, cache)) == 0


def test_more_rows_compute_the_new_ones_only(loaded: Loaded, cache: Cache) -> None:
    """Four of six rows are known; each of the other two is watched and sketched, and one of them is ablated."""
    run(loaded, cache, ROWS[:4])
    found: list[Calibration] = []
    once = forwards(loaded, lambda: run(loaded, None, ROWS[4:]))
    assert forwards(loaded, lambda: found.append(run(loaded, cache))) == once
    assert_same(found[0], run(loaded, None))
    assert 0 < found[0].facts.reused < 1


def test_arrays_come_back_as_they_were(cache: Cache) -> None:
    """Numbers, shapes and types, also of views whose memory runs another way, and of single numbers."""
    whole = np.arange(24.0).reshape(2, 3, 4)
    arrays = {"turned": whole.transpose(2, 0, 1), "picked": whole[:, :, ::2], "one": np.array(7), "none": whole[:0]}
    arrays["small"] = whole.astype(np.float32)[0].T
    RowCache(cache, model="m").put(ROWS[0], 1, arrays)
    found = RowCache(cache, model="m").get(ROWS[0], 1)
    assert found is not None
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[name], array)


def test_rows_are_told_apart_by_their_tokens_and_starts() -> None:
    """The key holds every token, the start and the whole basis."""
    cache: Any = {}

    class Dictionary:
        def get(self, key: str) -> Any:
            return cache.get(key)

        def set(self, key: str, value: Any) -> None:
            cache[key] = value

    def kept(**basis: Any) -> RowCache:
        return RowCache(Dictionary(), **basis)  # type: ignore[arg-type]

    row, arrays = torch.tensor([5, 6, 7]), {"a": np.array([1.5, 2.5])}
    kept(model="m", draws=1).put(row, 1, arrays)
    found = kept(draws=1, model="m").get(row.clone(), 1)
    assert found is not None
    np.testing.assert_array_equal(found["a"], arrays["a"])
    for other in (torch.tensor([5, 6, 8]), torch.tensor([5, 6]), torch.tensor([7, 6, 5])):
        assert kept(model="m", draws=1).get(other, 1) is None
    assert kept(model="m", draws=1).get(row, 2) is None
    for basis in ({"model": "m", "draws": 2}, {"model": "n", "draws": 1}, {"model": "m"}):
        assert kept(**basis).get(row, 1) is None
    assert RowCache(None, model="m").get(row, 1) is None
    RowCache(None, model="m").put(row, 1, arrays)


def entries(workspace: Path) -> list[tuple[int, int, int, Any, str | None]]:
    """rowid, raw, mode, value and filename of everything in the cache, by SQLite alone."""
    with sqlite3.connect(workspace / "results" / "cache.db") as database:
        return database.execute("SELECT rowid, raw, mode, value, filename FROM Cache").fetchall()


def test_the_cache_is_json(loaded: Loaded, cache: Cache, own_workspace: Path) -> None:
    """Every value is JSON and none is a pickle, those in the database and those too large for it."""
    run(loaded, cache, kl="fisher")
    run(loaded, cache, kl="exact")
    RowCache(cache, model="large").put(ROWS[0], 1, {"noise": np.random.default_rng(0).random(20_000)})
    found = entries(own_workspace)
    assert len(found) == 6 + 6 + 3 + 3 + 1
    assert any(filename for *_, filename in found)
    for _, raw, mode, value, filename in found:
        assert raw == 1
        assert mode in (1, 2)  # raw bytes, or a file of bytes
        content = (own_workspace / "results" / filename).read_bytes() if filename else value
        assert isinstance(json.loads(zlib.decompress(content)), str)


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("as_file", [False, True])
def test_a_planted_pickle_is_not_loaded(
    loaded: Loaded, cache: Cache, own_workspace: Path, tmp_path: Path, as_file: bool
) -> None:
    """In place of every value: nothing of it runs, and the work is done anew."""
    first = run(loaded, cache)
    content = pickle.dumps(Planted(tmp_path / "planted"))
    (own_workspace / "results" / "planted.val").write_bytes(content)
    value, filename = (None, "planted.val") if as_file else (content, None)
    with sqlite3.connect(own_workspace / "results" / "cache.db") as database:
        database.execute("UPDATE Cache SET mode = 4, value = ?, filename = ?", (value, filename))
    again = run(loaded, cache)
    assert not (tmp_path / "planted").exists()
    assert again.facts.reused == 0
    assert_same(again, first)
    pickle.loads(content)  # noqa: S301  made above
    assert (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "content", [b"", b"no zlib", zlib.compress(b"{"), zlib.compress(b'"AAAA"'), zlib.compress(b"3")]
)
def test_damaged_entries_are_computed_anew(loaded: Loaded, cache: Cache, own_workspace: Path, content: bytes) -> None:
    """A value that cannot be read as JSON, or holds no arrays, counts as missing."""
    first = run(loaded, cache, kl="none")
    with sqlite3.connect(own_workspace / "results" / "cache.db") as database:
        database.execute("UPDATE Cache SET value = ?", (content,))
    again = run(loaded, cache, kl="none")
    assert again.facts.reused == 0
    assert_same(again, first)
    assert run(loaded, cache, kl="none").facts.reused == 1


def test_rows_of_different_widths_are_stacked() -> None:
    """The shorter ones are filled up with NaN at the end of the last axis."""
    rows = [{"a": np.ones((2, 3)), "b": np.array(1)}, {"a": np.zeros((2, 5)), "b": np.array(2)}]
    found = stacked(rows)
    assert found["a"].shape == (2, 2, 5)
    assert np.isnan(found["a"][0, :, 3:]).all()
    np.testing.assert_array_equal(found["a"][0, :, :3], 1)
    np.testing.assert_array_equal(found["a"][1], 0)
    assert found["b"].tolist() == [1, 2]
