"""Executes a plan: weights are really removed and what is left is saved as a checkpoint that loads everywhere."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slim import checkpoint, models, workspace
from slim.architectures import Architecture
from slim.cuts import Cut, cut_of
from slim.errors import InputError
from slim.models import Loaded
from slim.progress import Progress, silent
from slim.records import Keep, ModelFacts, Plan


def prune(plan: Plan, output: Path | None = None, progress: Progress = silent) -> Path:
    """The folder of the pruned checkpoint (default: a new run in the workspace). The original is only read.

    Raises InputError when the plan was made for another model than the one its source now names, or when `output`
    cannot be written.
    """
    output = output or workspace.fresh_path(
        "checkpoint", f"{Path(plan.model.source.removeprefix('bundled:')).stem}-{plan.unit}s"
    )
    workspace.check_output(output, plan.after.bytes)
    progress(0, 3, "Loading the original")
    loaded = models.load(plan.model.source, device="cpu", dtype=plan.model.dtype, progress=progress)
    if loaded.facts.fingerprint != plan.model.fingerprint:
        raise InputError(
            f"plan: it was made for {plan.model.source!r} with fingerprint {plan.model.fingerprint[:12]}, "
            f"and that model is now {loaded.facts.fingerprint[:12]}: calibrate and plan again."
        )
    progress(1, 3, "Removing weights")
    state = pruned_state(loaded.model, loaded.architecture, loaded.facts, plan.keep)
    progress(2, 3, "Saving the checkpoint")
    checkpoint.write(output, loaded, state, plan)
    progress(3, 3, "Saved")
    return output


def pruned_state(
    model: PreTrainedModel, architecture: Architecture, facts: ModelFacts, keep: Keep
) -> dict[str, Tensor]:
    """The parameters that remain, as tensors of their own."""
    state = {}
    for name, parameter in model.named_parameters():
        cut = cut_of(name, architecture, facts, keep)
        if isinstance(cut, Cut):
            state[name] = parameter.detach().index_select(cut.dim, torch.tensor(cut.entries)).contiguous()
        elif cut == "all":
            state[name] = parameter.detach()
    return state


def gates_of(keep: Keep, loaded: Loaded, rows: int) -> Tensor:
    """Gates for a Probe that silence the heads a plan removes.  # (B, L, H)"""
    gates = torch.zeros(rows, loaded.facts.layers, loaded.facts.heads, dtype=loaded.model.dtype)
    for layer, heads in enumerate(keep):
        gates[:, layer, list(heads)] = 1
    return gates.to(loaded.model.device)
