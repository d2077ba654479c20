"""A checkpoint that was just written, loaded from its files and compared with the model that it stands for."""

from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slim.core.errors import InputError, SlimError
from slim.models.load import Loaded, model_in_files, resolve_dtype
from slim.models.stored_layers import widened
from slim.models.units import Keep
from slim.pruning.trial import masked

ROWS, LENGTH = 2, 8
"""Rows that are compared and tokens of each: enough to reach every layer, and too few to take time."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Largest difference of logits by the number format they are computed in, as a share of their size: sums in another
order stay far below it, and a tensor that is another, or in another place, far above."""
ROUNDINGS = 16
"""The same in roundings of the stored format, where a cut scales weights and so rounds them once more."""


def check_written(folder: Path, pruned: Loaded, keep: Keep | None = None, original: Loaded | None = None) -> None:
    """Raise SlimError where the checkpoint in `folder` cannot be loaded from its files, or computes other logits there
    than `original` where what `keep` removes is gated; or without these, than `pruned` in memory.

    Both compute in float32, or float64 where that is their format, one layer's weights at a time.
    """
    with torch.no_grad():
        if original is not None and keep is not None:
            like, wide = "the original with the same units gated", _wide(original)
            with masked(wide, keep):
                expected = _logits(wide.model)
        else:
            like, wide = "the model in memory", _wide(pruned)
            expected = _logits(wide.model)
        try:
            found = _logits(model_in_files(str(folder), folder, wide.model.dtype))
        except InputError as error:
            raise SlimError(f"checkpoint: nothing was kept, as what was written cannot be loaded: {error}") from error
    allowed = TOLERANCE[wide.model.dtype]
    if pruned.architecture.divided_by_layer:
        allowed = max(allowed, ROUNDINGS * torch.finfo(resolve_dtype(pruned.facts.dtype)).eps)
    off, size = float((found - expected).norm()), float(expected.norm())
    if not off <= allowed * size:
        raise SlimError(
            f"checkpoint: nothing was kept, as what was written computes other logits than {like}: they differ by "
            f"{off / size if size else off:.1e} of their size, where {allowed:.0e} is allowed; report this model."
        )


def _wide(loaded: Loaded) -> Loaded:
    """Return a model that computes on the CPU in one of the formats of TOLERANCE; itself where it does."""
    model = loaded.model
    formats = {parameter.dtype for parameter in model.parameters()}
    wide = reduce(torch.promote_types, formats, torch.float32)
    if model.device.type == "cpu" and formats == {wide}:
        return loaded
    return replace(loaded, model=widened(model, wide))


def _logits(model: Any) -> Tensor:
    """Return the logits of rows that are the same for every model of a vocabulary.  # (B, T, V)"""
    ids = torch.randint(model.config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, use_cache=False).logits
