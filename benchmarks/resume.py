"""A training killed in the middle against one that was never stopped, on the bundled model.

`python -m benchmarks.resume [--steps 100] [--at 60]` prunes a fifth of the heads, distils, kills the process with
SIGKILL once the state of step `--at` is saved, gives the same command again, and then trains anew without a break. The
two checkpoints must hold the same bytes, and every look at the validation rows must have found the same figures, those
after the break too. Ends with 1 where they differ.
"""

import argparse
import filecmp
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import machine
from slim.calibration.calibrate import calibrate
from slim.calibration.request import CalibrateRequest
from slim.planning.budget import plan_by_budget
from slim.pruning.checkpoint import prune
from slim.pruning.history import load_recovery

TRAINING = "--rows 120 --batch-size 2 --max-length 48 --positions all --evaluations 10 --patience 10"


def saved(home: Path) -> int:
    """The last step whose state is on the disk whole; 0 before the first."""
    names = (path.name.removeprefix("checkpoint-") for path in (home / "trainings").glob("*/checkpoint-*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def killed(command: list[str], home: Path, at: int) -> int:
    """Starts a command, kills it once that step is saved, and gives the step it had saved by then."""
    process = subprocess.Popen(command)
    while saved(home) < at:
        if process.poll() is not None:
            raise RuntimeError(f"the training ended with {process.returncode} before step {at} was saved")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return saved(home)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--at", type=int, default=60, help="step whose state is waited for; one in ten is saved")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["SLIM_HOME"] = folder
        measured = calibrate(CalibrateRequest.asked(samples=6, max_length=64, output=home / "calibration"))
        small = prune(plan_by_budget(measured, {"heads": 0.8}), home / "small")
        command = [sys.executable, "-m", "slim", "finetune", str(small), "--dataset", "bundled:briefs"]
        command += ["--method", "kd", "--steps", str(options.steps), *TRAINING.split(), "--output"]
        broken, whole = home / "broken", home / "whole"
        step = killed([*command, str(broken)], home, options.at)
        subprocess.run([*command, str(broken)], check=True)
        subprocess.run([*command, str(whole), "--restart"], check=True)
        bytes_same = filecmp.cmp(broken / "model.safetensors", whole / "model.safetensors", shallow=False)
        one, other = (load_recovery(folder).steps[-1] for folder in (broken, whole))
    same = bytes_same and one.curve == other.curve and one.applied
    print(f"{machine()}\nkilled with step {step} of {options.steps} saved: {'the same' if same else 'NOT the same'}")
    print("\n".join([*one.notes, *map(str, one.curve)]))
    sys.exit(not same)


if __name__ == "__main__":
    main()
