"""Uploaded files in the workspace."""

from pathlib import Path

import pytest

from slim.core.errors import SlimError
from slim.data import uploads


def test_an_upload_keeps_its_name_and_its_content(own_workspace: Path) -> None:
    """The same file twice is one; another one of that name is another."""
    first = uploads.keep_upload("My rows.CSV", b"question,answer\n")
    assert first.parent == own_workspace / "uploads"
    assert first.name.startswith("My-rows-")
    assert first.suffix == ".csv"
    assert first.read_bytes() == b"question,answer\n"
    assert uploads.keep_upload("My rows.CSV", b"question,answer\n") == first
    other = uploads.keep_upload("My rows.CSV", memoryview(b"other"))
    assert other.read_bytes() == b"other"
    assert set(uploads.kept_uploads()) == {first, other}


@pytest.mark.parametrize("name", ["../../rows.csv", "/etc/rows.csv", "...csv", "ä b.csv", ".csv"])
def test_an_upload_stays_in_its_folder(own_workspace: Path, name: str) -> None:
    """Whatever its name says."""
    path = uploads.keep_upload(name, b"x")
    assert path.resolve().parent == (own_workspace / "uploads").resolve()
    assert path in uploads.kept_uploads()
    assert "etc" not in path.name


def test_a_full_disk_leaves_no_half_of_an_upload(own_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and nothing is listed."""

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SlimError, match="no space left"):
        uploads.keep_upload("rows.csv", b"x")
    assert uploads.kept_uploads() == []
