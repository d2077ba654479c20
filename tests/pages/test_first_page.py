"""The first page of a fresh server: no page waits for the libraries that compute where it only reads records."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pages.views.frame import PAGES
from tests import APP, ROOT
from tests.pipeline import Pipeline

SCRIPT = """
import json, sys, threading
from importlib.machinery import ModuleSpec
from streamlit.testing.v1 import AppTest

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            if threading.current_thread().name == "libraries":
                return ModuleSpec(name, self)
            waited.append(name)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        threading.Event().wait()  # as if it took for ever

found = {}
sys.meta_path.insert(0, Torch())
for name in sys.argv[2:]:
    waited = []
    page = AppTest.from_file(sys.argv[1], default_timeout=120).switch_page(f"pages/{name}.py").run()
    problems = [str(element.value) for element in (*page.exception, *page.error)]
    found[name] = [waited, problems, *(element.value for element in (*page.title, *page.caption))]
print(json.dumps(found), flush=True)
"""
"""Visits pages in a process that never gets torch, and prints of each who waited for it, its errors and its words."""


def visited(home: Path) -> dict[str, list[str]]:
    """Return the words of each page on a workspace, none of which waited for torch or showed an error."""
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(APP), *PAGES],
        cwd=ROOT,
        env=os.environ | {"SLIM_HOME": str(home), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    words = {}
    for page, (waited, problems, *said) in json.loads(ran.stdout.splitlines()[-1]).items():
        assert (page, waited, problems) == (page, [], [])
        words[page] = said
    return words


def test_no_page_of_an_empty_workspace_waits_for_torch(own_workspace: Path) -> None:
    """Each is there with its title."""
    said = visited(own_workspace)
    assert {page: said[page][0].lower() for page in PAGES if page != "home"} == {
        page: page for page in PAGES if page != "home"
    }


def test_no_page_waits_for_torch_to_show_records(made: Pipeline) -> None:
    """Pages that compute load torch later, and say so."""
    said = visited(made.calibration.parent.parent)
    waiting = {page for page in PAGES if any(words.startswith("Loading the libraries") for words in said[page])}
    assert waiting == {"calibrate", "recover", "compare"}
