"""The page of the library: its code is what it shows, ten lines at most, and runs in an empty workspace."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slim.models import bundled
from tests import ROOT

pytestmark = pytest.mark.integration
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
LINES = 10


@pytest.fixture(scope="module")
def code() -> str:
    """The only block of Python on the page."""
    (found,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return found


def test_the_pipeline_is_ten_lines(code: str) -> None:
    """Blank ones are not counted."""
    assert len([line for line in code.splitlines() if line.strip()]) <= LINES


def test_the_page_runs_as_it_stands(code: str, shared_workspace: Path, tmp_path: Path) -> None:
    """In a process of its own, whose workspace has no runs: one of each stage, a file for llama.cpp, three figures."""
    bundled.bundled_model()
    shutil.copytree(shared_workspace / "models", tmp_path / "workspace" / "models", copy_function=os.link)
    env = os.environ | {"SLIM_HOME": str(tmp_path / "workspace"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    forecast, winner, exported = done.stdout.splitlines()
    assert "nats/token" in forecast
    assert winner in ("original_model", "pruned_model", "tie")
    assert (tmp_path / exported).read_bytes()[:4] == b"GGUF"
    for stage in ("calibrations", "plans", "checkpoints", "evaluations", "judgements"):
        assert len([run for run in (tmp_path / "workspace" / stage).iterdir() if not run.name.startswith(".")]) == 1


def test_the_readme_leads_to_the_page() -> None:
    """And the page names every function that `import slim` gives."""
    import slim

    assert "(docs/library.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"slim.{name}" in PAGE for name in slim.__all__)
