"""Many people on one dashboard while a job runs, as benchmarks/sessions.py times them."""

from pathlib import Path

import pytest

from benchmarks.sessions import OWN, PATH, furnish, sessions
from tests.browser_setup import served


@pytest.mark.parametrize("people", [3, pytest.param(20, marks=pytest.mark.release)])
def test_many_people_at_once(people: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No page fails, each shows what its own session chose and keeps what it set, and the job runs on."""
    monkeypatch.setenv("SLIM_HOME", str(tmp_path))
    furnish(tmp_path, people)
    pages = PATH.index("explore", 1) + 2
    with served(tmp_path) as address:
        found = sessions(tmp_path, address, people, pages, pause=0.5)
    assert [problem for person in found for problem in person.problems] == []
    assert {len(person.seconds) for person in found} == {pages}
    assert set(OWN) <= set(PATH[:pages])
