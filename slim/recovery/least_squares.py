"""Closed-form repair: fit the remaining weights to the original's outputs by least squares, layer by layer.

The rows run through the original and through the pruned model side by side, one layer at a time. The output projections
of attention and MLP, which write to the residual stream, are corrected so that the residual where it is read next is
the original's again: with x the input of the projection and e the difference of the residual to the original's there,

    ΔW = E[e xᵀ] · (E[x xᵀ] + λ · mean(diag E[x xᵀ]) · I)⁻¹

so that earlier errors are corrected, too, and the layers before a removed block or layer compensate for its output.
SparseGPT (Frantar & Alistarh 2023) and FLAP (An et al. 2024) solve or correct against a layer's own pruned input; the
target here is the original model. λ is chosen for each matrix on the validation rows, which take no part in the fit; no
correction at all is one of the choices.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from slim.data.tasks import Batch
from slim.models.architectures import residual_multiplier
from slim.models.layerwise import Stream
from slim.models.load import Loaded
from slim.models.precision import products
from slim.models.units import Keep
from slim.recovery.projection_fit import Moments, Positions, Search

Part = Literal["attention", "mlp"]
Residuals = dict[int, dict[str, list[Tensor]]]
"""The original's residuals `between` attention and MLP of a layer and after it (`left`), and the outputs of its
projections where they are fitted by themselves.  # (B, T, E) of each batch"""


@dataclass(frozen=True)
class FittedMatrix:
    """Correction of a matrix: its λ, None where it was not corrected, and the share of the squared error on the
    validation rows that remains."""

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
    precision: str = "float32",
    residuals: Residuals | None = None,
) -> list[FittedMatrix]:
    """Correct the output projections of `pruned`, and return a record of each; layers are counted as in `pruned`.

    `keep` is the plan that it was cut by. Moments are of the batches in `fit`, λ is chosen on those in
    `choose`. Layers before the first removal stay as they are. `advance` is called with each layer before it. The rows
    go through both models with matrix products in `precision`. A tensor that is corrected is replaced, as the models
    may share it. The original's `residuals` of the same batches are read where they are there, and added where not.
    """
    rows = [*fit, *choose]
    was = Original(original, keep, rows, precision, residuals)
    now = Stream(pruned.model, pruned.architecture, rows, precision)
    search = Search()
    found: list[FittedMatrix] = []
    for index, layer in enumerate(was.stay):
        advance(index)
        if was.intact(index):
            now.advance(was.entering(index + 1))
        else:
            found += _Layer(was, now, index, len(fit), search).corrected(with_attention=keep[layer].attention)
    return found


class _Layer:
    """The current layer of both models: corrects its output projections, and advances the rows."""

    def __init__(self, was: "Original", now: Stream, index: int, fit: int, search: Search) -> None:
        self.was, self.now, self.index, self.fit, self.search = was, now, index, fit, search
        self.names = {"attention": now.architecture.output, "mlp": now.architecture.mlp_output}
        self.found: list[FittedMatrix] = []

    def corrected(self, with_attention: bool) -> list[FittedMatrix]:
        """Correct the layer's projections, advance the rows, and return a record of each projection."""
        if self.was.parallel:
            self._side_by_side(["attention", "mlp"] if with_attention else ["mlp"])
        else:
            self._mlp(self._attention() if with_attention else None)
        return self.found

    def _attention(self) -> list[Tensor]:
        """Correct the output projection of attention, and return its new output.  # (B, T, E) of each batch"""
        goals = self.was.goals(self.index, "attention")
        if not self.was.by_itself:
            goals = self._short(goals, self.now.hidden)
        return self._correct("attention", self._run(["attention"], until="attention")["attention"], goals)

    def _mlp(self, attention: Sequence[Tensor] | None) -> None:
        """Correct the output projection of the MLP, which reads the output of attention."""
        goals, there = self.was.goals(self.index, "mlp"), self.now.hidden
        read = self._run(["mlp"], "mlp", attention)["mlp"]
        if self.was.by_itself:  # a norm follows, so its output runs through that once more
            self._correct("mlp", read, goals)
            self.now.advance(attention=attention)
            return
        if attention is not None:
            there = self._with(there, attention)
        self.now.advance(self._with(there, self._correct("mlp", read, self._short(goals, there))))

    def _side_by_side(self, parts: Sequence[Part]) -> None:
        """Correct the parts of a layer that read the same residual, one after the other."""
        short = list(self._short(self.was.leaving(self.index), self.now.hidden))
        read = self._run(parts)
        written = {part: self._written(part, read[part]) for part in parts}
        for part in parts:
            others = [outputs for other, outputs in written.items() if other != part]
            goals = (goal - sum(rest) for goal, *rest in zip(short, *others, strict=True))
            written[part] = self._correct(part, read[part], goals)
        self.now.advance(self._with(self.now.hidden, *written.values()))

    def _run(
        self, parts: Sequence[Part], until: Part | None = None, attention: Sequence[Tensor] | None = None
    ) -> dict[Part, list[Tensor]]:
        """Return the inputs of the projections of `parts`.  # (B, T, F) of each batch"""
        read: dict[Part, list[Tensor]] = {part: [] for part in parts}
        runs = self.now.seen({part: self._writer(part) for part in parts}, until, attention)
        for hidden, seen in zip(self.now.hidden, runs, strict=True):
            for part in parts:
                read[part].append(
                    seen[f"{part}.in"].reshape(*hidden.shape[:2], -1)
                )  # some MLPs flatten the rows of a batch
        return read

    def _short(self, goals: Iterable[Tensor], there: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the missing output to reach the goals, before the residual multiplier.  # (B, T, E)"""
        return ((goal - one) / self.was.scale for goal, one in zip(goals, there, strict=True))

    def _with(self, there: Sequence[Tensor], *added: Sequence[Tensor]) -> list[Tensor]:
        """Return the residual with the outputs `added` to it.  # (B, T, E) of each batch"""
        return [one + self.was.scale * sum(parts) for one, *parts in zip(there, *added, strict=True)]

    @torch.no_grad()
    def _correct(self, part: Part, read: Sequence[Tensor], goals: Iterable[Tensor]) -> list[Tensor]:
        """Correct a projection by its inputs (B, T, F) and the goals of its output (B, T, E); return its new output."""
        writer = self._writer(part)
        fit, choose = Moments(writer), Positions(writer)
        for place, (batch, x, goal) in enumerate(zip(self.now.batches, read, goals, strict=True)):
            valid = batch.valid.to(x.device)
            (fit if place < self.fit else choose).add(x[valid], goal[valid])
        change, strength, left = self.search.solved(self.names[part], fit, choose)
        self.found.append(FittedMatrix(self.index, self.names[part], strength, left))
        if change is not None:
            _apply(writer, change)
        return self._written(part, read)

    @torch.no_grad()
    def _written(self, part: Part, read: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs of a projection for its inputs (B, T, F).  # (B, T, E) of each batch"""
        with products(self.now.precision, self.now.model):
            return [self._writer(part)(x) for x in read]

    def _writer(self, part: Part) -> Any:
        return self.now.layer.get_submodule(self.names[part])


class Original:
    """The original's residuals at the places where a pruned model reads its own.

    Where a norm follows a projection, the residual is not linear in its output: the projection is then fitted
    `by_itself`, to the output of the original's projection. All `residuals` are kept where they are given; otherwise
    those of the layer at hand alone.
    """

    def __init__(
        self,
        loaded: Loaded,
        keep: Keep,
        rows: Sequence[Batch],
        precision: str = "float32",
        residuals: Residuals | None = None,
    ) -> None:
        architecture = loaded.architecture
        self.stream = Stream(loaded.model, architecture, rows, precision)
        self.architecture, self.keep = architecture, keep
        self.stay = [layer for layer, kept in enumerate(keep) if kept.layer]
        self.whole = loaded.facts.heads
        self.scale = residual_multiplier(loaded.model, architecture)
        self.parallel = bool(architecture.parallel and getattr(loaded.model.config, architecture.parallel))
        self.by_itself = architecture.attention_adds != architecture.attention
        self.all_kept = residuals is not None
        self.residuals: Residuals = {} if residuals is None else residuals

    def intact(self, index: int) -> bool:
        """Whether all layers of the pruned model up to `index`, and the next reader, are unchanged."""
        return intact(self.keep, self.whole, index)

    def goals(self, index: int, part: Part) -> list[Tensor]:
        """Return the goals of a part of the pruned model's layer `index`.  # (B, T, E) each

        They are the original's residual where the part's output is read next, or the original projection's output where
        a projection is fitted by itself.
        """
        layer = self.stay[index]
        if self.by_itself:
            return self._layer(layer)[part]
        if part == "attention" and not self.parallel:
            return self._layer(layer)["between"]
        return self.leaving(index)

    def leaving(self, index: int) -> list[Tensor]:
        """Return the original's residual where the output of pruned layer `index` is read next.  # (B, T, E) each"""
        if index + 1 == len(self.stay):
            return self.entering(len(self.keep))
        reader = self.stay[index + 1]
        return self.entering(reader) if self.keep[reader].attention or self.parallel else self._layer(reader)["between"]

    def entering(self, layer: int) -> list[Tensor]:
        """Advance to a layer of the original, and return the residual that enters it.  # (B, T, E) each"""
        while (here := self.stream.index) < layer:
            known = self.residuals.get(here)
            self.stream.advance(known["left"] if known else None)
            if self.all_kept:
                self.residuals.setdefault(here, {"left": self.stream.hidden})
            else:
                self.residuals.pop(here, None)
        return self.stream.hidden

    def _layer(self, layer: int) -> dict[str, list[Tensor]]:
        """Return the residuals of a layer, and outputs of its projections.  # (B, T, E) each"""
        self.entering(layer)
        if "between" not in self.residuals.get(layer, ()):
            module, names = self.stream.layer, self.architecture
            modules = {
                "adds": module.get_submodule(names.attention_adds),
                "attention": module.get_submodule(names.output),
                "mlp": module.get_submodule(names.mlp_output),
            }
            found: dict[str, list[Tensor]] = {"between": [], "attention": [], "mlp": [], "left": []}
            for hidden, seen in zip(self.stream.hidden, self.stream.seen(modules), strict=True):
                found["between"].append(hidden + self.scale * seen["adds.out"])
                found["left"].append(seen["left"])
                if self.by_itself:
                    found["attention"].append(seen["attention.out"])
                    found["mlp"].append(seen["mlp.out"].reshape(hidden.shape))
            self.residuals[layer] = found
        return self.residuals[layer]


def intact(keep: Keep, heads: int, index: int) -> bool:
    """Whether all remaining layers up to `index`, and the next reader, are unchanged."""
    reached = [layer for layer, kept in enumerate(keep) if kept.layer][: index + 2]
    if len(reached) < index + 2 or reached != list(range(index + 2)):
        return False
    *before, reader = (keep[layer] for layer in reached)
    return all(len(kept.heads) == heads for kept in before) and reader.attention


@torch.no_grad()
def _apply(writer: Any, change: Tensor) -> None:
    """Add `change` (F, E) to the weights of a projection, its last row to the bias where it has one."""
    if writer.bias is not None:
        writer.bias = nn.Parameter(writer.bias + change[-1].to(writer.bias), requires_grad=False)
        change = change[:-1]
    added = (change if isinstance(writer, Conv1D) else change.T).to(writer.weight)
    writer.weight = nn.Parameter(writer.weight + added, requires_grad=False)
