"""The forecast after repair: the loss of a removal once it is repaired, from a loss sketch of the residuals.

Repair gives every output projection the least-squares estimate of what is missing, so a head whose output the others
and the MLP can express costs nothing in the end, however much it does now. Here this is forecast before anything is
removed: with x the heads' outputs and z what the MLP's output projection reads, the outputs x_r of the heads that go
are regressed on [x_k, z], and only the residual enters the sketch,

    effect of a choice = Σ_t uₜ,r · (xₜ,r − x̂ₜ,r),    u = the sketch's direction pulled back to x.

The regression is by rows of its own (Frisch-Waugh: z is partialled out once per layer, so that a choice of heads costs
one small solve). Effects of layers add up as in the sketch, and half their squared sum is the forecast.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slim.calibration.passes import rounding
from slim.calibration.record import Calibration, load_calibration
from slim.calibration.reload import calibrated_rows, same_model
from slim.calibration.sketch import SEGMENT, Directions, HeadInput
from slim.core.errors import InputError
from slim.core.regression import add_moments, ridge, whole
from slim.core.reporter import SILENT, Reporter
from slim.data import tasks
from slim.data.batch_runner import subset
from slim.models.architectures import decoder_layers
from slim.models.load import Loaded
from slim.models.precision import products, rounded
from slim.models.units import LayerKeep
from slim.planning.after_repair_record import FILE, AfterRepairSketch, load_after_repair, save_after_repair
from slim.planning.layer_options import all_candidates
from slim.planning.request import AfterRepairRequest

RIDGE = 0.1
"""λ of the regressions, in mean squares of what all heads of a layer put out."""


def after_repair_sketch(calibration: Calibration, reporter: Reporter = SILENT) -> AfterRepairSketch:
    """The sketch, measured on the calibration's own rows and kept beside it; read again where it is there already.

    Raises InputError where model or data are not those of the calibration any more, or too few.
    """
    if calibration.path is not None and (calibration.path / FILE).is_file():
        return load_after_repair(calibration.path)
    loaded = same_model(calibration, reporter)
    encoded = calibrated_rows(calibration, loaded, reporter)
    found = measure_after_repair(loaded, encoded, calibration, reporter)
    if calibration.path is not None:
        save_after_repair(found, calibration.path)
    return found


def forecast_after_repair(request: AfterRepairRequest, reporter: Reporter = SILENT) -> Path:
    """Measure the sketch beside a calibration where it is not there yet, and return the calibration's folder."""
    folder = Path(request.calibration)
    after_repair_sketch(load_calibration(folder), reporter)
    return folder


def measure_after_repair(
    loaded: Loaded, encoded: tasks.Encoded, calibration: Calibration, reporter: Reporter = SILENT
) -> AfterRepairSketch:
    """The sketch of `loaded`: every other row fits the regressions, the rest says what they leave."""
    if calibration.sketch is None:
        raise InputError("calibration: it has no loss sketch: calibrate with --kl fisher or exact.")
    if _after_norm(loaded):
        raise InputError(
            f"model type {loaded.facts.model_type!r}: a norm follows what attention puts out, so repair is not "
            "linear there: plan without --after-repair."
        )
    if len(encoded.rows) < 6:
        raise InputError(f"samples: {len(encoded.rows)} rows are too few for a forecast after repair: take 6.")
    settings, facts = calibration.facts.settings, loaded.facts
    fit, rest = (
        list(tasks.batches(subset(encoded, range(start, len(encoded.rows), 2)), settings.batch_size))
        for start in (0, 1)
    )
    kept = all_candidates(facts, calibration.sketch.fold(0))
    total = len(fit) + 3 * len(rest) + facts.layers
    precision = rounding(loaded, settings)
    moments = _Moments(loaded, precision)
    with rounded(precision, decoder_layers(loaded.model, loaded.architecture)):
        for done, batch in enumerate(fit):
            reporter.progress(done, total, "Reading what heads and MLPs put out")
            moments.add(batch)
    found = _Outputs(loaded, moments, settings.seed, precision)
    for done, batch in enumerate(rest):
        reporter.progress(len(fit) + 3 * done, total, "Sketching what remains")
        found.add(batch)
    effects = []
    for layer, options in enumerate(kept):
        reporter.progress(len(fit) + 3 * len(rest) + layer, total, "Regressing what may go on what may stay")
        effects.append(found.effects(layer, options, moments.residual(layer, found.of_z[layer])))
    sequence = np.array(found.sequence)
    return AfterRepairSketch(kept, effects, sequence, np.array(found.tokens))


class _Watched:
    """Records the inputs of the output projections of every layer's attention and MLP in a forward."""

    def __init__(self, loaded: Loaded, leaf: bool = False) -> None:
        self.loaded, self.leaf = loaded, leaf
        self.x: list[Tensor] = []
        self.z: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        architecture = self.loaded.architecture
        self.x, self.z = [], []
        with ExitStack() as stack:
            for layer in decoder_layers(self.loaded.model, architecture):
                for name, kept in ((architecture.output, self.x), (architecture.mlp_output, self.z)):
                    hook = layer.get_submodule(name).register_forward_pre_hook(self._keeping(kept))
                    stack.callback(hook.remove)
            yield

    def _keeping(self, kept: list[Tensor]) -> Any:
        def keep(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            value = args[0]
            if self.leaf and kept is self.x and not kept:
                value = value.detach().requires_grad_()  # everything after it then has a gradient
            kept.append(value)
            return (value,)

        return keep


class _Moments:
    """Second moments of x and z of every layer, from forwards in `precision`; what regressions need."""

    def __init__(self, loaded: Loaded, precision: str) -> None:
        self.loaded, self.precision = loaded, precision
        self.joint: list[Tensor] = []  # of [x, z], the upper triangle, per layer (F_x + F_z, F_x + F_z)

    @torch.no_grad()
    def add(self, batch: tasks.Batch) -> None:
        watched = _Watched(self.loaded)
        with watched.watching(), products(self.precision, self.loaded.model):
            self.loaded.model(**batch.inputs(self.loaded.model.device), use_cache=False, logits_to_keep=1)
        valid = batch.valid.to(self.loaded.model.device)
        for layer, (x, z) in enumerate(zip(watched.x, watched.z, strict=True)):
            values = torch.cat([x[valid], z.reshape(*x.shape[:2], -1)[valid]], -1).float()  # (n, F_x + F_z)
            if layer == len(self.joint):
                self.joint.append(values.new_zeros(values.shape[1], values.shape[1]))
            add_moments(self.joint[layer], values)

    def of_z(self, layer: int) -> Tensor:
        """Return the matrix that predicts x from z.  # (F_z, F_x)"""
        joint, width = self._split(layer)
        zz, zx = joint[width:, width:], joint[width:, :width]
        return _predicting(zx, zz)

    def residual(self, layer: int, of_z: Tensor) -> Tensor:
        """Second moments of what z does not predict of x.  # (F_x, F_x)"""
        joint, width = self._split(layer)
        change = of_z.double()
        xz = joint[:width, width:].double() @ change
        return joint[:width, :width].double() - xz - xz.T + change.T @ joint[width:, width:].double() @ change

    def _split(self, layer: int) -> tuple[Tensor, int]:
        return whole(self.joint[layer]), self.loaded.facts.heads * self.loaded.facts.head_dim


class _Outputs:
    """Of rows that no regression saw: what z leaves of x, and the sketch's direction there, which goes back in
    `precision`."""

    def __init__(self, loaded: Loaded, moments: _Moments, seed: int, precision: str) -> None:
        self.loaded, self.seed, self.precision = loaded, seed, precision
        self.x: list[list[Tensor]] = [[] for _ in range(loaded.facts.layers)]
        self.u: list[list[Tensor]] = [[] for _ in range(loaded.facts.layers)]
        self.segment: list[Tensor] = []
        self.sequence: list[int] = []
        self.tokens: list[int] = []
        self.of_z = [moments.of_z(layer) for layer in range(loaded.facts.layers)]

    def add(self, batch: tasks.Batch) -> None:
        model, watched = self.loaded.model, _Watched(self.loaded, leaf=True)
        with torch.enable_grad(), watched.watching(), HeadInput(model) as head:
            logits = model(**batch.inputs(model.device), use_cache=False).logits
        directions = Directions(head, logits, batch, 1, self.seed)
        with products(self.precision, model):
            pulled = torch.autograd.grad(head.hidden, watched.x, directions.of(0))
        valid = batch.valid.to(model.device)
        places = (batch.valid.cumsum(1) - 1).clamp_min(0) // SEGMENT  # (B, T)
        for row, here in enumerate(batch.valid):
            self.segment.append(places[row][here] + len(self.sequence))
            self.sequence += [len(self.tokens)] * (int(places[row][here].max()) + 1)
            self.tokens.append(int(batch.predicted[row].sum()))
        for layer, (x, z, u) in enumerate(zip(watched.x, watched.z, pulled, strict=True)):
            known = z.detach().reshape(*x.shape[:2], -1)[valid].float() @ self.of_z[layer]
            self.x[layer].append(x[valid].detach().float() - known)
            self.u[layer].append(u[valid].float())

    def effects(self, layer: int, options: Sequence[LayerKeep], moments: Tensor) -> NDArray[np.float32]:
        """Of each option of a layer on each segment.  # (options, R)

        Head by head: of an option that removes head g and keeps head k the effect has Σ_t u_g · x_g, less
        Σ_t u_g · B_kg x_k, where the matrix B_kg is the part of k in the regression of g.
        """
        size, heads = self.loaded.facts.head_dim, self.loaded.facts.heads
        x, u = (self._by_segment(torch.cat(part[layer])) for part in (self.x, self.u))  # (R, S, H, D) twice
        regressions = _Regressions(moments, size)
        fitted = [regressions.of(option.heads) for option in options]
        gone = [sorted(set(range(heads)) - set(option.heads)) for option in options]
        removed = torch.zeros(len(options), heads, device=x.device)
        for place, here in enumerate(gone):
            removed[place, here] = 1
        found = removed @ (x * u).sum((1, 3)).T  # (options, R)
        for kept, went in product(range(heads), range(heads)):
            places = [place for place, option in enumerate(options) if kept in option.heads and went in gone[place]]
            if not places:
                continue
            pairs = x[:, :, kept].mT @ u[:, :, went]  # (R, D, D)
            parts = [
                _block(fitted[place], options[place].heads.index(kept), gone[place].index(went), size)
                for place in places
            ]
            found[places] -= torch.stack(parts).flatten(1) @ pairs.flatten(1).T
        return found.cpu().numpy()

    def _by_segment(self, values: Tensor) -> Tensor:
        """Return values (n, H·D) of all positions by segment, zero where one is short.  # (R, S, H, D)"""
        segment = torch.cat(self.segment).to(values.device)
        counts = segment.bincount(minlength=len(self.sequence))
        place = torch.arange(len(segment), device=values.device) - (counts.cumsum(0) - counts)[segment]
        found = values.new_zeros(len(counts), int(counts.max()), values.shape[1])
        found[segment, place] = values
        return found.unflatten(2, (-1, self.loaded.facts.head_dim))


def _after_norm(loaded: Loaded) -> bool:
    return loaded.architecture.attention_adds != loaded.architecture.attention


class _Regressions:
    """Regressions of what some heads of a layer put out on what the others do, from second moments (F_x, F_x).

    With Λ the inverse of the regularized moments, (M_kk + λ)⁻¹ M_kg is −Λ_kg Λ_gg⁻¹ too: of heads that stay and heads
    that go, the fewer are solved for.
    """

    def __init__(self, moments: Tensor, size: int) -> None:
        self.size = size
        regularized = moments.clone()
        regularized.diagonal().add_(RIDGE * moments.diagonal().mean().clamp_min(1e-12))
        self.direct, self.inverse = regularized, torch.linalg.inv(regularized)

    def of(self, kept: Sequence[int]) -> Tensor:
        """Return the matrix that predicts what other heads put out from what the kept ones do.  # (kept, gone)"""
        heads = torch.arange(len(self.direct), device=self.direct.device).view(-1, self.size)
        stays = torch.zeros(len(heads), dtype=torch.bool, device=heads.device)
        stays[list(kept)] = True
        here, gone = heads[stays].flatten(), heads[~stays].flatten()
        if len(here) <= len(gone):
            return _solved(self.direct, here, gone)
        return -_solved(self.inverse, gone, here).T


def _solved(matrix: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """Return matrix[these, these]⁻¹ · matrix[these, others]."""
    return ridge(matrix[these[:, None], these], matrix[these[:, None], others], 0.0, torch.float32)


def _predicting(xy: Tensor, xx: Tensor) -> Tensor:
    """Return the matrix that predicts y from x.  # (F_x, F_y)"""
    return ridge(xx, xy, RIDGE, torch.float32)  # enough for a λ as large as this one


def _block(matrix: Tensor, row: int, column: int, size: int) -> Tensor:
    """Return one head's part of a matrix for another's.  # (D, D)"""
    return matrix[row * size : (row + 1) * size, column * size : (column + 1) * size]
