"""Fine-tuning: a checkpoint learns its task, or the original's predictions on it, and is saved where that made it
better."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from diskcache import Cache
from filelock import FileLock, Timeout
from peft import PeftModel
from torch import Tensor
from transformers import set_seed

from slim.core import paths, workspace
from slim.core.cache import open_cache
from slim.core.environment import versions
from slim.core.errors import InputError
from slim.core.progress import Progress, silent
from slim.core.resources import Workload
from slim.data import tasks
from slim.data.batch_runner import Work
from slim.models.load import Loaded, load_model, locate, resolve_dtype
from slim.pruning import checkpoint
from slim.pruning.history import RECOVERY_FILE, CurvePoint, Quality, Recovery
from slim.pruning.model_card import adapter_card
from slim.recovery import layer_distillation
from slim.recovery.lora import adapted, without_dropout
from slim.recovery.settings import BACKWARD, TrainSettings, precision_of
from slim.recovery.teacher import TOP, targets_of_rows
from slim.recovery.trainer import Loss, RecoveryTrainer, Rows, Watch, arguments, last_state
from slim.recovery.workbench import RecoveryContext, recovery_context, round_to_stored

Method = Literal["lora", "kd", "local"]
Tell = Callable[[Workload], None]
"""Hears what a fine-tuning will take before it starts."""
KEPT_NUMBERS = {"adapter": 0.2, "full": 3.0}
"""What gradients and the optimiser hold, in times the weights."""


@dataclass(frozen=True)
class Trained:
    """A model that was trained, with its adapter where it keeps one, and what is to be told of the training."""

    model: Any
    notes: Sequence[str]
    curve: Sequence[CurvePoint] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def finetune(
    source: str,
    dataset: str = "bundled:briefs",
    method: Method = "kd",
    settings: TrainSettings | None = None,
    *,
    original: str | None = None,
    output: Path | None = None,
    progress: Progress = silent,
    tell: Tell | None = None,
    watch: Watch = lambda curve: None,
    resume: bool = True,
    **data: Any,
) -> Path:
    """The folder of a checkpoint that learnt from rows of `dataset` (default: a new run in the workspace).

    `lora` learns the rows' own tokens, `kd` what the `original` predicts there (default: what `source` was cut from;
    `source` itself where it was not cut), `local` what the original has between its layers, one layer at a time. Rows
    that took no part in it decide whether the new weights are better, and only then are they kept; others give the
    figures of the record. `data` is what `tasks.load_task` takes.

    The same call goes on where an earlier one was stopped, and ends with the same weights; without `resume` it starts
    anew. `watch` hears the curve as it grows. Raises InputError for anything given that cannot be used, before a model
    runs; SlimError where the loss is no number, memory or disk is full.
    """
    settings = settings or TrainSettings()
    if settings.weights == "full" and not settings.merge:
        raise InputError("merge=False: weights='full' makes no adapter: leave one of the two out.")
    if method == "local":
        layer_distillation.keep_of(source)
        if not settings.merge:
            raise InputError("merge=False: method 'local' merges each layer before the next learns: leave one out.")
    output = output or workspace.fresh_path("checkpoint", f"{Path(source.removeprefix('bundled:')).stem}-{method}")
    workspace.check_output(output)
    at = recovery_context(source, tasks.load_task(dataset, **data), settings, original, progress)
    planned = layer_distillation.workload(at, settings) if method == "local" else workload(at, settings)
    if tell is not None:
        tell(planned)
    work = Work(progress, planned.forwards)
    same = at.student.facts.fingerprint == at.teacher.facts.fingerprint
    folder = workspace.subfolder("trainings") / _key(at, method, settings)
    with open_cache() as cache, _alone(folder):
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        before = at.figures(at.student, settings.micro_batch, cache, work)
        if method == "local":
            learnt = _layer_by_layer(at, settings, folder, work)
        else:
            learnt = _as_a_whole(at, method, settings, folder, cache, work, watch)
        if settings.merge:
            round_to_stored(learnt.model, at.student.facts)
        after = at.figures_after(learnt.model, settings.micro_batch, cache, work)
        applied = _better(before["decide"], after["decide"], "lora" if same else method)
        notes = [*work.notes, *learnt.notes]
        if same:
            notes.append("the model is the original itself: perplexity decided, and its KL shows how far it moved away")
        precision = {"precision": precision_of(settings, at.student.model.device)}
        chosen = settings.model_dump() | precision | dict(learnt.settings)
        steps = at.earlier.then(at.step(method, before, after, applied, chosen, notes, learnt.curve))
        if settings.merge:
            checkpoint.rewrite(source, output, _state(learnt.model) if applied else {}, steps)
        else:
            _save_adapter(learnt.model, source, output, applied, steps)
        shutil.rmtree(folder, ignore_errors=True)
    return output


def workload(at: RecoveryContext, settings: TrainSettings) -> Workload:
    """What a fine-tuning takes on its device."""
    facts, learn, choose = at.student.facts, at.drawn["learn"], at.drawn["choose"]
    mean = learn.tokens / len(learn.rows)
    steps = settings.steps * settings.batch_size * mean * (1 + BACKWARD[settings.weights])
    looks = (settings.evaluations + 1) * choose.tokens
    forwards = steps + looks + learn.tokens + choose.tokens
    dtype = resolve_dtype(settings.dtype)
    parameters = facts.parameters
    vocabulary = max(shape[0] for shape in facts.shapes.values())
    width = min(facts.shapes[max(facts.shapes, key=lambda name: prod(facts.shapes[name]))])
    row = settings.micro_batch * min(settings.max_length, max(learn.lengths))
    held = 2 * width if settings.checkpointing else 40 * width
    numbers = parameters * (2 + KEPT_NUMBERS[settings.weights]) + row * (held * facts.layers + 5 * vocabulary)
    lessons = (learn.tokens + choose.tokens) * (TOP + 1) * 8
    state = parameters * KEPT_NUMBERS[settings.weights] * 2 + (parameters if settings.weights == "full" else 0)
    memory = int(numbers * dtype.itemsize) + lessons
    return at.workload(forwards, memory, int(parameters * facts.itemsize + state * dtype.itemsize))


def train(
    student: Loaded,
    rows: Rows,
    validation: Rows,
    method: Method,
    settings: TrainSettings,
    folder: Path,
    work: Work,
    watch: Watch = lambda curve: None,
) -> tuple[Any, list[CurvePoint]]:
    """The trained model, with its adapter on it where it has one, and the curve. Goes on from a state in `folder`."""
    set_seed(settings.seed)
    without_dropout(student.model)
    model = adapted(student, settings.rank) if settings.weights == "adapter" else student.model.requires_grad_(True)
    state = last_state(folder)
    made = arguments(
        folder,
        steps=settings.steps,
        every=settings.every,
        device=student.model.device,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup * settings.steps),
        activation_checkpointing=settings.checkpointing,
        bf16=precision_of(settings, student.model.device) == "bfloat16",
        eval_on_start=state is None,
        seed=settings.seed,
    )
    cost = {"training": 1 + BACKWARD[settings.weights], "validation": 1.0}
    begun, seen = time.monotonic(), 0

    def advance(kind: Literal["training", "validation"], tokens: int, message: str) -> None:
        nonlocal seen
        seen += tokens if kind == "training" else 0
        pace = f", {seen / (time.monotonic() - begun):,.0f} tokens/s" if kind == "training" else ""
        work.advance(tokens * cost[kind], message + pace)

    trainer = RecoveryTrainer(
        model,
        made,
        rows,
        validation,
        Loss(1.0, 1.0) if method == "lora" else Loss(settings.task_weight, settings.temperature),
        settings.micro_batch,
        settings.patience,
        advance,
        work.note,
        watch,
    )
    curve = trainer.resumed(state)
    model.eval().requires_grad_(False)
    return model, curve


def _as_a_whole(
    at: RecoveryContext, method: Method, settings: TrainSettings, folder: Path, cache: Cache, work: Work, watch: Watch
) -> Trained:
    """Trains the student of `at` end to end."""
    rows, validation = _lessons(at, method, settings, cache, work)
    teacher = at.teacher.facts.source
    del at.teacher  # its memory is the training's
    model, curve = train(at.student, rows, validation, method, settings, folder, work, watch)
    merged = model.merge_and_unload() if isinstance(model, PeftModel) and settings.merge else model  # type: ignore[operator]
    at.teacher = load_model(teacher, device=settings.device, dtype=settings.dtype, progress=work.progress)
    return Trained(merged, _notes(curve, settings), curve)


def _layer_by_layer(at: RecoveryContext, settings: TrainSettings, folder: Path, work: Work) -> Trained:
    """Trains the student of `at` one layer at a time."""
    lessons = layer_distillation.distill_layers(at, settings, folder, work)
    better = sum(one.step > 0 for one in lessons)
    notes = [f"{better} of {len(lessons)} layers came closer to what the original has there"]
    return Trained(at.student.model, notes, settings={"layers": [asdict(one) for one in lessons]})


def _lessons(
    at: RecoveryContext, method: Method, settings: TrainSettings, cache: Cache, work: Work
) -> tuple[Rows, Rows]:
    """The rows to learn from and those of the curve, with what the original says of them."""

    def of(role: str, temperature: float) -> Any:
        return targets_of_rows(
            at.teacher,
            at.drawn[role],
            temperature,
            batch_size=settings.micro_batch,
            cache=cache,
            advance=lambda tokens, known: work.advance(tokens, "Asking the original", known),
            note=work.note,
        )

    learn, choose, plain = at.drawn["learn"], at.drawn["choose"], of("choose", 1.0)
    if method == "lora" or settings.task_weight == 1:
        return Rows(learn), Rows(choose, None, plain)
    soft = plain if settings.temperature == 1 else of("choose", settings.temperature)
    return Rows(learn, of("learn", settings.temperature)), Rows(choose, soft, plain)


def _better(before: Quality, after: Quality, method: Method) -> bool:
    """Closer to the original, or by the rows' own tokens where these were what was learnt."""
    return after.perplexity < before.perplexity if method == "lora" else after.kl < before.kl


def _notes(curve: Sequence[CurvePoint], settings: TrainSettings) -> list[str]:
    notes = [f"the curve's KL counts the original's {TOP} likeliest tokens and all others as one"]
    best = min((point for point in curve if point.step), key=lambda point: point.validation)
    notes.append(f"the weights of step {best.step} had the best validation loss")
    if curve[-1].step < settings.steps:
        notes.append(f"stopped at step {curve[-1].step}: {settings.patience} looks gave no better validation loss")
    return notes


def _state(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def _save_adapter(model: Any, source: str, output: Path, applied: bool, steps: Recovery) -> None:
    """The adapter alone; one that does nothing where it is not applied."""
    if not applied:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    place = paths.local(source, "model")
    base = str(place.absolute()) if place.exists() else locate(source)
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    with workspace.new_folder(output) as folder:
        model.save_pretrained(folder)
        (folder / RECOVERY_FILE).write_text(steps.model_dump_json(indent=1), encoding="utf-8")
        (folder / "README.md").write_text(adapter_card(base, steps), encoding="utf-8")


def _key(at: RecoveryContext, method: Method, settings: TrainSettings) -> str:
    """What stands for everything that the trained weights depend on."""
    basis = {
        "student": at.student.facts.fingerprint,
        "teacher": at.teacher.facts.fingerprint,
        "method": method,
        "settings": settings.model_dump(exclude={"merge"}),
        "precision": precision_of(settings, at.student.model.device),
        "threads": torch.get_num_threads(),
        "versions": versions() | {"peft": peft.__version__},
    }
    total = hashlib.sha256(json.dumps(basis, sort_keys=True).encode())
    for role in ("learn", "choose"):
        for row, start in zip(at.drawn[role].rows, at.drawn[role].starts, strict=True):
            total.update(f"{role}/{start}/".encode() + row.numpy().tobytes())
    return total.hexdigest()[:24]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time trains in a folder."""
    try:
        with FileLock(f"{folder}.lock").acquire(timeout=0):
            yield
    except Timeout:
        raise InputError("the same training is running already: wait for it, or stop it.") from None
