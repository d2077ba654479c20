"""The estimate of a calibration before it starts, and that its progress is counted in the same unit."""

from collections.abc import Callable
from math import prod

import psutil
import pytest
import torch

from slim.calibration.calibrate import measure
from slim.calibration.facts import CalibrationSettings
from slim.calibration.resources import BLOCK_ROWS, WATCH, ablation_cost, forwards, rows_ablated, sketch_cost, workload
from slim.core import resources
from slim.core.resources import Workload
from slim.data.tasks import Encoded
from slim.models.load import Loaded
from tests.pico import random_rows
from tests.reference import TASK
from tests.reporting import Heard

LENGTHS = (5, 11, 3, 8, 16, 7, 4, 9, 20, 2, 6, 12)
ENCODED = Encoded(random_rows(LENGTHS), 0)


@pytest.fixture(scope="module")
def loaded(pico: Callable[..., Loaded]) -> Loaded:
    """A llama of two layers."""
    return pico("llama", layers=2)


@pytest.mark.parametrize("kl", ["fisher", "exact", "none"])
@pytest.mark.parametrize("draws", [1, 3])
def test_the_work_done_is_the_work_told(loaded: Loaded, kl: str, draws: int) -> None:
    """Progress starts at nothing, never falls, and ends at exactly the forwards that were estimated."""
    settings = CalibrationSettings.model_validate({"kl": kl, "draws": draws})
    heard = Heard()
    measure(loaded, ENCODED, TASK, settings, heard)
    done, totals, messages = zip(*heard.steps, strict=True)
    assert set(totals) == {forwards(loaded.facts, LENGTHS, settings)}
    assert done[0] == 0
    assert list(done) == sorted(done)
    assert done[-1] == pytest.approx(totals[0])
    watching = {"Watching every head"}
    both = {"Watching every head and sketching the loss", "Ablating units one at a time"}
    assert set(messages) == {"Starting"} | (watching if kl == "none" else both)


def test_forwards_are_counted_by_what_is_done(loaded: Loaded) -> None:
    """Watching takes all tokens, the sketch too and more with every draw, ablations those of their rows."""
    tokens, watched = sum(LENGTHS), WATCH * sum(LENGTHS)

    def counted(**settings: object) -> float:
        return forwards(loaded.facts, LENGTHS, CalibrationSettings.model_validate(settings))

    assert counted(kl="none", draws=9) == pytest.approx(watched)
    sketched = watched - tokens + sketch_cost(2) * tokens
    assert counted(draws=2) == pytest.approx(sketched + ablation_cost(2, 1) * (3 + 5 + 6 + 20))
    assert counted(draws=2, kl="exact") == pytest.approx(sketched + ablation_cost(2, 9) * sum(LENGTHS[::2]))
    assert sketch_cost(3) - sketch_cost(2) == pytest.approx(sketch_cost(2) - sketch_cost(1))
    assert sketch_cost(2) > sketch_cost(1)
    assert ablation_cost(30, 10) > ablation_cost(30, 1) > 1
    assert ablation_cost(30, 1) < 31, "each starts at its own layer, so it is less than a forward"
    assert ablation_cost(30, 1, "bfloat16") < ablation_cost(30, 1)
    assert sketch_cost(1, "bfloat16") < sketch_cost(1)
    rounded = forwards(loaded.facts, LENGTHS, CalibrationSettings(draws=2), "bfloat16")
    assert rounded < counted(draws=2)


def test_ablated_rows_are_every_other_or_a_few_of_them() -> None:
    """Exact: every other row. Blocks alone: four of those, the shortest and the longest among them. None: none."""
    assert rows_ablated(LENGTHS, CalibrationSettings(kl="exact")) == [0, 2, 4, 6, 8, 10]
    assert rows_ablated(LENGTHS, CalibrationSettings(kl="none")) == []
    chosen = rows_ablated(LENGTHS, CalibrationSettings())
    assert len(chosen) == BLOCK_ROWS
    assert [LENGTHS[index] for index in chosen] == [3, 5, 6, 20]  # of 3 4 5 6 16 20
    assert rows_ablated(LENGTHS[:5], CalibrationSettings()) == [0, 2, 4]
    assert rows_ablated(LENGTHS[:5], CalibrationSettings(kl="none")) == []


def test_time_follows_the_work_and_the_machine(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two operations per weight and forward, at a share of a matrix product's speed."""
    monkeypatch.setattr(resources, "matrix_speed", lambda device, dtype: 1e9)
    parameters = sum(map(prod, loaded.facts.shapes.values()))
    settings = CalibrationSettings()
    found = workload(loaded.facts, LENGTHS, settings, torch.device("cpu"), torch.float32)
    assert found.seconds == pytest.approx(2 * parameters * found.forwards / (resources.EFFICIENCY * 1e9))
    assert (found.rows, found.tokens) == (12, sum(LENGTHS))
    assert found.memory > 4 * parameters
    wide = workload(loaded.facts, LENGTHS, settings, torch.device("cpu"), torch.float64)
    one = workload(loaded.facts, LENGTHS, CalibrationSettings(batch_size=1), torch.device("cpu"), torch.float32)
    assert wide.memory > found.memory > one.memory


def test_speed_is_measured() -> None:
    """Some number of operations per second."""
    assert resources.matrix_speed(torch.device("cpu"), torch.float32) > 1e6
    assert resources.memory_there(torch.device("cpu")) == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("seconds", "memory", "disk", "sentence"),
    [
        (0.2, 2.4e9, 3e6, "12 rows, 3,456 tokens: about 1 s, 2.4 GB of memory, 3 MB on disk."),
        (89.4, 0, 0, "12 rows, 3,456 tokens: about 89 s, 0.0 GB of memory, 0 MB on disk."),
        (90, 1e12, 2e9, "12 rows, 3,456 tokens: about 2 min, 1,000.0 GB of memory, 2,000 MB on disk."),
        (7260, 0, 0, "12 rows, 3,456 tokens: about 121 min, 0.0 GB of memory, 0 MB on disk."),
    ],
)
def test_it_is_said_as_a_person_would(seconds: float, memory: int, disk: int, sentence: str) -> None:
    """Seconds, and minutes from a minute and a half on."""
    there = int(1e13)
    assert Workload(12, 3456, 1.0, seconds, memory, disk, there).sentence() == sentence
    scarce = Workload(12, 3456, 1.0, seconds, memory + 2, disk, memory + 1)
    assert "take a smaller batch" in scarce.sentence()
