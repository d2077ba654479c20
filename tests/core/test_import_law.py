"""The law of imports: a package imports itself and the packages before it, and no module stands in for another."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx
import pytest

from tests import ROOT

FLOORS = (
    {"core"},
    {"data"},
    {"models"},
    {"targets"},
    {"calibration"},
    {"planning"},
    {"pruning"},
    {"evaluation", "serving"},
    {"recovery", "judging"},
    {"jobs"},
    {"runs"},
    {"cli", "pages"},
    {"api", "judge", "__main__"},
)
"""Packages of slim/, with pages/ beside the command line and what users start or import above all.

Packages of one floor do not import each other, but for the last, which is one package of several modules.
"""
TOP = len(FLOORS) - 1
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
NAMES_OF_OTHERS = {"slim", "slim.jobs"}
"""Packages whose __init__ gives users the names of its modules."""


@dataclass(frozen=True)
class Import:
    """One module that a module imports, anywhere in its text: at the top, in a function or for types alone."""

    file: Path
    line: int
    importer: str
    imported: str

    def breaks(self, law: str) -> str:
        """The sentence of a failure."""
        return f"{self.file}:{self.line}: imports {self.imported}; {law}"


def modules_of(root: Path) -> dict[str, Path]:
    """The files of slim/, pages/ and app.py below `root`, by the dotted names of their modules."""
    files = [*root.glob("slim/**/*.py"), *root.glob("pages/**/*.py"), *root.glob("app.py")]
    named = ((file.relative_to(root).with_suffix("").parts, file) for file in files)
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): file for parts, file in sorted(named)}


def package_of(module: str) -> str | None:
    """The name in FLOORS of a module's package; None of slim/__init__.py, which any module may ask for its version."""
    first, *rest = module.split(".")
    if first == "slim":
        return rest[0] if rest else None
    return "pages"


def imports_of(root: Path) -> Iterator[Import]:
    """Every import in `modules_of(root)`: of modules there by their full names, of others by the name written."""
    modules = modules_of(root)
    for importer, file in modules.items():
        place = file.relative_to(root)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                around = importer.split(".")
                around = around[: len(around) - node.level + (file.name == "__init__.py")] if node.level else []
                base = ".".join([*around, *([node.module] if node.module else [])])
                full = [f"{base}.{alias.name}" for alias in node.names]
                names = [name if name in modules else base for name in full]
            else:
                continue
            yield from (Import(place, node.lineno, importer, name) for name in dict.fromkeys(names))


def upward(root: Path) -> list[str]:
    """Imports of a package by one that stands before it, or beside it."""
    found = []
    for one in imports_of(root):
        if one.imported.split(".")[0] not in ("slim", "pages"):
            continue
        own, other = package_of(one.importer), package_of(one.imported)
        if own is None or other is None or own == other:
            continue
        if FLOOR[other] < FLOOR[own] or FLOOR[other] == FLOOR[own] == TOP:
            continue
        before = ", ".join(sorted(set[str]().union(*FLOORS[: FLOOR[own]]))) or "nothing"
        found.append(one.breaks(f"{own} may import itself and what stands before it: {before}."))
    return found


def circles(root: Path) -> list[str]:
    """Modules of one package that import each other in a circle."""
    graph, modules = networkx.DiGraph(), modules_of(root)
    for one in imports_of(root):
        if one.imported in modules and package_of(one.importer) == package_of(one.imported):
            graph.add_edge(one.importer, one.imported, line=one)
    found = []
    for together in networkx.strongly_connected_components(graph):
        inside = graph.subgraph(together)
        if not inside.size():
            continue
        one: Import = min((line for _, _, line in inside.edges.data("line")), key=lambda line: str(line.file))
        way = networkx.shortest_path(inside, one.imported, one.importer)
        then = "".join(f", which imports {module}" for module in way[1:])
        found.append(one.breaks(f"no modules of a package import each other in a circle: this one{then}."))
    return found


def foreign(root: Path) -> list[str]:
    """Imports that slim/ and pages/ must do without."""
    law = {
        "slim": (
            {"streamlit", "pages", "app", "tests", "benchmarks"},
            "slim/ works without a dashboard and its tests.",
        ),
        "pages": ({"app", "tests", "benchmarks"}, "pages/ show slim/ and need nothing else of this repository."),
        "app": ({"tests", "benchmarks"}, "app.py shows pages/ and needs nothing else of this repository."),
    }
    found = []
    for one in imports_of(root):
        banned, reason = law[one.importer.split(".")[0]]
        if one.imported.split(".")[0] in banned:
            found.append(one.breaks(reason))
    return found


def re_exports(root: Path) -> list[str]:
    """Modules that do nothing but import the names of others."""
    found = []
    for module, file in modules_of(root).items():
        if module in NAMES_OF_OTHERS:
            continue
        body = ast.parse(file.read_text(encoding="utf-8")).body
        imports = [statement for statement in body if isinstance(statement, ast.Import | ast.ImportFrom)]
        if imports and all(_only_names(statement) for statement in body):
            found.append(
                f"{file.relative_to(root)}:{imports[0].lineno}: {ast.unparse(imports[0])}; "
                "a module holds something of its own: import these names from where they are."
            )
    return found


def _only_names(statement: ast.stmt) -> bool:
    """Whether a statement is an import, imports for types alone, a docstring or `__all__`."""
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant()) | ast.Assign([ast.Name("__all__")]):
            return True
        case ast.If(ast.Name("TYPE_CHECKING"), body, []):
            return all(map(_only_names, body))
    return False


LAWS = (upward, circles, foreign, re_exports)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_repository_keeps_the_law(law: Callable[[Path], list[str]]) -> None:
    """A failure names the file, the line, the import and the law that it breaks."""
    assert not (broken := law(ROOT)), "\n" + "\n".join(broken)


def test_every_package_has_its_floor() -> None:
    """A new one is given its place in FLOORS, and one that is gone leaves it."""
    there = {package for module in modules_of(ROOT) if (package := package_of(module))}
    assert there == FLOOR.keys()


@pytest.fixture
def made_up(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Adds files to a folder that keeps the law, and returns it."""

    def write(files: dict[str, str]) -> Path:
        sound = {
            "slim/__init__.py": "def __getattr__(name):\n    from slim import api\n    return getattr(api, name)\n",
            "slim/__main__.py": "import slim.judge\nx = 1\n",
            "slim/api.py": "from slim.jobs.queue import start\nstart()\n",
            "slim/judge.py": "import slim.__main__\nx = 1\n",
            "slim/core/__init__.py": "",
            "slim/core/errors.py": "import slim\nfrom . import paths\nx = slim\n",
            "slim/core/paths.py": "import json\nx = 1\n",
            "slim/jobs/__init__.py": "from slim.jobs.queue import start\n__all__ = ['start']\n",
            "slim/jobs/queue.py": "from ..core import errors\nfrom slim import core\ndef start(): ...\n",
            "app.py": "import streamlit\nfrom pages import home\nx = 1\n",
            "pages/home.py": "import streamlit\nfrom slim import jobs\nx = 1\n",
        }
        for name, text in (sound | files).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return write


def broken(root: Path) -> list[str]:
    """The failures by every law."""
    return [failure for law in LAWS for failure in law(root)]


def test_a_sound_tree_breaks_no_law(made_up: Callable[[dict[str, str]], Path]) -> None:
    """Downward, within a package, of the version, and of libraries: all of it is allowed."""
    assert broken(made_up({})) == []


@pytest.mark.parametrize(
    ("file", "text", "failure"),
    [
        (
            "slim/core/text.py",
            "x = 1\nfrom slim.jobs import queue\n",
            "slim/core/text.py:2: imports slim.jobs.queue; core",
        ),
        (
            "slim/core/text.py",
            "from slim import jobs\nx = 1\n",
            "slim/core/text.py:1: imports slim.jobs; core may import",
        ),
        (
            "slim/core/text.py",
            "from ..jobs import queue\nx = 1\n",
            "slim/core/text.py:1: imports slim.jobs.queue; core",
        ),
        (
            "slim/core/text.py",
            "def f():\n    import slim.jobs.queue\n",
            "slim/core/text.py:2: imports slim.jobs.queue;",
        ),
        (
            "slim/jobs/text.py",
            "import slim.api\nx = 1\n",
            "slim/jobs/text.py:1: imports slim.api; jobs may import itself",
        ),
        (
            "slim/serving/a.py",
            "import slim.evaluation.b\nx = 1\n",
            "slim/serving/a.py:1: imports slim.evaluation.b; serving",
        ),
        (
            "pages/data.py",
            "import slim.cli.shared\nx = 1\n",
            "pages/data.py:1: imports slim.cli.shared; pages may import",
        ),
        (
            "slim/jobs/text.py",
            "import streamlit as st\nx = st\n",
            "slim/jobs/text.py:1: imports streamlit; slim/ works",
        ),
        ("slim/jobs/text.py", "from tests import ROOT\nx = ROOT\n", "slim/jobs/text.py:1: imports tests; slim/ works"),
        ("pages/data.py", "from tests import ROOT\nx = ROOT\n", "pages/data.py:1: imports tests; pages/ show slim/"),
        ("app.py", "import benchmarks.speed\nx = 1\n", "app.py:1: imports benchmarks.speed; app.py shows pages/"),
        (
            "slim/jobs/text.py",
            "from slim.core.paths import x\n",
            "slim/jobs/text.py:1: from slim.core.paths import x; a module",
        ),
        (
            "slim/jobs/text.py",
            "from slim.core.paths import x\nif TYPE_CHECKING:\n    import json\n__all__ = ['x']\n",
            "slim/jobs/text.py:1: from slim.core.paths import x; a module holds something of its own",
        ),
        (
            "slim/core/paths.py",
            "def f():\n    from slim.core import errors\n",
            "slim/core/errors.py:2: imports slim.core.paths; no modules of a package import each other in a circle: "
            "this one, which imports slim.core.errors.",
        ),
    ],
)
def test_a_broken_law_is_named(made_up: Callable[[dict[str, str]], Path], file: str, text: str, failure: str) -> None:
    """By file, line and import, wherever in a module it stands and however it is written."""
    failures = broken(made_up({file: text}))
    assert failures, file
    assert all(found.startswith(f"{file}:") or "circle" in found for found in failures)
    assert any(found.startswith(failure) for found in failures), failures
