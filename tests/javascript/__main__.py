"""The JavaScript, checked for its types and its format: `python -m tests.javascript`; with `--write` it is formatted.

TypeScript and Prettier are put into the environment on first use, as package-lock.json pins them.
"""

import shutil
import sys
from pathlib import Path

from tests import ROOT
from tests.javascript import node, npm

HERE = Path(__file__).parent
TOOLS = Path(sys.prefix) / "javascript"
STYLE = ("--no-config", "--print-width=120", "--log-level=warn")
SCRIPTS = "{pages,slim}/**/*.js"


def install() -> Path:
    """The folder of the installed packages, those of package-lock.json. Raises RuntimeError where npm fails."""
    asked, there, packages = HERE / "package-lock.json", TOOLS / "package-lock.json", TOOLS / "node_modules"
    complete = (packages / ".package-lock.json").exists()  # npm writes it last
    if complete and there.read_bytes() == asked.read_bytes():
        return packages
    TOOLS.mkdir(exist_ok=True)
    for file in (asked, HERE / "package.json"):
        shutil.copy(file, TOOLS)
    done = npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", cwd=TOOLS)
    if done.returncode:
        raise RuntimeError("npm could not install TypeScript and Prettier, and says above why; it needs a network once")
    return packages


def main() -> int:
    """0 where types and format are right, or the format was written; else 1."""
    packages = install()
    way = "--write" if "--write" in sys.argv else "--check"
    format_run = node(str(packages / "prettier/bin/prettier.cjs"), *STYLE, way, SCRIPTS, cwd=ROOT)
    types_run = node(str(packages / "typescript/bin/tsc"), "--project", str(HERE), cwd=ROOT)
    if format_run.returncode or types_run.returncode:
        return 1
    print("The JavaScript is typed and formatted.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(str(error))
