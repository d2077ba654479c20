"""Closed-form repair: least squares of what is left onto what was, layer by layer, without training.

The rows run through the original and through the pruned model side by side, one layer at a time. Whatever writes to the
residual stream (the output projections of attention and MLP) is corrected so that the residual where it is read next is
the original's again: with x what the projection reads and e what is missing there,

    ΔW = E[e xᵀ] · (E[x xᵀ] + λ · mean(diag E[x xᵀ]) · I)⁻¹

so that earlier errors are mended, too, and what a removed block or layer gave is absorbed by what remains before it.
SparseGPT (Frantar & Alistarh 2023) and FLAP (An et al. 2024) solve or correct against a layer's own pruned input; the
target here is the original model. λ is chosen for each matrix on rows that took no part in the fit; no correction at
all is one of the choices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from slim.core.records import Keep
from slim.data.tasks import Batch
from slim.models.architectures import residual_multiplier
from slim.models.layerwise import Stream
from slim.models.load import Loaded

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""The λ that are tried, strongest first."""
PATIENCE = 2
"""Weaker λ that may do worse, one after another, before no more are tried."""


Part = Literal["attention", "mlp"]


@dataclass(frozen=True)
class FittedMatrix:
    """How a matrix was corrected: with which λ, None for not at all, and the share of the squared error on the choosing
    rows that is left."""

    layer: int
    name: str
    strength: float | None
    left: float


def repair_weights(
    original: Loaded,
    pruned: Loaded,
    keep: Keep,
    fit: Sequence[Batch],
    choose: Sequence[Batch],
    advance: Callable[[int], None] = lambda layer: None,
) -> list[FittedMatrix]:
    """Corrects the weights of `pruned` in place and says how; `layer` counts the layers of the pruned model.

    `keep` says what of each of the original's layers stayed in it. The moments are of the rows in `fit`, λ is chosen on
    those in `choose`. What comes before the first removal stays as it is. `advance` hears of each layer before it.
    """
    rows = [*fit, *choose]
    was = Original(original, keep, rows)
    now = Stream(pruned.model, pruned.architecture, rows)
    architecture, found = pruned.architecture, []
    writers: dict[Part, str] = {"attention": architecture.output, "mlp": architecture.mlp_output}
    for index, layer in enumerate(was.stay):
        advance(index)
        if was.intact(index):
            was.stream.advance()
            now.advance(was.stream.hidden)
            continue
        for part, name in writers.items():
            if part == "attention" and not keep[layer]:
                continue
            writer: Any = now.layer.get_submodule(name)
            fitting, choosing = _Moments(), _Moments()
            for place, (x, error) in enumerate(_missing(was.goals(index, part), now, writer, was, part)):
                valid = rows[place].valid.to(x.device)
                (fitting if place < len(fit) else choosing).add(x[valid], error[valid], writer.bias is not None)
            change, fitted = _solved(fitting, choosing, index, name)
            found.append(fitted)
            if change is not None:
                _correct(writer, change)
        now.advance()
    return found


def _missing(
    goals: Sequence[Tensor], now: Stream, writer: Any, was: "Original", part: Part
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `writer` reads in each batch (B, T, F), and what it fails to write (B, T, E)."""
    early = was.by_itself or (part == "attention" and not was.parallel)
    runs = now.seen({"writer": writer}, until="writer" if early else None)
    for hidden, seen, goal in zip(now.hidden, runs, goals, strict=True):
        x = seen["writer.in"].reshape(*hidden.shape[:2], -1)
        if was.by_itself:
            yield x, goal - writer(x)
        elif early:
            yield x, (goal - hidden) / was.scale - writer(x)
        else:
            yield x, (goal - seen["left"]) / was.scale


class Original:
    """What the original has where a pruned model reads.

    Where a norm follows a projection, its output cannot be steered in a straight line: it is then fitted `by_itself`,
    onto what the original's projection puts out.
    """

    def __init__(self, loaded: Loaded, keep: Keep, rows: Sequence[Batch]) -> None:
        architecture = loaded.architecture
        self.stream = Stream(loaded.model, architecture, rows)
        self.architecture, self.keep = architecture, keep
        self.stay = [layer for layer, heads in enumerate(keep) if heads is not None]
        self.whole = loaded.facts.heads
        self.scale = residual_multiplier(loaded.model, architecture)
        self.parallel = bool(architecture.parallel and getattr(loaded.model.config, architecture.parallel))
        self.by_itself = architecture.attention_adds != architecture.attention
        self.seen: dict[str, list[Tensor]] = {}

    def intact(self, index: int) -> bool:
        """Whether everything up to a layer of the pruned model, and what reads it next, is as it was."""
        return intact(self.keep, self.whole, index)

    def goals(self, index: int, part: Part) -> list[Tensor]:
        """The original's residual where what `part` writes is read next; in the pruned model's layer `index`."""
        layer = self.stay[index]
        if self.by_itself:
            return self._layer(layer)[part]
        if part == "attention" and not self.parallel:
            return self._layer(layer)["between"]
        return self.leaving(index)

    def leaving(self, index: int) -> list[Tensor]:
        """The original's residual where what leaves the pruned model's layer `index` is read next.  # (B, T, E) each"""
        if index + 1 == len(self.stay):
            return self._entering(len(self.keep))
        reader = self.stay[index + 1]
        return self._entering(reader) if self.keep[reader] or self.parallel else self._layer(reader)["between"]

    def _entering(self, layer: int) -> list[Tensor]:
        while self.stream.index < layer:
            if self.seen:
                self.stream.advance(self.seen["left"])
                self.seen = {}
            else:
                self.stream.advance()
        return self.stream.hidden

    def _layer(self, layer: int) -> dict[str, list[Tensor]]:
        """What is seen of a layer: `between` its attention and MLP, what its projections put out, and what leaves."""
        self._entering(layer)
        if not self.seen:
            module, names = self.stream.layer, self.architecture
            watched = {
                "adds": module.get_submodule(names.attention_adds),
                "attention": module.get_submodule(names.output),
                "mlp": module.get_submodule(names.mlp_output),
            }
            found: dict[str, list[Tensor]] = {"between": [], "attention": [], "mlp": [], "left": []}
            for hidden, seen in zip(self.stream.hidden, self.stream.seen(watched), strict=True):
                found["between"].append(hidden + self.scale * seen["adds.out"])
                found["left"].append(seen["left"])
                if self.by_itself:
                    found["attention"].append(seen["attention.out"])
                    found["mlp"].append(seen["mlp.out"].reshape(hidden.shape))
            self.seen = found
        return self.seen


def intact(keep: Keep, heads: int, index: int) -> bool:
    """Whether everything up to the layer `index` of what is left, and what reads it next, is as it was."""
    reached = [layer for layer, kept in enumerate(keep) if kept is not None][: index + 2]
    if len(reached) < index + 2 or reached != list(range(index + 2)):
        return False
    *before, reader = (keep[layer] or () for layer in reached)
    return all(len(kept) == heads for kept in before) and bool(reader)


class _Moments:
    """Second moments of what a projection reads, alone and with what is missing: float32 products, float64 sums."""

    def __init__(self) -> None:
        self.xx = self.xe = torch.zeros(())
        self.ee = 0.0

    def add(self, x: Tensor, error: Tensor, biased: bool) -> None:
        """Takes in positions: x (n, F), with a column of ones for a bias, and the error (n, E)."""
        x, error = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (x, error))
        if biased:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        self.xx = self.xx + (x.T @ x).double()  # (F, F)
        self.xe = self.xe + (x.T @ error).double()  # (F, E)
        self.ee += float(error.double().square().sum())

    def left(self, change: Tensor) -> float:
        """The squared error with `change` (F, E)."""
        return self.ee - 2 * float((change * self.xe).sum()) + float((change * (self.xx @ change)).sum())


def _solved(fit: _Moments, choose: _Moments, layer: int, name: str) -> tuple[Tensor | None, FittedMatrix]:
    """The change (F, E) that leaves the least error on the choosing rows; None where any makes it larger."""
    best: tuple[float, float | None, Tensor | None] = (choose.ee, None, None)
    mean, ones, worse = fit.xx.diagonal().mean(), torch.eye(len(fit.xx)).to(fit.xx), 0
    for strength in STRENGTHS:
        factor, failed = torch.linalg.cholesky_ex(fit.xx + strength * mean * ones)
        if int(failed):
            break
        change = torch.cholesky_solve(fit.xe, factor)
        left = choose.left(change)
        worse = 0 if left < best[0] else worse + 1
        if left < best[0]:
            best = (left, strength, change)
        elif worse == PATIENCE:
            break
    left, strength, change = best
    return change, FittedMatrix(layer, name, strength, max(left, 0.0) / choose.ee if choose.ee else 1.0)


@torch.no_grad()
def _correct(writer: Any, change: Tensor) -> None:
    """Adds a change (F, E) to a projection, its last row to the bias where it has one."""
    if writer.bias is not None:
        writer.bias += change[-1].to(writer.bias)
        change = change[:-1]
    writer.weight += (change if isinstance(writer, Conv1D) else change.T).to(writer.weight)
