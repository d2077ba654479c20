"""Training of a model on rows, towards soft targets of the original or their own tokens: transformers' Trainer with a
loss over counted positions only, batches that are halved where memory is full, and saved states that are always whole.
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

from slim.core.cache import Arrays
from slim.core.errors import SlimError
from slim.data import tasks
from slim.data.batch_runner import out_of_memory, subset
from slim.models.predictions import counted_logits
from slim.pruning.history import CurvePoint
from slim.recovery.loss import Loss
from slim.recovery.teacher import stacked_targets

COMPLETE = "slim.json"
"""Written last into a saved state: a state without it is incomplete."""
BACKWARD = {"adapter": 1.6, "full": 2.1}
"""Cost of a step besides its forward pass, in forward passes, measured on the bundled model."""
Advance = Callable[[Literal["training", "validation"], int, str], None]
"""Callback for each step: its kind, its number of tokens, and a message."""


@dataclass(frozen=True)
class Rows:
    """Rows with the original's soft targets: `soft` at the temperature of the loss, `plain` at 1."""

    encoded: tasks.Encoded
    soft: Sequence[Arrays] | None = None
    plain: Sequence[Arrays] | None = None


class RecoveryTrainer(Trainer):
    """Trains on `rows`, `micro_batch` of them at a time; every optimizer step uses a whole batch of the arguments.

    A batch is one step. It is split into micro-batches here, weighted by their counted positions, so that neither their
    size nor running out of memory changes the gradient.
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
        curve: Callable[[Sequence[CurvePoint]], None] = lambda points: None,
    ) -> None:
        self.rows, self.validation, self.loss = rows, validation, loss
        self.micro_batch, self.advance, self.note, self.curve = micro_batch, advance, note, curve
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
        """Compute gradients of the whole batch and return its loss; halve the micro-batch where memory is full."""
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
                        "out of memory on a single training row; choose a smaller max_length, checkpointing=True "
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
            f"{', '.join(map(str, places))}: choose a smaller learning_rate, or remove these rows. "
            + (f"The last saved state is in {str(kept)!r}." if kept else "Nothing was saved.")
        )

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return loss and KL to the original on the validation rows, in nats per predicted token."""
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
        self.curve(curve_of(self.state.log_history))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: operations are not counted."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            (folder / COMPLETE).write_text(json.dumps({"micro_batch": self.micro_batch}), encoding="utf-8")
        except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            kept = last_state(folder.parent)
            resumes = f"resumes from step {step_of(kept)}" if kept else "starts at step 0"
            raise SlimError(
                f"the state of the training at step {self.state.global_step} could not be saved in "
                f"{str(folder.parent)!r} ({error}); free some space on that disk and run the same command again, "
                f"which {resumes}."
            ) from error

    def resumed(self, state: Path | None) -> list[CurvePoint]:
        """Train to the end, from a saved `state` where there is one, and return the curve.

        The model then has the weights of the best validation loss.
        """
        if state is not None:
            self.micro_batch = json.loads((state / COMPLETE).read_text(encoding="utf-8"))["micro_batch"]
        self.train(resume_from_checkpoint=str(state) if state else None)
        self.accelerator.unwrap_model(
            self.model, keep_fp32_wrapper=False
        )  # otherwise it stays in the training's precision
        return curve_of(self.state.log_history)


def arguments(folder: Path, *, steps: int, every: int, device: torch.device, **values: Any) -> TrainingArguments:
    """Return the Trainer's arguments: a state in `folder` every `every` steps, and no reports to other services."""
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
    made._n_gpu = min(1, made.n_gpu)  # the Trainer would copy the model to every GPU it finds
    return made


def curve_of(history: Sequence[dict[str, float]]) -> list[CurvePoint]:
    """Return the points of a Trainer's log, one for each evaluation."""
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
    """Return the newest whole state in the `folder` of a training; remove incomplete ones."""
    whole = []
    for state in folder.glob("checkpoint-*"):
        if (state / COMPLETE).is_file():
            whole.append(state)
        else:
            shutil.rmtree(state, ignore_errors=True)
    return max(whole, key=step_of, default=None)


def step_of(state: Path) -> int:
    """Return the step of a saved state."""
    return int(state.name.rpartition("-")[2])
