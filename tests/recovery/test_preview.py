"""The preview of a recovery before a model is loaded agrees with the stage itself, and which rows it takes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from slim.core.errors import InputError
from slim.data import tasks
from slim.models import load
from slim.pruning.checkpoint import prune
from slim.recovery import finetune, repair
from slim.recovery.context import recovery_context
from slim.recovery.layer_distillation import workload
from slim.recovery.preview import preview
from slim.recovery.settings import RepairSettings, TrainSettings
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.recovery.test_finetune import written
from tests.surgery import WHOLE

TRAINING = TrainSettings(samples=40, max_length=48, steps=5)


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    original = save_pico(make_pico("llama"), tmp_path / "original")
    prune(plan_of(original.facts, keeping((), (0, 2, 3, 5), WHOLE, WHOLE)), tmp_path / "pruned")
    return tmp_path / "pruned"


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        (repair.workload, RepairSettings(samples=40, max_length=48)),
        (finetune.workload, TRAINING),
        (workload, TRAINING),
    ],
)
def test_it_is_what_the_stage_tells(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, settings: Any
) -> None:
    """Rows by their roles, work and memory; without loading a model."""
    task = tasks.load_task(str(written(tmp_path / "rows.jsonl")))
    real = recovery_context(str(pruned), task, settings)
    told = stage(real, settings)
    monkeypatch.setattr(load, "load_model", None)
    found = preview(str(pruned), task, settings)
    assert found is not None
    assert {role: part.rows for role, part in found.drawn.parts.items()}.keys() == real.drawn.parts.keys()
    for role, part in real.drawn.parts.items():
        assert all(torch.equal(*pair) for pair in zip(part.rows, found.drawn[role].rows, strict=True))
    again = stage(found, settings)
    assert (again.rows, again.tokens, again.forwards) == (told.rows, told.tokens, told.forwards)
    assert (again.memory, again.disk, again.there) == (told.memory, told.disk, told.there)


def test_a_model_that_is_not_unpacked(pruned: Path, tmp_path: Path) -> None:
    """Is not unpacked for a look."""
    task = tasks.load_task(str(written(tmp_path / "rows.jsonl")))
    assert preview(str(pruned), task, TRAINING, original="bundled:smollm2-135m") is None


def test_bad_input_is_told_before_the_start(pruned: Path, tmp_path: Path) -> None:
    task = tasks.load_task(str(written(tmp_path / "rows.jsonl", rows=5)))
    with pytest.raises(InputError, match="samples=40"):
        preview(str(pruned), task, TRAINING)
    with pytest.raises(InputError, match=r"without a config\.json"):
        preview(str(tmp_path), task, TRAINING)
