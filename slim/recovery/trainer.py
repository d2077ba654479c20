"""Training a model on rows, with the original's distribution as the target or their own tokens: transformers' Trainer
with a loss of counted positions alone, batches that are halved where memory ends, and states that are whole or absent.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

from slim.calibration.criteria.base import exact
from slim.core.cache import Arrays
from slim.core.errors import SlimError
from slim.data import tasks
from slim.data.batch_runner import out_of_memory, subset
from slim.pruning.history import CurvePoint
from slim.recovery.teacher import counted_logits, stacked_targets

COMPLETE = "slim.json"
"""Written last into a saved state: one without it was cut off."""


Advance = Callable[[Literal["training", "validation"], int, str], None]
"""Hears of each step how many tokens it went over, and in words how it went."""
Watch = Callable[[Sequence[CurvePoint]], None]
"""Hears the curve so far whenever a point is added to it."""


@dataclass(frozen=True)
class Rows:
    """Rows with what the original says of them: `soft` at the temperature of the loss, `plain` at 1."""

    encoded: tasks.Encoded
    soft: Sequence[Arrays] | None = None
    plain: Sequence[Arrays] | None = None


@dataclass(frozen=True)
class Loss:
    """`task_weight` of the rows' own tokens' surprise, the rest of KL to the original at `temperature`, times its
    square, so that the size of its gradient does not depend on it (Hinton et al. 2015)."""

    task_weight: float = 1.0
    temperature: float = 1.0

    def __call__(self, logits: Tensor, tokens: Tensor, soft: Sequence[Arrays] | None) -> Tensor:
        """Summed over the positions of logits (n, V), whose next tokens are `tokens` (n,)."""
        logits = exact(logits)
        total = logits.new_zeros(())
        if self.task_weight > 0:
            surprise = torch.nn.functional.cross_entropy(logits, tokens, reduction="sum")
            total = total + self.task_weight * surprise
        if self.task_weight < 1:
            if soft is None:
                raise ValueError("a loss with the original's part needs what the original says")
            nats = stacked_targets(soft, logits.device).divergence(logits, self.temperature)
            total = total + (1 - self.task_weight) * self.temperature**2 * nats.sum()
        return total


class RecoveryTrainer(Trainer):
    """Trains on `rows`, `micro_batch` of them at a time; every optimiser step sees a whole batch of the arguments.

    A batch is one step: its micro-batches are cut here, each weighs as many positions as it counts, so that neither
    their size nor running out of memory changes what is learnt.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        rows: Rows,
        validation: Rows,
        loss: Loss,
        micro_batch: int,
        patience: int,
        advance: Advance = lambda work, tokens, message: None,
        note: Callable[[str], None] = lambda text: None,
        watch: Watch = lambda curve: None,
    ) -> None:
        self.rows, self.validation, self.loss = rows, validation, loss
        self.micro_batch, self.advance, self.note, self.watch = micro_batch, advance, note, watch
        super().__init__(
            model=model,
            args=args,
            train_dataset=list(range(len(rows.encoded.rows))),  # type: ignore[arg-type]
            eval_dataset=list(range(len(validation.encoded.rows))),  # type: ignore[arg-type]
            data_collator=lambda places: {"rows": torch.tensor(places)},
            callbacks=[EarlyStoppingCallback(patience)],
        )
        self.remove_callback(PrinterCallback)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Gradients of the whole batch. What does not fit in memory is tried again in halves."""
        rows: list[int] = inputs["rows"].tolist()
        model.train()
        while True:
            try:
                return self._gradients(model, rows)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                tried = min(self.micro_batch, len(rows))
                if tried == 1:
                    raise SlimError(
                        "out of memory on a single training row: choose a smaller max_length, checkpointing=True "
                        "or another device."
                    ) from error
                self.micro_batch = tried // 2
            model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.note(f"{tried} rows at a time did not fit in memory, so it went on with {self.micro_batch}")

    def _gradients(self, model: Any, rows: list[int]) -> Tensor:
        encoded = subset(self.rows.encoded, rows)
        batches = list(tasks.batches(encoded, self.micro_batch))
        predicted = sum(int(batch.predicted.sum()) for batch in batches)
        whole = torch.zeros((), device=self.args.device)
        for batch in batches:
            places = [rows[place] for place in batch.rows]
            with self.compute_loss_context_manager():
                loss = self._loss(model, self.rows, batch, places) / predicted
            self._check(loss, places)
            self.accelerator.backward(loss)
            whole += loss.detach().to(whole.device)
        step = f"Training, step {self.state.global_step + 1} of {self.state.max_steps}"
        self.advance("training", encoded.tokens, f"{step}: loss {float(whole):.3f}")
        return whole

    def _loss(self, model: Any, rows: Rows, batch: tasks.Batch, places: list[int]) -> Tensor:
        logits, tokens = counted_logits(model, batch)
        return self.loss(logits, tokens, rows.soft and [rows.soft[place] for place in places])

    def _check(self, loss: Tensor, places: list[int]) -> None:
        if torch.isfinite(loss):
            return
        kept = last_state(Path(str(self.args.output_dir)))
        raise SlimError(
            f"the loss is {loss.item()} at step {self.state.global_step + 1}, on the training rows "
            f"{', '.join(map(str, places))}: choose a smaller learning_rate, or leave these rows out. "
            + (f"The state of the step before that was saved is in {str(kept)!r}." if kept else "Nothing was saved.")
        )

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss and KL to the original on the validation rows, in nats per predicted token."""
        rows, model = self.validation, cast(Any, self.model)
        model.eval()
        loss = kl = predicted = 0.0
        done = 0
        for batch in tasks.batches(rows.encoded, self.micro_batch):
            places = list(batch.rows)
            with self.compute_loss_context_manager():
                logits, tokens = counted_logits(model, batch)
            soft = rows.soft and [rows.soft[place] for place in places]
            loss += float(self.loss(logits, tokens, soft))
            if rows.plain is not None:
                plain = [rows.plain[place] for place in places]
                kl += float(stacked_targets(plain, logits.device).divergence(logits).sum())
            predicted += len(tokens)
            done += sum(len(rows.encoded.rows[place]) for place in places)
        metrics = {"eval_loss": loss / predicted, "eval_kl": max(0.0, kl / predicted)}
        self.advance("validation", done, f"Validation: loss {metrics['eval_loss']:.3f}, KL {metrics['eval_kl']:.3f}")
        self.log(dict(metrics))
        self.watch(curve_of(self.state.log_history))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            (folder / COMPLETE).write_text(json.dumps({"micro_batch": self.micro_batch}), encoding="utf-8")
        except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer knows no better than RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            kept = last_state(folder.parent)
            goes_on = f"it goes on from step {step_of(kept)}" if kept else "it starts at step 0"
            raise SlimError(
                f"the state of the training at step {self.state.global_step} could not be saved in "
                f"{str(folder.parent)!r} ({error}): free some space on that disk and run the same again, {goes_on}."
            ) from error

    def resumed(self, state: Path | None) -> list[CurvePoint]:
        """Trains to the end, from a saved `state` where there is one, and gives the curve. The model then has the
        weights of the best validation loss."""
        if state is not None:
            self.micro_batch = json.loads((state / COMPLETE).read_text(encoding="utf-8"))["micro_batch"]
        self.train(resume_from_checkpoint=str(state) if state else None)
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # else it stays in the training's precision
        return curve_of(self.state.log_history)


def arguments(folder: Path, *, steps: int, every: int, device: torch.device, **values: Any) -> TrainingArguments:
    """What the Trainer is told: states in `folder`, one `every` so many steps, nothing sent anywhere."""
    made = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        optim="adamw_torch",
        weight_decay=0.0,
        lr_scheduler_type="cosine",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        logging_strategy="steps",
        logging_steps=every,
        logging_nan_inf_filter=False,
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
        **values,
    )
    made._n_gpu = min(1, made.n_gpu)  # the Trainer would copy the model to every card it sees
    return made


def curve_of(history: Sequence[dict[str, float]]) -> list[CurvePoint]:
    """The points of a Trainer's log, one for each evaluation."""
    losses = {int(entry["step"]): entry["loss"] for entry in history if "loss" in entry}
    points = {
        int(entry["step"]): CurvePoint(
            step=int(entry["step"]),
            training=losses.get(int(entry["step"])),
            validation=entry["eval_loss"],
            kl=entry["eval_kl"],
        )
        for entry in history
        if "eval_loss" in entry
    }
    return [points[step] for step in sorted(points)]


def last_state(folder: Path) -> Path | None:
    """The newest whole state in the `folder` of a training; what was cut off while it was saved is removed."""
    whole = []
    for state in folder.glob("checkpoint-*"):
        if (state / COMPLETE).is_file():
            whole.append(state)
        else:
            shutil.rmtree(state, ignore_errors=True)
    return max(whole, key=step_of, default=None)


def step_of(state: Path) -> int:
    return int(state.name.rpartition("-")[2])
