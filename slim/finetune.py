"""Fine-tuning: a checkpoint learns its task, or the original's predictions on it, and is saved where that made it
better."""

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from diskcache import Cache
from filelock import FileLock, Timeout
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import Tensor, nn
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from slim import checkpoint, models, results, tasks, workspace
from slim.architectures import Architecture, decoder_layers
from slim.calibrate import versions
from slim.errors import InputError
from slim.models import Loaded
from slim.progress import Progress, silent
from slim.records import Record
from slim.recover import Bench, bench
from slim.recovery import RECOVERY_FILE, Point, Quality, Recovery
from slim.rowwise import Work
from slim.teacher import TOP, taught
from slim.training import Loss, RecoveryTrainer, Rows, arguments, last_state
from slim.workload import Workload, memory_there, seconds_of

Method = Literal["lora", "kd"]
Tell = Callable[[Workload], None]
"""Hears what a fine-tuning will take before it starts."""
BACKWARD = {"adapter": 1.6, "full": 2.1}
"""What a step takes besides its forward, in forwards, measured on the bundled model."""
KEPT_NUMBERS = {"adapter": 0.2, "full": 3.0}
"""What gradients and the optimiser hold, in times the weights."""
DROPOUTS = ("attention_dropout", "attn_dropout", "dropout", "layerdrop", "dropout_p", "activation_dropout")
"""What modules call the dropout that they do themselves."""


class TrainSettings(Record):
    """What a person chooses for a fine-tuning."""

    steps: int = Field(default=200, ge=1, description="of the optimiser")
    samples: int = Field(default=640, ge=4, description="rows drawn: to learn from, to choose by and to tell")
    batch_size: int = Field(default=8, ge=1, description="rows of a step")
    micro_batch: int = Field(default=4, ge=1, description="rows that are in memory at once")
    max_length: int = Field(default=256, ge=2, description="tokens of a row beyond which it is cut")
    positions: Literal["all", "answer"] = Field(default="answer", description="predictions that are learnt and told of")
    weights: Literal["adapter", "full"] = Field(default="adapter", description="LoRA on every matrix, or all weights")
    rank: int = Field(default=16, ge=1, description="of the adapter")
    learning_rate: float = Field(default=1e-3, gt=0, description="its highest; it rises, then falls as a cosine")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps in which it rises")
    temperature: float = Field(default=1.0, gt=0, description="kd: at which distributions are compared")
    task_weight: float = Field(default=0.1, ge=0, le=1, description="kd: of the rows' own tokens beside the original's")
    evaluations: int = Field(default=8, ge=1, description="looks at the validation rows; the state is saved at each")
    patience: int = Field(default=3, ge=1, description="looks without a better loss after which it stops")
    checkpointing: bool = Field(default=False, description="less memory for a third more time")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of matrix products; auto is bfloat16 where the device has instructions for it"
    )
    merge: bool = Field(default=True, description="false: the adapter is saved, not the model with it")
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    dtype: Literal["auto", "float32", "float64", "bfloat16"] = Field(default="auto", description="of the weights")


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
    resume: bool = True,
    **data: Any,
) -> Path:
    """The folder of a checkpoint that learnt from rows of `dataset` (default: a new run in the workspace).

    `lora` learns the rows' own tokens, `kd` what the `original` predicts there (default: what `source` was cut from;
    `source` itself where it was not cut). Rows that took no part in it decide whether the new weights are better, and
    only then are they kept; others give the figures of the record. `data` is what `tasks.load_task` takes.

    The same call goes on where an earlier one was stopped, and ends with the same weights; without `resume` it starts
    anew. Raises InputError for anything given that cannot be used, before a model runs; SlimError where the loss is no
    number, memory or disk is full.
    """
    settings = settings or TrainSettings()
    if settings.weights == "full" and not settings.merge:
        raise InputError("merge=False: weights='full' makes no adapter: leave one of the two out.")
    output = output or workspace.fresh_path("checkpoint", f"{Path(source.removeprefix('bundled:')).stem}-{method}")
    workspace.check_output(output)
    at = bench(source, tasks.load_task(dataset, **data), settings, original, progress)
    planned = workload(at, settings)
    if tell is not None:
        tell(planned)
    work = Work(progress, planned.forwards)
    same = at.student.facts.fingerprint == at.teacher.facts.fingerprint
    folder = workspace.subfolder("trainings") / _key(at, method, settings)
    with results.kept() as cache, _alone(folder):
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        before = at.figures(at.student, settings.micro_batch, cache, work)
        rows, validation = _lessons(at, method, settings, cache, work)
        teacher = at.teacher.facts.source
        del at.teacher  # its memory is the training's
        model, curve = train(at.student, rows, validation, method, settings, folder, work)
        trained = model.merge_and_unload() if isinstance(model, PeftModel) and settings.merge else model  # type: ignore[operator]
        if settings.merge:
            _round(trained, models.resolve_dtype(at.student.facts.dtype))
        at.teacher = models.load(teacher, device=settings.device, dtype=settings.dtype, progress=progress)
        unknown = at.student.facts.model_copy(update={"fingerprint": ""})  # kept results are of the old weights
        after = at.figures(replace(at.student, model=trained, facts=unknown), settings.micro_batch, cache, work)
        applied = _better(before["decide"], after["decide"], "lora" if same else method)
        notes = [*work.notes, *_notes(curve, settings, same)]
        chosen = settings.model_dump() | {"precision": precision_of(settings, at.student.model.device)}
        steps = at.earlier.then(at.step(method, before, after, applied, chosen, notes, curve))
        if settings.merge:
            checkpoint.rewrite(source, output, _state(trained) if applied else {}, steps)
        else:
            _save_adapter(model, source, output, applied, steps)
        shutil.rmtree(folder, ignore_errors=True)
    return output


def workload(at: Bench, settings: TrainSettings) -> Workload:
    """What a fine-tuning takes on its device."""
    facts, learn, choose = at.student.facts, at.drawn["learn"], at.drawn["choose"]
    mean = learn.tokens / len(learn.rows)
    steps = settings.steps * settings.batch_size * mean * (1 + BACKWARD[settings.weights])
    looks = (settings.evaluations + 1) * choose.tokens
    forwards = steps + looks + 2 * 2 * at.judged_tokens + learn.tokens + choose.tokens
    dtype = models.resolve_dtype(settings.dtype)
    parameters = sum(map(prod, facts.shapes.values()))
    vocabulary = max(shape[0] for shape in facts.shapes.values())
    width = min(facts.shapes[max(facts.shapes, key=lambda name: prod(facts.shapes[name]))])
    row = settings.micro_batch * min(settings.max_length, max(learn.lengths))
    held = 2 * width if settings.checkpointing else 40 * width
    numbers = parameters * (2 + KEPT_NUMBERS[settings.weights]) + row * (held * facts.layers + 5 * vocabulary)
    lessons = (learn.tokens + choose.tokens) * (TOP + 1) * 8
    state = parameters * KEPT_NUMBERS[settings.weights] * 2 + (parameters if settings.weights == "full" else 0)
    return Workload(
        rows=len(at.drawn.whole.rows),
        tokens=at.drawn.whole.tokens,
        forwards=forwards,
        seconds=seconds_of(facts, forwards, at.student.model.device, dtype),
        memory=int(numbers * dtype.itemsize) + lessons,
        disk=int(parameters * facts.itemsize + state * dtype.itemsize),
        there=memory_there(at.student.model.device),
    )


def train(
    student: Loaded,
    rows: Rows,
    validation: Rows,
    method: Method,
    settings: TrainSettings,
    folder: Path,
    work: Work,
) -> tuple[Any, list[Point]]:
    """The trained model, with its adapter on it where it has one, and the curve. Goes on from a state in `folder`."""
    set_seed(settings.seed)
    without_dropout(student.model)
    model = adapted(student, settings.rank) if settings.weights == "adapter" else student.model.requires_grad_(True)
    every = max(1, -(-settings.steps // settings.evaluations))
    state = last_state(folder)
    made = arguments(
        folder,
        steps=settings.steps,
        every=every,
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
    )
    curve = trainer.resumed(state)
    model.eval().requires_grad_(False)
    return model, curve


def precision_of(settings: TrainSettings, device: torch.device) -> str:
    """What matrix products are computed in; float32 stands for the format of the weights."""
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:
        found = torch.cpu.get_capabilities()
        able = found.get("avx512_bf16") or found.get("amx_bf16")
    return "bfloat16" if able and settings.dtype != "float64" else "float32"


def adapted(loaded: Loaded, rank: int) -> PeftModel:
    """The model with a LoRA on every matrix of its layers, which changes nothing yet (Hu et al. 2021)."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=matrices(loaded.model, loaded.architecture),
        fan_in_fan_out=loaded.architecture.transposed,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft's old name for it
        return get_peft_model(loaded.model, config)  # type: ignore[return-value]


def matrices(model: nn.Module, architecture: Architecture) -> list[str]:
    """The names, within a decoder layer, of all that multiplies with a matrix."""
    return sorted(
        {
            name
            for layer in decoder_layers(model, architecture)
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
    )


def without_dropout(model: nn.Module) -> None:
    """What the original predicts is no noisy target, and there is little to learn in so few steps."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _lessons(at: Bench, method: Method, settings: TrainSettings, cache: Cache, work: Work) -> tuple[Rows, Rows]:
    """The rows to learn from and those of the curve, with what the original says of them."""

    def of(role: str, temperature: float) -> Any:
        return taught(
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
    return after.kl < before.kl if method == "kd" else after.perplexity < before.perplexity


def _notes(curve: Sequence[Point], settings: TrainSettings, same: bool) -> list[str]:
    notes = [f"the curve's KL counts the original's {TOP} likeliest tokens and all others as one"]
    best = min((point for point in curve if point.step), key=lambda point: point.validation)
    notes.append(f"the weights of step {best.step} had the best validation loss")
    if curve[-1].step < settings.steps:
        notes.append(f"stopped at step {curve[-1].step}: {settings.patience} looks gave no better validation loss")
    if same:
        notes.append("the model is the original itself: perplexity decided, and its KL shows how far it moved away")
    return notes


@torch.no_grad()
def _round(model: Any, dtype: torch.dtype) -> None:
    """To what is stored, so that the figures are those of the checkpoint."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))


def _state(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def _save_adapter(model: Any, source: str, output: Path, applied: bool, steps: Recovery) -> None:
    """The adapter alone; one that does nothing where it is not applied."""
    if not applied:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    place = Path(source).expanduser()
    base = str(place.absolute()) if place.exists() else models.locate(source)
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    with workspace.new_folder(output) as folder:
        model.save_pretrained(folder)
        (folder / RECOVERY_FILE).write_text(steps.model_dump_json(indent=1), encoding="utf-8")
        (folder / "README.md").write_text(checkpoint.adapter_card(base, steps), encoding="utf-8")


def _key(at: Bench, method: Method, settings: TrainSettings) -> str:
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
