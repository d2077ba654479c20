"""Executes a plan: weights are really removed and what is left is saved as a checkpoint that loads everywhere."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slim.core import workspace
from slim.core.errors import InputError
from slim.core.progress import Progress, silent
from slim.core.records import Keep, ModelFacts
from slim.models.architectures import Architecture
from slim.models.load import Loaded, load_model
from slim.planning.record import Plan
from slim.planning.slicing import Slice, renumbered, slice_of
from slim.pruning import checkpoint


def prune(
    plan: Plan,
    output: Path | None = None,
    progress: Progress = silent,
    *,
    shard_bytes: int = checkpoint.SHARD_BYTES,
) -> Path:
    """The folder of the pruned checkpoint (default: a new run in the workspace). The original is only read.

    Weights beyond `shard_bytes` are split over several files. Raises InputError when the plan was made for another
    model than the one its source now names, when that one is pruned already, or when `output` cannot be written.
    """
    output = output or workspace.fresh_path(
        "checkpoint", f"{Path(plan.model.source.removeprefix('bundled:')).stem}-{plan.unit}s"
    )
    workspace.check_output(output, plan.after.bytes)
    progress(0, 3, "Loading the original")
    loaded = load_model(plan.model.source, device="cpu", dtype=plan.model.dtype, progress=progress)
    check_same(plan, loaded)
    progress(1, 3, "Removing weights")
    state = pruned_state(loaded.model, loaded.architecture, loaded.facts, plan.keep)
    progress(2, 3, "Saving the checkpoint")
    checkpoint.write(output, loaded, state, plan, shard_bytes)
    progress(3, 3, "Saved")
    return output


def check_same(plan: Plan, loaded: Loaded) -> None:
    """Raises InputError when the plan is not one for `loaded`."""
    planned, found = plan.model, loaded.facts
    if found.fingerprint != planned.fingerprint:
        raise InputError(
            f"plan: it was made for {planned.source!r} with fingerprint {planned.fingerprint[:12]}, "
            f"and that model is now {found.fingerprint[:12]}: calibrate and plan again."
        )
    if loaded.model.config.is_heterogeneous:
        raise InputError(f"plan: {planned.source!r} is pruned already, its layers differ: plan for its original.")
    for name in ("model_type", "layers", "heads", "kv_heads", "head_dim", "dtype", "itemsize", "shapes"):
        if getattr(found, name) != getattr(planned, name):
            said = "" if name == "shapes" else f"={getattr(planned, name)!r}, where it is {getattr(found, name)!r}"
            raise InputError(
                f"plan: it does not describe {planned.source!r}: {name}{said}. Make it again with `slim plan`."
            )


def pruned_state(
    model: PreTrainedModel, architecture: Architecture, facts: ModelFacts, keep: Keep
) -> dict[str, Tensor]:
    """The parameters that remain, under the names they have in the pruned model."""
    state = {}
    for name, parameter in model.named_parameters():
        cut, new = slice_of(name, architecture, facts, keep), renumbered(name, architecture, keep)
        if isinstance(cut, Slice):
            state[new] = parameter.detach().index_select(cut.dim, torch.tensor(cut.entries)).contiguous()
        elif cut == "all":
            state[new] = parameter.detach()
    if architecture.divided_by_layer and getattr(model.config, architecture.divided_by_layer):
        _keep_scores(state, architecture, facts, keep)
    return state


def _keep_scores(state: dict[str, Tensor], architecture: Architecture, facts: ModelFacts, keep: Keep) -> None:
    """Queries make up for the new number of their layer, where a family divides attention scores by it."""
    stay = [(layer, heads) for layer, heads in enumerate(keep) if heads is not None]
    for new, (layer, heads) in enumerate(stay):
        for module, parts in architecture.projections.items():
            for kind, dim in (("weight", -1 if architecture.transposed else 0), ("bias", 0)):
                name = f"{architecture.layers}.{new}.{module}.{kind}"
                if new != layer and name in state and parts[0] == "q":
                    state[name] = state[name].clone()
                    queries = state[name].narrow(dim, 0, len(heads) * facts.head_dim)
                    queries *= (new + 1) / (layer + 1)
