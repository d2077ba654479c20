"""Twenty people on one dashboard while a job runs, as benchmarks/sessions.py times them."""

from pathlib import Path

import pytest

from benchmarks.sessions import OWN, PATH, furnish, sessions
from tests.browser_setup import served

PEOPLE = 20


def test_many_people_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No page fails, each shows what its own session chose and keeps what it set, and the job runs on."""
    monkeypatch.setenv("SLIM_HOME", str(tmp_path))
    furnish(tmp_path, PEOPLE)
    pages = PATH.index("explore", 1) + 2
    with served(tmp_path) as address:
        found = sessions(tmp_path, address, PEOPLE, pages, pause=0.5)
    assert [problem for person in found for problem in person.problems] == []
    assert {len(person.seconds) for person in found} == {pages}
    assert set(OWN) <= set(PATH[:pages])
