"""The fine-tuning stage: train a checkpoint on a task, or on the original's predictions there, and save the better
of the weights before and after."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from slim.core.reporter import SILENT, Reporter, Work
from slim.core.resources import Workload
from slim.data import tasks
from slim.models.architectures import decoder_layers
from slim.models.load import Loaded, load_model, locate, resolve_dtype
from slim.models.precision import precision_of, rounded
from slim.models.stops import end_notes
from slim.pruning import checkpoint
from slim.pruning.history import (
    ACCEPTANCE,
    BROKEN,
    RECOVERY_FILE,
    TEST,
    TRAIN,
    UNCHANGED,
    VALIDATION,
    CurvePoint,
    Quality,
    Recovery,
)
from slim.pruning.model_card import adapter_card
from slim.recovery import layer_distillation
from slim.recovery.context import RecoveryContext, recovery_context, round_to_stored
from slim.recovery.lora import adapted, inputs_rounded_once, without_dropout
from slim.recovery.loss import Loss
from slim.recovery.request import FinetuneRequest, Training
from slim.recovery.settings import TrainSettings
from slim.recovery.teacher import TOP, targets_of_rows
from slim.recovery.trainer import BACKWARD, RecoveryTrainer, Rows, arguments, last_state
from slim.recovery.tried import LONGEST, TRIED, stops_broken

KEPT_NUMBERS = {"adapter": 0.2, "full": 3.0}
"""Memory of gradients and optimizer, as a multiple of the weights."""


@dataclass(frozen=True)
class Trained:
    """A trained model, with its adapter where it keeps one, and the notes and curve of its training."""

    model: Any
    notes: Sequence[str]
    curve: Sequence[CurvePoint] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def finetune(request: FinetuneRequest, reporter: Reporter = SILENT) -> Path:
    """Return the folder of a checkpoint that was trained on rows of a task.

    `lora` trains on the rows' own tokens, `kd` on the original's predictions there, `local` on the original's outputs,
    one layer at a time. The acceptance rows decide whether the new weights are kept; the test rows give the record's
    figures.

    The same request resumes where an earlier one was stopped, and ends with the same weights. Raises InputError for
    anything that cannot be used, before a model runs; SlimError for a loss that is not finite, or where memory or disk
    is full.
    """
    settings, method, source = request.part(TrainSettings), request.method, os.fspath(request.folder)
    if method == "local":
        layer_distillation.check_pruned(source)
    stem = Path(source.removeprefix("bundled:")).stem
    output = request.output or workspace.fresh_path("checkpoint", f"{stem}-{method}")
    workspace.check_output(output)
    original = None if request.original is None else os.fspath(request.original)
    at = recovery_context(source, tasks.load_task(request.data), settings, original, reporter)
    planned = layer_distillation.workload(at, settings) if method == "local" else workload(at, settings)
    reporter.estimate(planned.sentence())
    work = Work(reporter, planned.forwards)
    same = at.student.facts.fingerprint == at.teacher.facts.fingerprint
    folder = workspace.subfolder("trainings") / _key(at, method, settings)
    with open_cache() as cache, _alone(folder):
        if not request.resume:
            shutil.rmtree(folder, ignore_errors=True)
        before = at.figures(at.student, settings.micro_batch, cache, work, at.asked)
        if method == "local":
            trained = _layer_by_layer(at, settings, folder, work)
        else:
            trained = _as_a_whole(at, method, settings, folder, cache, work)
        if settings.merge:
            round_to_stored(trained.model.named_parameters(), at.student.facts)
        bare: Any = trained.model.get_base_model() if isinstance(trained.model, PeftModel) else trained.model
        after = at.figures_after(bare, settings.micro_batch, work, at.asked)
        one, other = before[ACCEPTANCE], after[ACCEPTANCE]
        broken = stops_broken(one.answers, other.answers)
        applied = _better(one, other, "lora" if same else method) and not broken
        unchanged = f"{BROKEN} ({one.answers} before, {other.answers} after), so its weights are as they were"
        notes = [*work.notes, *trained.notes, *_answer_notes(before[TEST], at.student)]
        if same:
            notes.append(
                "the model is the original itself, so perplexity decided, and its KL shows how far it moved away"
            )
        precision = {"precision": precision_of(settings.precision, at.student.model)}
        chosen = settings.model_dump() | precision | dict(trained.settings)
        why = unchanged if broken else UNCHANGED
        steps = at.earlier.then(at.step(method, before, after, applied, chosen, notes, trained.curve, why))
        if settings.merge:
            weights, changed = (_state(bare), bare) if applied else ({}, None)
            checkpoint.rewrite(source, output, weights, steps, changed)
        else:
            _save_adapter(trained.model, source, output, applied, steps)
        shutil.rmtree(folder, ignore_errors=True)
    return output


def workload(at: RecoveryContext, settings: TrainSettings) -> Workload:
    """Return the work of a fine-tuning on its device."""
    facts, learn, choose = at.student.facts, at.drawn[TRAIN], at.drawn[VALIDATION]
    mean = learn.tokens / len(learn.rows)
    steps = settings.steps * settings.batch_size * mean * (1 + BACKWARD[settings.weights])
    evaluations = (settings.evaluations + 1) * choose.tokens
    forwards = steps + evaluations + learn.tokens + choose.tokens
    dtype = resolve_dtype(settings.dtype)
    parameters = facts.parameters
    vocabulary = max(shape[0] for shape in facts.shapes.values())
    width = min(facts.shapes[max(facts.shapes, key=lambda name: prod(facts.shapes[name]))])
    row = settings.micro_batch * min(settings.max_length, max(learn.lengths))
    held = 2 * width if settings.checkpointing else 40 * width
    numbers = parameters * (2 + KEPT_NUMBERS[settings.weights]) + row * (held * facts.layers + 5 * vocabulary)
    soft_targets = (learn.tokens + choose.tokens) * (TOP + 1) * 8
    state = parameters * KEPT_NUMBERS[settings.weights] * 2 + (parameters if settings.weights == "full" else 0)
    memory = int(numbers * dtype.itemsize) + soft_targets
    return at.with_answers(at.workload(forwards, memory, int(parameters * facts.itemsize + state * dtype.itemsize)))


def train(
    student: Loaded,
    rows: Rows,
    validation: Rows,
    method: Training,
    settings: TrainSettings,
    folder: Path,
    work: Work,
) -> tuple[Any, list[CurvePoint]]:
    """Return the trained model, with its adapter where it has one, and the curve; resume from a state in `folder`."""
    set_seed(settings.seed)
    without_dropout(student.model)
    precision = precision_of(settings.precision, student.model)
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
        bf16=precision == "bfloat16",
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
        work.reporter.curve,
    )
    once = precision == "bfloat16" and settings.weights == "adapter"
    with (
        rounded(precision, decoder_layers(student.model, student.architecture)),
        inputs_rounded_once(model) if once else nullcontext(),
    ):
        curve = trainer.resumed(state)
    model.eval().requires_grad_(False)
    return model, curve


def _as_a_whole(
    at: RecoveryContext, method: Training, settings: TrainSettings, folder: Path, cache: Cache, work: Work
) -> Trained:
    """Train the student of `at` end to end."""
    rows, validation = _with_targets(at, method, settings, cache, work)
    teacher = at.teacher.facts.source
    del at.teacher  # the training needs its memory
    model, curve = train(at.student, rows, validation, method, settings, folder, work)
    merged = model.merge_and_unload() if isinstance(model, PeftModel) and settings.merge else model  # type: ignore[operator]
    at.teacher = load_model(teacher, device=settings.device, dtype=settings.dtype, reporter=work.reporter)
    return Trained(merged, _notes(curve, settings), curve)


def _layer_by_layer(at: RecoveryContext, settings: TrainSettings, folder: Path, work: Work) -> Trained:
    """Train the student of `at` one layer at a time."""
    layers = layer_distillation.distill_layers(at, settings, folder, work)
    better = sum(one.step > 0 for one in layers)
    notes = [f"{better} of {len(layers)} layers came closer to the original's output"]
    return Trained(at.student.model, notes, settings={"layers": [asdict(one) for one in layers]})


def _with_targets(
    at: RecoveryContext, method: Training, settings: TrainSettings, cache: Cache, work: Work
) -> tuple[Rows, Rows]:
    """Return the training and the validation rows, with the original's soft targets."""

    def of(role: str, temperature: float) -> Any:
        return targets_of_rows(
            at.teacher,
            at.drawn[role],
            temperature,
            batch_size=settings.micro_batch,
            cache=cache,
            step=work.step("Asking the original"),
        )

    learn, choose, plain = at.drawn[TRAIN], at.drawn[VALIDATION], of(VALIDATION, 1.0)
    if method == "lora" or settings.task_weight == 1:
        return Rows(learn), Rows(choose, None, plain)
    soft = plain if settings.temperature == 1 else of(VALIDATION, settings.temperature)
    return Rows(learn, of(TRAIN, settings.temperature)), Rows(choose, soft, plain)


def _better(before: Quality, after: Quality, method: Training) -> bool:
    """Whether the model is closer to the original, or for `lora` better at predicting the rows' own tokens."""
    return after.perplexity < before.perplexity if method == "lora" else after.kl < before.kl


def _notes(curve: Sequence[CurvePoint], settings: TrainSettings) -> list[str]:
    notes = [f"the curve's KL counts the original's {TOP} likeliest tokens one by one, and all others as one"]
    best = min((point for point in curve if point.step), key=lambda point: point.validation)
    notes.append(f"the weights of step {best.step} had the best validation loss")
    if curve[-1].step < settings.steps:
        notes.append(
            f"stopped at step {curve[-1].step}: {settings.patience} evaluations gave no better validation loss"
        )
    return notes


def _answer_notes(before: Quality, student: Loaded) -> list[str]:
    """Return how answers were tried, and whether the model can end them."""
    if before.answers is None:
        tried = f"no answers were tried, as no test row has one of at most {LONGEST} tokens"
    else:
        tried = f"answers were tried on up to {TRIED} rows of a split and cut at {before.answers.max_new_tokens} tokens"
    return [tried, *end_notes(student.stops)]


def _state(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def _save_adapter(model: Any, source: str, output: Path, applied: bool, steps: Recovery) -> None:
    """Save the adapter alone; one that changes nothing where the training is not applied."""
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


def _key(at: RecoveryContext, method: Training, settings: TrainSettings) -> str:
    """Return a hash of everything that the trained weights depend on."""
    basis = {
        "student": at.student.facts.fingerprint,
        "teacher": at.teacher.facts.fingerprint,
        "method": method,
        "settings": settings.model_dump(exclude={"merge"}),
        "precision": precision_of(settings.precision, at.student.model),
        "threads": torch.get_num_threads(),
        "versions": versions() | {"peft": peft.__version__},
    }
    total = hashlib.sha256(json.dumps(basis, sort_keys=True).encode())
    for role in (TRAIN, VALIDATION):
        for row, start in zip(at.drawn[role].rows, at.drawn[role].starts, strict=True):
            total.update(f"{role}/{start}/".encode() + row.numpy().tobytes())
    return total.hexdigest()[:24]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock a folder, so that one process at a time trains in it. Raises InputError where it is locked."""
    try:
        with FileLock(f"{folder}.lock").acquire(timeout=0):
            yield
    except Timeout:
        raise InputError("folder: the same training is running already; wait for it, or stop it.") from None
