"""How long the commands take, and how much memory, beside those of an earlier commit.

`python -m benchmarks.beside df0f425` checks the earlier commit out beside this one and runs the same commands with both
in turn, each in a fresh process with a workspace of its own. It prints a Markdown table with the median of the ratios.
With `--only NAME` one command is measured, `--times N` sets how often. Nothing else should run meanwhile.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import machine, table

HERE = Path(__file__).resolve().parent.parent
START = "import sys; sys.argv[0] = 'slim'; from slim.cli import main; main()"
GIT = shutil.which("git") or "git"
SHORT = ["--max-new-tokens", "16"]
CALIBRATE = ["calibrate", "--dataset", "bundled:triage", "--samples", "32"]
COMMANDS: Mapping[str, list[str]] = {
    "slim --help": ["--help"],
    "calibrate": [*CALIBRATE, "--output", "{fresh}"],
    "plan --budget": ["plan", "{home}/cal", "--budget", "params=0.9", "--output", "{fresh}.json"],
    "prune --no-repair": ["prune", "{home}/plan.json", "--no-repair", "--output", "{fresh}"],
    "prune": ["prune", "{home}/plan.json", "--output", "{fresh}"],
    "prune --rounds 4": ["prune", "{home}/plan.json", "--rounds", "4", "--output", "{fresh}"],
    "finetune": ["finetune", "{home}/cut", "--steps", "6", "--rows", "64", "--restart", "--output", "{fresh}"],
    "evaluate": ["evaluate", "{home}/cut", "--samples", "16", *SHORT, "--output", "{fresh}"],
    "judge": [
        "judge",
        "--pruned",
        "{home}/cut",
        "--samples",
        "8",
        "--max-new-tokens",
        "16",
        "--output",
        "{fresh}.json",
    ],
    "export": ["export", "{home}/cut", "--format", "gguf", "--output", "{fresh}.gguf"],
}
READY: tuple[list[str], ...] = (
    [*CALIBRATE, "--output", "{home}/cal"],
    ["plan", "{home}/cal", "--budget", "heads=0.8", "--output", "{home}/plan.json"],
    ["prune", "{home}/plan.json", "--no-repair", "--output", "{home}/cut"],
)
"""Commands that prepare what the measured commands need."""


@dataclass(frozen=True)
class Build:
    """A checked-out commit with its workspace."""

    tree: Path
    home: Path

    def run(self, arguments: list[str]) -> tuple[float, float]:
        """Return the seconds of a command, and the most memory that its process held, in bytes."""
        fresh = Path(tempfile.mkdtemp(dir=self.home)) / "made"
        words = [word.format(home=self.home, fresh=fresh) for word in arguments]
        environment = os.environ | {"PYTHONPATH": str(self.tree), "SLIM_HOME": str(self.home / "cache")}
        shutil.rmtree(self.home / "cache" / "results", ignore_errors=True)  # or what is known already would be read
        with (fresh.parent / "log").open("w+b") as log:
            began = time.perf_counter()
            command = [sys.executable, "-P", "-c", START, *words]
            process = subprocess.Popen(command, cwd=self.home, env=environment, stdout=log, stderr=log)
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
            log.seek(0)
            said = log.read().decode(errors="replace")[-600:]
        shutil.rmtree(fresh.parent, ignore_errors=True)
        if status:
            raise RuntimeError(f"slim {' '.join(words)} of {self.tree} failed: {said}")
        return seconds, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def builds(commit: str) -> Iterator[tuple[Build, Build]]:
    """The earlier commit and this one, each with the bundled model unpacked and what the commands work on."""
    with tempfile.TemporaryDirectory(prefix="slim-beside-") as folder:
        tree = Path(folder) / "earlier"
        subprocess.run([GIT, "-C", str(HERE), "worktree", "add", "--detach", str(tree), commit], check=True)
        try:
            found = Build(tree, Path(folder) / "old"), Build(HERE, Path(folder) / "new")
            for build in found:
                build.home.mkdir()
                for arguments in READY:
                    build.run(arguments)
            yield found
        finally:
            subprocess.run([GIT, "-C", str(HERE), "worktree", "remove", "--force", str(tree)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--only", action="append", choices=COMMANDS)
    parser.add_argument("--times", type=int, default=3)
    chosen = parser.parse_args()
    rows = []
    with builds(chosen.commit) as (old, new):
        for name in chosen.only or COMMANDS:
            pairs = [(old.run(COMMANDS[name]), new.run(COMMANDS[name])) for _ in range(chosen.times)]
            seconds = [after[0] / before[0] for before, after in pairs]
            memory = [after[1] / before[1] for before, after in pairs]
            before, after = (min(pair[side] for pair in pairs) for side in (0, 1))
            rows.append(
                (
                    f"`{name}`",
                    f"{before[0]:.1f} s",
                    f"{after[0]:.1f} s",
                    f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
                    f"{before[1] / 1e9:.2f} GB",
                    f"{after[1] / 1e9:.2f} GB",
                    f"{statistics.median(memory):.2f}",
                )
            )
            print(f"{name}: {rows[-1][3]}", file=sys.stderr, flush=True)
    head = ("command", f"{chosen.commit}", "now", "time, ratio", f"peak, {chosen.commit}", "peak, now", "memory, ratio")
    print(machine(), table(head, rows), sep="\n\n")


if __name__ == "__main__":
    main()
