"""Local distillation: train each layer of a pruned model to output the original's residual, one layer at a time.

The rows run through the original and through the pruned model side by side, as in closed-form repair. A layer reads
the output of the layers before it, which are trained already, and is trained to output the original's residual where it
is read next, so that it also corrects earlier errors. No gradient passes through more than one layer.

The loss is the mean over tokens of the squared distance relative to the squared norm of the target: the next layer
reads the residual through a norm, so a few tokens with massive activations must count no more than any other.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup, set_seed

from slim.calibration.criteria.base import exact
from slim.core import workspace
from slim.core.errors import InputError, SlimError
from slim.core.reporter import Work
from slim.core.resources import Workload
from slim.data import tasks
from slim.data.batch_runner import out_of_memory
from slim.data.tasks import Batch
from slim.models.architectures import Architecture
from slim.models.layerwise import Stream
from slim.models.load import Loaded, resolve_dtype
from slim.models.original import PLAN_FILE
from slim.models.precision import precision_of, products
from slim.models.units import Keep
from slim.pruning import held_out
from slim.pruning.history import TRAIN, VALIDATION
from slim.recovery.context import RecoveryContext
from slim.recovery.least_squares import Original, intact
from slim.recovery.lora import adapted_layer
from slim.recovery.repair import STREAMS
from slim.recovery.settings import TrainSettings
from slim.recovery.trainer import BACKWARD

LARGEST_GRADIENT = 1.0
"""Norm to which larger gradients are clipped."""


@dataclass(frozen=True)
class DistilledLayer:
    """Training of a layer of the pruned model: its error on the validation rows before and after, and the best step, 0
    where the error never fell."""

    layer: int
    step: int
    before: float
    after: float


def check_pruned(source: str) -> None:
    """Raise InputError for a model that was not cut by a plan."""
    if held_out.plan_of(source) is None:
        raise InputError(
            f"method='local': {source!r} has no {PLAN_FILE}, and only layers of a model that Slim pruned compare; "
            "choose 'kd' or 'lora'."
        )


def _keep(at: RecoveryContext) -> Keep:
    if at.plan is None:
        raise ValueError("a local distillation needs the plan that the student was cut by")
    return at.plan.keep


def distill_layers(at: RecoveryContext, settings: TrainSettings, folder: Path, work: Work) -> list[DistilledLayer]:
    """Train the student of `at` in place, and return the record of each layer; layers saved in `folder` are done.

    Raises SlimError where a loss is not finite, or memory or disk is full.
    """
    keep = _keep(at)
    rows = {role: list(tasks.batches(at.drawn[role], settings.micro_batch)) for role in (TRAIN, VALIDATION)}
    cost, layers = layer_cost(at, settings), sum(kept.layer for kept in keep)

    def advance(layer: int, share: float, said: str, known: bool = False) -> None:
        work.advance(share * cost, f"Layer {layer + 1} of {layers}{said}", known)

    try:
        return distill(at.teacher, at.student, keep, rows[TRAIN], rows[VALIDATION], settings, folder, advance)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise SlimError(
            "out of memory while a layer was trained; choose a smaller micro_batch, max_length or samples, or "
            "another device."
        ) from error


def distill(
    original: Loaded,
    pruned: Loaded,
    keep: Keep,
    learn: Sequence[Batch],
    choose: Sequence[Batch],
    settings: TrainSettings,
    folder: Path,
    advance: Callable[..., None] = lambda layer, share, said, known=False: None,
) -> list[DistilledLayer]:
    """Train `pruned` in place, and return the record of each layer; `keep` is the plan that it was cut by.

    Batches in `learn` are trained on, and those in `choose` select the best step. Layers before the first removal stay
    as they are. `advance` is called with a layer and the share of its work that was done.
    """
    rows = [*learn, *choose]
    was = Original(original, keep, rows)
    now = Stream(pruned.model, pruned.architecture, rows)
    pruned.model.requires_grad_(False)
    found = []
    for index in range(len(was.stay)):
        if was.intact(index):
            now.advance(was.entering(index + 1))
            continue
        goals, file = was.leaving(index), folder / f"layer-{index}.safetensors"
        record = _finished(file, now.layer)
        if record is None:
            record = _Learner(now, goals, len(learn), settings, pruned.architecture).trained(advance)
            _save(file, now.layer, record)
        else:
            advance(index, 1.0, " was saved before", True)
        found.append(record)
        now.advance()
    return found


class _Learner:
    """The current layer of a stream, with its targets; the first `count` of the stream's batches are trained on."""

    def __init__(
        self, now: Stream, goals: Sequence[Tensor], count: int, settings: TrainSettings, architecture: Architecture
    ) -> None:
        self.now, self.goals, self.settings, self.architecture = now, goals, settings, architecture
        self.learn, self.choose = range(count), range(count, len(now.batches))
        self.precision = precision_of(settings.precision, now.model)

    def trained(self, advance: Callable[..., None]) -> DistilledLayer:
        """Train the layer, give it the weights of the best step, and return the record."""
        settings, index = self.settings, self.now.index
        set_seed(settings.seed + index)
        layer: Any = self.now.layer
        adapter = adapted_layer(layer, settings.rank, self.architecture) if settings.weights == "adapter" else None
        if adapter is None:
            layer.requires_grad_(True)
        learning = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, settings.learning_rate, weight_decay=0.0)
        warmup = round(settings.warmup * settings.steps)
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, settings.steps)
        before = best = self._error()
        at, kept, worse, step = 0, _copied(learning), 0, 0
        for step, places in zip(range(1, settings.steps + 1), self._draws(), strict=False):
            said = f", step {step} of {settings.steps}"
            loss = self._gradients(places)
            if not math.isfinite(loss):
                raise SlimError(
                    f"the loss is {loss} in layer {index + 1} at step {step}: choose a smaller learning_rate. The "
                    "layers before it are saved for the same run."
                )
            torch.nn.utils.clip_grad_norm_(learning, LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            advance(index, 1 / settings.steps, f"{said}: loss {loss:.4f}")
            if step % settings.every == 0 or step == settings.steps:
                error = self._error()
                worse = 0 if error < best else worse + 1
                if error < best:
                    best, at, kept = error, step, _copied(learning)
                if worse == settings.patience:
                    break
        advance(index, 1 - step / settings.steps, f": error {before:.4f} → {best:.4f}")
        with torch.no_grad():
            for parameter, weights in zip(learning, kept, strict=True):
                parameter.copy_(weights)
        if adapter is not None:
            adapter.merge_and_unload()  # type: ignore[operator]
        layer.requires_grad_(False)
        return DistilledLayer(index, at, before, best)

    def _draws(self) -> Iterator[list[int]]:
        """Yield the batches of each step, at least `batch_size` rows; each batch comes once before any comes again."""
        generator = torch.Generator().manual_seed(self.settings.seed + self.now.index)
        step: list[int] = []
        while True:
            for place in torch.randperm(len(self.learn), generator=generator).tolist():
                step.append(place)
                if sum(len(self.now.batches[one].rows) for one in step) >= self.settings.batch_size:
                    yield step
                    step = []

    def _gradients(self, places: Sequence[int]) -> float:
        """Add up gradients of the mean loss over a step's tokens, one batch in memory at a time; return that mean."""
        tokens = sum(int(self.now.batches[place].valid.sum()) for place in places)
        whole = 0.0
        for place in places:
            with products(self.precision, self.now.model):
                left = self.now.left(place, learning=True)
            loss = error_of(left, self.goals[place], self.now.batches[place].valid) / tokens
            loss.backward()
            whole += float(loss.detach())
        return whole

    def _error(self) -> float:
        """Return the error of the layer as it is, on the validation rows."""
        valid = [self.now.batches[place].valid for place in self.choose]
        found = [
            float(error_of(self.now.left(place), self.goals[place], here))
            for place, here in zip(self.choose, valid, strict=True)
        ]
        return sum(found) / sum(int(here.sum()) for here in valid)


def error_of(left: Tensor, goal: Tensor, valid: Tensor) -> Tensor:
    """Return squared distances of `left` from `goal` (B, T, E), relative to it, summed over valid tokens (B, T)."""
    valid = valid.to(left.device)
    wanted = exact(goal[valid])
    distance = (exact(left[valid]) - wanted).square().sum(-1)
    return (distance / wanted.square().sum(-1).clamp_min(torch.finfo(wanted.dtype).tiny)).sum()


def workload(at: RecoveryContext, settings: TrainSettings) -> Workload:
    """Return the work of a local distillation on its device."""
    facts, keep, dtype = at.student.facts, _keep(at), resolve_dtype(settings.dtype)
    trained = sum(not intact(keep, at.teacher.facts.heads, index) for index in range(facts.layers))
    drawn = [at.drawn[TRAIN], at.drawn[VALIDATION]]
    tokens = sum(part.tokens for part in drawn)
    sizes = [sum(map(math.prod, one.facts.shapes.values())) for one in (at.student, at.teacher)]
    width = at.student.model.config.hidden_size
    row = settings.micro_batch * min(settings.max_length, max(drawn[0].lengths))
    held = sum(sizes) + 4 * sizes[0] // facts.layers + (tokens * STREAMS + 40 * row) * width
    needed = at.workload(trained * layer_cost(at, settings), held * dtype.itemsize, 2 * sizes[0] * facts.itemsize)
    return at.with_answers(needed)


def layer_cost(at: RecoveryContext, settings: TrainSettings) -> float:
    """Return the cost of training one layer and advancing both models, in forward passes of the whole model."""
    drawn, choose = at.drawn[TRAIN], at.drawn[VALIDATION]
    steps = settings.steps * settings.batch_size * drawn.tokens / len(drawn.rows) * (1 + BACKWARD[settings.weights])
    return (steps + 2 * drawn.tokens + (settings.evaluations + 3) * choose.tokens) / at.student.facts.layers


def _copied(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _save(file: Path, layer: nn.Module, record: DistilledLayer) -> None:
    """Save a finished layer: its weights where they changed, and its record."""
    state = {name: weights.detach().cpu() for name, weights in layer.named_parameters() if record.step}
    said = {name: repr(value) for name, value in asdict(record).items()}
    with workspace.new_file(file, sum(weights.nbytes for weights in state.values())) as partial:
        save_file(state, partial, metadata=said)


@torch.no_grad()
def _finished(file: Path, layer: nn.Module) -> DistilledLayer | None:
    """Give a layer its saved weights, and return the record; None where it is not finished."""
    if not file.is_file():
        return None
    with safe_open(file, "pt") as stored:
        said = stored.metadata()
        for name in stored.keys():  # noqa: SIM118  it has keys and is not a mapping
            layer.get_parameter(name).copy_(stored.get_tensor(name))
    return DistilledLayer(int(said["layer"]), int(said["step"]), float(said["before"]), float(said["after"]))
