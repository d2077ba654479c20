"""Import validation of archived runs: their places, their content, and the names by which they refer to each other."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from slim.calibration.facts import CalibrationFacts
from slim.calibration.record import load_calibration
from slim.core import workspace
from slim.core.errors import InputError
from slim.core.migrations import read_record
from slim.core.records import ModelFacts, Record
from slim.core.workspace import Kind
from slim.evaluation.record import EvaluationFacts, load_evaluation
from slim.judging import judge, votes
from slim.judging.record import Judgment
from slim.judging.votes import Votes
from slim.models.architectures import architecture_of
from slim.models.original import PLAN_FILE
from slim.planning.files import load_plan
from slim.planning.record import Plan
from slim.planning.slicing import MODELING_FILE
from slim.pruning.history import RECOVERY_FILE, Recovery, load_recovery
from slim.runs.files import JUDGEMENT, PLAN, VOTES, is_plain
from slim.runs.manage import LONGEST, is_name
from slim.runs.manifest import Manifest, PackedRun

Moved = Mapping[str, str]
"""The sources by which records named other runs on the exporting machine, with the folders of these here."""


def places(manifest: Manifest) -> list[Path]:
    """A free path in the workspace for each run, as close to its name as possible."""
    found: list[Path] = []
    for run in manifest.runs:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", run.file_name).strip("-.")[:LONGEST]
        stem = stem if is_plain(stem) else f"imported-{run.kind}"
        suffix = ".json" if run.kind in ("plan", "judgement") else ""
        folder = workspace.subfolder(f"{run.kind}s")
        number, path = 1, folder / f"{stem}{suffix}"
        while path in found or any(place.exists() or place.is_symlink() for place in finals_of(run.kind, path)):
            number += 1
            path = folder / f"{stem}-{number}{suffix}"
        found.append(path)
    return found


def finals_of(kind: Kind, final: Path) -> list[Path]:
    """The paths that a run occupies: itself, and the file of votes beside a judgement."""
    return [final, votes.file_of(final)] if kind == "judgement" else [final]


def staged(stack: ExitStack, run: PackedRun, final: Path, arrived: list[Path]) -> dict[str, Path]:
    """Paths to write the files of a run to; they are moved to their places once `stack` closes without an error.

    Each place is added to `arrived` as soon as it is occupied.
    """

    def enter(path: Path, new: Callable[[Path], AbstractContextManager[Path]]) -> Path:
        stack.enter_context(
            _noted(path, arrived)
        )  # entered first, so that it ends last: after the path is in its place
        return stack.enter_context(new(path))

    if run.kind == "plan":
        return {PLAN: enter(final, workspace.new_file)}
    if run.kind == "judgement":
        paths = {JUDGEMENT: final, VOTES: votes.file_of(final)}
        return {file.name: enter(paths[file.name], workspace.new_file) for file in run.files}
    folder = enter(final, workspace.new_folder)
    return {file.name: folder / file.name for file in run.files}


@contextmanager
def _noted(path: Path, arrived: list[Path]) -> Iterator[None]:
    yield
    arrived.append(path)


def shown_name(run: PackedRun) -> str | None:
    """The user's name for a run, or that of its file where a file here may not have that name; else None."""
    name = run.name or ("" if is_plain(run.file_name) else run.file_name)
    return name if is_name(name) else None


def check(kind: Kind, held: Mapping[str, Path]) -> None:
    """Raise InputError where the files of a run are invalid. No code in them is run."""
    first = next(iter(held.values()))
    match kind:
        case "calibration":
            load_calibration(first.parent)
        case "plan":
            load_plan(held[PLAN])
        case "checkpoint":
            _check_checkpoint(held["config.json"].parent)
        case "evaluation":
            load_evaluation(first.parent)
        case "judgement":
            judge.load_judgment(held[JUDGEMENT])
            if VOTES in held:
                _parsed(Votes, held[VOTES])


def _check_checkpoint(folder: Path) -> None:
    """Raise InputError unless Slim made the checkpoint: with a plan or a recovery, and no code but Slim's own."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from slim.models.folder_check import read_folder
    from slim.pruning import checkpoint

    stored = read_folder(str(folder), folder)
    if (folder / PLAN_FILE).exists():
        checkpoint.recipe(folder)
        load_recovery(folder)
    elif not load_recovery(folder).steps:
        raise InputError(f"it has neither {PLAN_FILE} nor {RECOVERY_FILE}, so it was not created by Slim.")
    config: Any = stored.config
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    stock = found.__name__
    file = folder / MODELING_FILE
    wanted = checkpoint.auto_map(stock) if config.is_heterogeneous else None
    for name in ("config.json", "tokenizer_config.json"):
        if _auto_map(folder / name) != (wanted if name == "config.json" else None):
            raise InputError(
                f"{name}: its auto_map is not the one that Slim writes and may load foreign code; export it again."
            )
    if config.is_heterogeneous != file.exists():
        raise InputError(
            f"{MODELING_FILE}: checkpoints have this file where their layers differ, and only there; export it again."
        )
    if file.exists():
        text = file.read_bytes().decode(errors="replace")
        if not checkpoint.wrote_modeling(text, stock, architecture_of(config.model_type)):
            raise InputError(
                f"{MODELING_FILE}: it is not the one that Slim writes, and no other code is imported; export it again."
            )


def _auto_map(file: Path) -> object:
    try:
        found = json.loads(file.read_bytes()) if file.exists() else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file.name}: it is not valid JSON ({error}); export it again.") from error
    return found.get("auto_map") if isinstance(found, dict) else found


def rewrite(kind: Kind, held: Mapping[str, Path], moved: Moved) -> None:
    """Replace the names of other runs of the archive in a run's records by their folders here."""
    for (of, name), (record, change) in REWRITERS.items():
        if of == kind and name in held:
            found = _parsed(record, held[name])
            changed = change(found, moved)
            if changed != found:
                held[name].write_text(changed.model_dump_json(indent=1), encoding="utf-8")


def _parsed(record: type[Record], file: Path) -> Any:
    try:
        return read_record(record, file, file.name)
    except (OSError, ValueError) as error:
        raise InputError(f"it cannot be read as {record.__name__.lower()}; export it again.") from error


def _model(found: ModelFacts, moved: Moved) -> ModelFacts:
    return found.model_copy(update={"source": moved.get(found.source, found.source)})


def _calibration(found: CalibrationFacts, moved: Moved) -> CalibrationFacts:
    return found.model_copy(update={"model": _model(found.model, moved)})


def _plan(found: Plan, moved: Moved) -> Plan:
    there = moved.get(found.calibration, found.calibration)
    return found.model_copy(update={"model": _model(found.model, moved), "calibration": there})


def _recovery(found: Recovery, moved: Moved) -> Recovery:
    steps = []
    for step in found.steps:
        original = step.settings.get("original")
        there = moved.get(original, original) if isinstance(original, str) else original
        changes = step.settings | ({"original": there} if "original" in step.settings else {})
        steps.append(step.model_copy(update={"settings": changes}))
    return found.model_copy(update={"steps": tuple(steps)})


def _evaluation(found: EvaluationFacts, moved: Moved) -> EvaluationFacts:
    models = (one.model_copy(update={"model": _model(one.model, moved)}) for one in found.models)
    return found.model_copy(update={"models": tuple(models)})


def _judgement(found: Judgment, moved: Moved) -> Judgment:
    names = {name: getattr(found, name) for name in ("original_model", "pruned_model")}
    return found.model_copy(update={name: moved.get(source, source) for name, source in names.items()})


REWRITERS: dict[tuple[Kind, str], tuple[type[Record], Callable[[Any, Moved], Any]]] = {
    ("calibration", "record.json"): (CalibrationFacts, _calibration),
    ("plan", PLAN): (Plan, _plan),
    ("checkpoint", PLAN_FILE): (Plan, _plan),
    ("checkpoint", RECOVERY_FILE): (Recovery, _recovery),
    ("evaluation", "record.json"): (EvaluationFacts, _evaluation),
    ("judgement", JUDGEMENT): (Judgment, _judgement),
}
"""The records that name models and runs, by the kind of run and the file within it."""
