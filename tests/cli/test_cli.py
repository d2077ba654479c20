"""The command line: the pipeline works, prints for people and programs, and refuses bad input in one line."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from slim import __version__
from slim.calibration.check_record import SHARES, CriterionCheck
from slim.calibration.record import load_calibration
from slim.core.codecs import numbers, pairs
from slim.core.errors import InputError
from slim.models.load import Loaded, load_model
from slim.planning.files import load_plan
from slim.pruning.history import load_recovery
from tests import ROOT
from tests.commands import Result, Run
from tests.pico import make_pico, save_pico

ESTIMATE = re.compile(
    r"Rows read as [^\n]+\.\n(4 rows were read in part[^\n]+\.\n)?(The bundled model on [^\n]+\.\n)?"
    r"4 rows, 1?\d\d tokens: about [\d,]+ (s|min), [\d.,]+ GB of memory, \d+ MB on disk\.\n"
)
SMALL = ("--samples", "4", "--max-length", "48", "--device", "cpu")
WEIGHTS, COLUMNS = numbers("kl_output=1,entropy_norm=0.5"), pairs("question=ask,answer=reply")


def by_process(*arguments: object, **environment: str) -> Result:
    """The command as the user runs it."""
    command = [sys.executable, "-m", "slim", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "200", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama's folder."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    save_pico(make_pico("llama"), folder)
    return folder


@pytest.fixture(scope="module")
def calibration(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of it, made by the command in a process of its own."""
    place = tmp_path_factory.mktemp("calibrated")
    folder = place / "calibration"
    command = ("calibrate", "--model", model, "--dataset", "bundled:triage", *SMALL, "--output", folder)
    done = by_process(*command, SLIM_HOME=str(place / "home"))
    assert done.code == 0, done.err
    assert "kl_output" in done.out
    assert "4 rows" in done.out
    assert f"Calibration: {folder}" in done.out
    assert "cached from earlier runs" not in done.out
    assert ESTIMATE.fullmatch(done.err), done.err
    return folder


def test_the_pipeline_prints_for_people(calibration: Path, run: Run, tmp_path: Path) -> None:
    """calibrate, plan and prune, each naming what it wrote."""
    plan_file, output = tmp_path / "plan.json", tmp_path / "pruned"
    planned = run("plan", calibration, "--threshold", "0.7", "--output", plan_file)
    assert planned.code == 0, planned.err
    made = load_plan(plan_file)
    assert f"{made.removed_heads} heads removed" in planned.out
    assert f"{made.before.parameters:,}" in planned.out
    assert f"{made.after.parameters:,}" in planned.out
    assert "nats/token" in planned.out
    assert f"Plan: {plan_file}" in planned.out
    pruned = run("prune", plan_file, "--output", output)
    assert pruned.code == 0, pruned.err
    assert f"{made.after.parameters:,} parameters" in pruned.out
    assert f"Checkpoint: {output}" in pruned.out
    loaded: Loaded = load_model(str(output), device="cpu")
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == made.after.parameters


def test_the_pipeline_prints_for_programs(model: Path, run: Run, own_workspace: Path) -> None:
    """Standard output is one JSON value; without --output all lies in the workspace."""
    command = ("calibrate", "--model", model, "--dataset", "bundled:briefs", *SMALL, "--kl", "none", "--json")
    calibrated = json.loads(run(*command).out)
    assert calibrated["dataset"]["rows"] == calibrated["settings"]["samples"] == 4
    assert calibrated["model"]["heads"] == 6
    assert "kl_output" not in calibrated["metrics"]
    path = Path(calibrated["path"])
    assert path.is_relative_to(own_workspace)
    assert load_calibration(path).facts.settings.kl == "none"
    weights = "variance=1,entropy_norm=0.5"
    planned = json.loads(run("plan", path, "--threshold", "0.8", "--weights", weights, "--json").out)
    assert planned["reason"]["weights"] == {"variance": 1.0, "entropy_norm": 0.5}
    assert planned["forecast"] is None
    assert Path(planned["path"]).is_relative_to(own_workspace)
    pruned = json.loads(run("prune", planned["path"], "--json").out)
    assert pruned["parameters"] == planned["after"]["parameters"]
    files = Path(pruned["path"]).glob("*.safetensors")
    assert pruned["bytes_on_disk"] == sum(file.stat().st_size for file in files)


def test_pruned_and_repaired_at_once_later_and_in_rounds(calibration: Path, run: Run, tmp_path: Path) -> None:
    """Repair comes with prune unless it is not wanted, and can be had afterwards; rounds are reported one by one."""
    rows = ("--dataset", "bundled:triage", "--rows", "100", "--max-length", "48")
    plan_file = tmp_path / "plan.json"
    assert run("plan", calibration, "--budget", "heads=0.6", "--output", plan_file).code == 0
    at_once = json.loads(run("prune", plan_file, *rows, "--output", tmp_path / "one", "--json").out)
    (step,) = at_once["recovery"]
    assert step["after"]["kl"] < step["before"]["kl"]
    cut = run("prune", plan_file, "--no-repair", "--output", tmp_path / "two")
    assert (cut.code, load_recovery(tmp_path / "two").steps) == (0, ())
    later = run("repair", tmp_path / "two", *rows, "--output", tmp_path / "three")
    assert later.code == 0, later.err
    assert "GB of memory" in later.err
    assert f"{step['before']['kl']:.4f} → {step['after']['kl']:.4f}" in later.out
    assert f"Checkpoint: {tmp_path / 'three'}" in later.out
    rounds = run("prune", plan_file, "--rounds", "2", "--rows", "100", "--max-length", "48")
    assert rounds.code == 0, rounds.err
    assert rounds.out.count("repair ") == 2
    refused(run("prune", plan_file, "--rounds", "2", "--no-repair"), "rounds", "--no-repair")
    refused(run("plan", calibration, "--after-repair"), "after_repair", "budget")


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Twelve rows with columns of other names."""
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(f'{{"ask": "What is {n}?", "reply": "It is {n}."}}\n' for n in range(12)))
    return file


def test_every_option_of_calibrate_reaches_the_record(model: Path, run: Run, asked: Path, tmp_path: Path) -> None:
    """How rows become prompts, which positions count, how heads are measured; and the check with it."""
    command = ("calibrate", "--model", model, "--dataset", asked, *SMALL, "--batch-size", "3", "--dtype", "float64")
    data = ("--template", "questions", "--columns", "question=ask,answer=reply", "--prompt", "Say: {question}")
    how = ("--positions", "answer", "--kl", "exact", "--draws", "2", "--seed", "3", "--check")
    done = run(*command, *data, *how, "--output", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    estimate = ESTIMATE.match(done.err)
    assert estimate
    assert re.fullmatch(r"Rows read as [^\n]+\.\n", done.err[estimate.end() :])  # those of the check
    told = json.loads(done.out)
    expected = {"positions": "answer", "kl": "exact", "draws": 2, "seed": 3, "batch_size": 3, "dtype": "float64"}
    assert expected.items() <= told["settings"].items()
    dataset = told["dataset"]
    assert (dataset["template"], dataset["prompt"]) == ("questions", "Say: {question}")
    assert dataset["columns"] == {"question": "ask", "answer": "reply"}
    assert "leaving it out" in told["metrics"]["kl_output"]["method"]
    answers = told["metrics"]["kl_output"]["positions"]
    assert 2 * len("It is 1.") <= answers <= 2 * len("It is 11.")
    assert told["reused"] == 0
    assert told["path"] == str(tmp_path / "out")
    check = CriterionCheck.model_validate(told["check"])
    assert check.unseen
    assert load_calibration(tmp_path / "out").check == check


def test_the_second_run_says_what_was_cached(model: Path, run: Run, tmp_path: Path) -> None:
    """All of it; half and half where rows are new; nothing in another workspace."""
    command = ("calibrate", "--model", model, "--dataset", "bundled:triage", *SMALL)
    first, second = (run(*command, "--output", tmp_path / name) for name in ("first", "second"))
    assert first.code == second.code == 0, second.err
    assert "cached from earlier runs" not in first.out
    assert "100% of it cached from earlier runs" in second.out
    one, other = (load_calibration(tmp_path / name) for name in ("first", "second"))
    assert (one.facts.reused, other.facts.reused) == (0, 1)
    for name, scores in one.metrics.items():
        for level, values in scores.items():
            assert (values == other.metrics[name][level]).all()
    again = json.loads(run(*command, "--draws", "2", "--json").out)
    assert 0 < again["reused"] < 1


def test_a_check_prints_for_people_and_for_programs(run: Run, calibration: Path, tmp_path: Path) -> None:
    """A row per criterion with its rank correlation and perplexities; the same as JSON; and the plan is corrected."""
    folder = tmp_path / "calibration"
    shutil.copytree(calibration, folder)
    shown = run("check", folder, "--rows", "2", "--heads", "5")
    assert shown.code == 0, shown.err
    found = load_calibration(folder).check
    assert found is not None
    assert (found.rows, len(found.heads), found.unseen) == (2, 5, True)
    assert f"all heads: {found.perplexity:.1f}" in shown.out
    assert all(f"−{share:.0%}" in shown.out for share in SHARES)
    for verdict in found.verdicts:
        (line,) = (line for line in shown.out.splitlines() if f" {verdict.criterion} " in line)
        assert verdict.correlation is None or f"{verdict.correlation:+.2f}" in line
        assert all(f"{removal.perplexity:,.1f}" in line for removal in verdict.removals)
    told = run("check", folder, "--weights", "variance=1,magnitude=0.5", "--rows", "2", "--heads", "5", "--json")
    assert told.code == 0, told.err
    again = CriterionCheck.model_validate_json(told.out)
    assert again.weights == {"variance": 1.0, "magnitude": 0.5}
    assert again.damage == pytest.approx(found.damage)
    assert load_calibration(folder).check == again
    planned = json.loads(run("plan", folder, "--output", tmp_path / "plan.json", "--json").out)
    assert again.correction is not None
    assert planned["forecast"]["factor"] == pytest.approx(
        again.correction.factor(planned["forecast"]["nats_per_token"] / planned["forecast"]["factor"])
    )


def test_one_row_is_said_to_give_no_interval(model: Path, run: Run, tmp_path: Path) -> None:
    """From calibrate to plan."""
    (tmp_path / "one.txt").write_text("A single line of text.\n")
    command = ("calibrate", "--model", model, "--dataset", tmp_path / "one.txt", *SMALL, "--check")
    done = run(*command, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    planned = run("plan", tmp_path / "out", "--threshold", "0.7")
    assert planned.code == 0, planned.err
    assert "(one row, no interval)" in planned.out


def test_blocks_are_planned(calibration: Path, run: Run, tmp_path: Path) -> None:
    """Whole ones by what is measured per block."""
    done = run("plan", calibration, "--unit", "block", "--threshold", "1", "--output", tmp_path / "p.json", "--json")
    planned = json.loads(done.out)
    assert [len(kept["heads"]) for kept in planned["keep"]].count(0) == 1
    assert all(kept["layer"] for kept in planned["keep"])
    assert load_plan(tmp_path / "p.json").unit == "block"


def test_plans_by_budget(calibration: Path, run: Run, tmp_path: Path) -> None:
    """The limits are met, one shape on demand, and standard output holds nothing but the record."""
    file = tmp_path / "p.json"
    done = run("plan", calibration, "--budget", "params=0.95,kv=0.8", "--uniform", "--output", file, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["reason"] == {"kind": "budget", "limits": {"params": 0.95, "kv": 0.8}}
    made = load_plan(file)
    assert made.uniform
    assert made.after.parameters <= 0.95 * made.before.parameters
    assert made.after.kv_bytes_per_token <= 0.8 * made.before.kv_bytes_per_token
    table = run("plan", calibration, "--budget", "loss=1", "--unit", "layer", "--output", tmp_path / "q.json")
    assert table.code == 0, table.err
    assert "the cheapest removal within loss=1" in " ".join(table.out.split())


def test_pins_and_two_plans_compared(calibration: Path, run: Run, tmp_path: Path) -> None:
    """Pins of the command line show in the plan, and the comparison names the heads."""
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    pins = ("--keep", "3:1", "--drop", "1:0", "--protect", "0,2", "--per-layer", "1=2")
    assert run("plan", calibration, "--threshold", "0.5", *pins, "--output", one).code == 0
    made = load_plan(one)
    whole = tuple(range(6))
    assert made.keep[0].heads == made.keep[2].heads == whole
    assert 1 in made.keep[3].heads
    assert 0 not in made.keep[1].heads
    assert run("plan", calibration, "--threshold", "2", "--drop", "3:1", "--output", other).code == 0
    told = json.loads(run("diff", one, other, "--json").out)
    assert [1, 0] in told["only_one"]
    assert [3, 1] in told["only_other"]
    table = run("diff", one, other)
    assert table.code == 0
    assert f"Both remove {told['shared']} heads" in table.out


def refused(result: Result, *words: str) -> None:
    """Exit code 2, and what ends standard error is one line that names the value."""
    assert result.code == 2, result
    assert result.err.endswith("\n")
    lines = result.err.splitlines()
    assert [line.startswith("slim: ") for line in lines].count(True) == 1, result.err
    assert lines[-1].startswith("slim: ")
    assert "Traceback" not in result.out + result.err
    assert result.out == ""
    for word in words:
        assert word in lines[-1]


Refusal = tuple[tuple[str, ...], tuple[str, ...]]
REFUSALS: dict[str, Refusal] = {
    "unknown model": (("calibrate", "--model", "nowhere/nothing"), ("'nowhere/nothing'",)),
    "unknown bundled": (("calibrate", "--model", "bundled:giant"), ("'bundled:giant'", "bundled:smollm2-135m")),
    "no model folder": (("calibrate", "--model", "{tmp}"), ("{tmp}", "config.json")),
    "unsupported family": (("calibrate", "--model", "{bert}"), ("'bert'", "llama")),
    "no samples": (("calibrate", "--model", "{model}", "--samples", "0"), ("samples=0",)),
    "short rows": (("calibrate", "--model", "{model}", "--max-length", "1"), ("max_length=1",)),
    "unknown dataset": (("calibrate", "--model", "{model}", "--dataset", "bundled:poems"), ("'bundled:poems'",)),
    "unknown split": (("calibrate", "--model", "{model}", "--split", "dev"), ("'dev'",)),
    "no columns": (("calibrate", "--model", "{model}", "--dataset", "{foo}"), ("foo.jsonl", "['foo']")),
    "not empty": (("calibrate", "--model", "{model}", "--output", "{tmp}"), ("{tmp}", "not empty")),
    "no draws": (("calibrate", "--model", "{model}", "--draws", "0"), ("draws=0",)),
    "odd positions": (("calibrate", "--model", "{model}", "--positions", "some"), ("--positions", "some")),
    "odd kl": (("calibrate", "--model", "{model}", "--kl", "guess"), ("--kl", "guess")),
    "odd template": (("calibrate", "--model", "{model}", "--template", "poem"), ("'poem'", "maths")),
    "odd columns": (("calibrate", "--model", "{model}", "--columns", "text"), ("columns", "'text'", "name=value")),
    "no such column": (("calibrate", "--model", "{model}", "--columns", "text=nothing"), ("'nothing'", "passage")),
    "odd prompt": (("calibrate", "--model", "{model}", "--prompt", "Say {{it}}"), ("{{it}}",)),
    "revision of a file": (("calibrate", "--model", "{model}", "--revision", "main"), ("revision", "'main'")),
    "no calibration to check": (("check", "{tmp}"), ("{tmp}", "slim calibrate")),
    "no rows to check": (("check", "{calibration}", "--rows", "0"), ("samples=0",)),
    "few heads to check": (("check", "{calibration}", "--heads", "2"), ("heads=2", "3")),
    "odd weights to check": (("check", "{calibration}", "--weights", "magic=1"), ("'magic'",)),
    "no device": (("calibrate", "--model", "{model}", "--device", "quantum"), ("'quantum'",)),
    "no calibration": (("plan", "{tmp}"), ("{tmp}", "slim calibrate")),
    "everything": (("plan", "{calibration}", "--threshold", "0"), ("threshold=0",)),
    "no threshold": (("plan", "{calibration}", "--threshold", "nan"), ("threshold=nan",)),
    "negative threshold": (("plan", "{calibration}", "--threshold", "-1"), ("threshold=-1",)),
    "unknown metric": (("plan", "{calibration}", "--weights", "magic=1"), ("'magic'",)),
    "no number": (("plan", "{calibration}", "--weights", "entropy"), ("weights='entropy'", "name=value")),
    "plan into folder": (("plan", "{calibration}", "--output", "{tmp}"), ("{tmp}",)),
    "no limit": (("plan", "{calibration}", "--budget", "0.9"), ("'0.9'", "params=0.9")),
    "odd limit": (("plan", "{calibration}", "--budget", "size=0.9"), ("'size'", "params")),
    "unmet limit": (("plan", "{calibration}", "--budget", "params=0.01"), ("params=0.01", "the least is")),
    "both": (("plan", "{calibration}", "--budget", "kv=0.9", "--threshold", "1"), ("budget", "threshold")),
    "odd pin": (("plan", "{calibration}", "--keep", "first"), ("keep", "'first'", "3:1")),
    "pin both ways": (("plan", "{calibration}", "--keep", "1:1", "--drop", "1:1"), ("1:1", "both")),
    "pin outside": (("plan", "{calibration}", "--drop", "99:0"), ("drop: 99:0",)),
    "odd layer": (("plan", "{calibration}", "--per-layer", "last=1"), ("per_layer='last'",)),
    "blocks alike": (("plan", "{calibration}", "--unit", "block", "--uniform"), ("uniform",)),
    "odd unit": (("plan", "{calibration}", "--unit", "neuron"), ("unit='neuron'", "head")),
    "nothing to compare": (("diff", "{tmp}/a.json", "{tmp}/b.json"), ("a.json",)),
    "no plan": (("prune", "{tmp}/missing.json"), ("missing.json",)),
    "bad plan": (("prune", "{foo}"), ("foo.jsonl", "not valid")),
    "usage": (("plan", "{calibration}", "--threshold", "much"), ("--threshold", "number")),
    "unknown option": (("plan", "{calibration}", "--colour", "red"), ("--colour",)),
    "unknown command": (("paint",), ("paint",)),
    "nothing to plan": (("plan",), ("CALIBRATION",)),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSALS.values(), ids=REFUSALS)
def test_bad_input_is_refused_in_one_line(
    run: Run, model: Path, calibration: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """Every value that the user can get wrong."""
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    (tmp_path / "foo.jsonl").write_text('{"foo": 1}\n')
    names: dict[str, Any] = {"tmp": tmp_path, "bert": bert, "model": model, "calibration": calibration}
    names["foo"] = tmp_path / "foo.jsonl"
    result = run(*(argument.format(**names) for argument in arguments))
    refused(result, *(word.format(**names) for word in words))


def test_a_pruned_folder_is_not_overwritten(run: Run, calibration: Path, tmp_path: Path) -> None:
    """Neither by another run of the same command."""
    plan_file = tmp_path / "plan.json"
    assert run("plan", calibration, "--output", plan_file).code == 0
    assert run("prune", plan_file, "--output", tmp_path / "pruned").code == 0
    refused(run("prune", plan_file, "--output", tmp_path / "pruned"), str(tmp_path / "pruned"), "not empty")


def test_a_workspace_that_cannot_be_written_is_named(model: Path, tmp_path: Path) -> None:
    """SLIM_HOME below a regular file, in a process of its own."""
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "home"
    refused(by_process("calibrate", "--model", model, *SMALL, SLIM_HOME=str(home)), str(home), "SLIM_HOME")


def test_help_and_bare_slim_explain(run: Run) -> None:
    """Every verb is listed; asking for help does not fail."""
    for arguments in (("--help",), ()):
        told = run(*arguments)
        assert all(verb in told.out + told.err for verb in ("calibrate", "check", "plan", "diff", "prune", "app"))
    assert run("--help").code == 0
    assert "--threshold" in run("plan", "--help").out
    assert run("--version") == Result(0, f"slim {__version__}\n", "")


@pytest.mark.parametrize(
    "start",
    [
        "runpy.run_module('slim', run_name='__main__')",
        "runpy.run_module('slim.judge', run_name='__main__')",
        "pkgutil.resolve_name(script)()",
    ],
)
def test_windows_is_refused_in_one_sentence(start: str) -> None:
    """However the command is started, before a module is imported that Windows lacks; `import slim` alone works."""
    script = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["slim"]
    code = (
        "import pkgutil, runpy, sys\n"
        "sys.platform, sys.argv, script = 'win32', ['slim', '--help'], sys.argv[1]\n"
        "sys.modules |= dict.fromkeys(('fcntl', 'grp', 'pwd', 'resource', 'termios'))\n"
        f"import slim\nprint(slim.__version__)\n{start}"
    )
    done = subprocess.run([sys.executable, "-c", code, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, f"{__version__}\n")
    assert done.stderr == (
        "slim: platform=win32: Slim runs on Linux and macOS; on Windows, install and start it inside WSL 2.\n"
    )


HEAVY = {
    *("torch", "transformers", "scipy", "sklearn", "networkx", "huggingface_hub", "datasets", "streamlit", "plotly"),
    *("pandas", "openai", "numpy"),
}
"""Libraries that take long to import, and read what keeps them quiet as they are imported."""


@pytest.mark.parametrize(
    "start",
    [
        "import slim",
        "import slim.cli",
        "import slim.jobs",
        "import slim.jobs.kinds",
        "import slim.jobs.runner",
        "slim --help",
        "slim calibrate --help",
        "slim jobs",
    ],
)
def test_the_command_starts_without_the_libraries_for_models(start: str) -> None:
    """So do its help, the list of jobs and the process that waits for a queue."""
    code = start
    if start.startswith("slim "):
        command = f"sys.argv = {start.split()}\nfrom slim.__main__ import main"
        code = f"{command}\ntry: main()\nexcept SystemExit as end: assert not end.code"
    code = f"import sys\n{code}\nprint(sorted({HEAVY} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"


@pytest.mark.parametrize("text", ["", "=1", "kl_output", "kl_output=", "kl_output=a", "kl_output=1,,entropy=1"])
def test_weights_that_cannot_be_read(text: str) -> None:
    """Each pair is a name and a number."""
    with pytest.raises(InputError, match=r"weights=.*kl_output=1"):
        WEIGHTS.read("weights", text)


@pytest.mark.parametrize("text", ["", "a", "=b", "a=", "a=b,", "a=b,c"])
def test_pairs_that_cannot_be_read(text: str) -> None:
    """The option and the piece are named."""
    with pytest.raises(InputError, match=r"columns=.*name=value"):
        COLUMNS.read("columns", text)


def test_pairs_are_read() -> None:
    """Blanks around names and values are allowed, and a value may hold an equals sign."""
    assert COLUMNS.read("columns", "a=b, c d = e = f") == {"a": "b", "c d": "e = f"}


def test_weights_are_read() -> None:
    """Blanks around names and numbers are allowed."""
    assert WEIGHTS.read("weights", "kl_output=1, entropy_norm = 0.5") == {"kl_output": 1.0, "entropy_norm": 0.5}
