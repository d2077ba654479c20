"""The board's numbers as they travel to the browser, and choices as links that survive a round trip or say why not."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from streamlit.testing.v1 import AppTest

from slim.calibration.criteria import CRITERIA
from slim.calibration.record import Calibration, save_calibration
from slim.calibration.scores import measured as measured_per
from slim.calibration.scores import prunability
from slim.models.load import Loaded
from slim.models.units import UNITS, whole_model
from slim.planning import board
from slim.planning.board import outcome, payload
from slim.planning.board_choice import BoardState, first_state, from_query, metrics_of, to_query
from slim.planning.record import Pins
from slim.planning.sizes import size_of
from slim.planning.threshold import plan_by_threshold
from tests import APP
from tests.pico import random_rows, shorthand
from tests.reference import measured


@pytest.fixture(scope="module")
def calibration(pico: Callable[..., Loaded]) -> Calibration:
    """Of a llama with 4 layers of 6 heads in 2 groups, on 5 rows."""
    return measured(pico("llama"), random_rows((40, 12, 7, 10, 33)), draws=2)


@pytest.fixture(scope="module")
def bare(pico: Callable[..., Loaded]) -> Calibration:
    """The same without KL, and so without a sketch."""
    return measured(pico("llama"), random_rows((9, 12)), kl="none")


def unpacked(sent: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header and the arrays of a payload, read by its description alone."""
    (length,) = struct.unpack_from("<I", sent, 16)
    header = json.loads(sent[20 : 20 + length])
    body = sent[20 + length :]
    arrays = {}
    for name, place in header["arrays"].items():
        assert (20 + length + place["at"]) % 8 == (20 + length) % 8 == 0 or place["at"] % 8 == 0
        arrays[name] = np.frombuffer(body, place["type"], place["length"], place["at"])
    return header, arrays


def test_the_payload_holds_what_plans_are_made_of(calibration: Calibration) -> None:
    """Ranks of every unit, the sketch's unseen rows column by column, their resamples, and the size of everything."""
    name, sent = payload(calibration)
    header, arrays = unpacked(sent)
    assert sent[:16].decode() == name
    for unit in UNITS:
        assert header["units"][unit]["why_not"] is None
        assert [metric["name"] for metric in header["units"][unit]["metrics"]] == [*metrics_of(calibration, unit)]
        for metric, values in measured_per(calibration, unit).items():
            ranks, part = arrays[f"{unit}.{metric}"], prunability(values, CRITERIA[metric].high_is_prunable)
            assert ranks.dtype == np.int32
            np.testing.assert_array_equal(ranks / header["units"][unit]["highest"], part.ravel())
    sketch = calibration.sketch
    assert sketch is not None
    odd = sketch.sequence % 2 == 1
    np.testing.assert_array_equal(arrays["sketch"].reshape(4 * 8, -1), sketch.scores[odd].reshape(-1, 32).T)
    np.testing.assert_array_equal(arrays["sequences"], sketch.sequence[odd] // 2)
    np.testing.assert_array_equal(arrays["tokens"], sketch.tokens[1::2])
    drawn = np.random.default_rng(0).multinomial(2, [0.5, 0.5], size=400)
    np.testing.assert_array_equal(arrays["picks"].reshape(400, 2), drawn)
    assert header["sketch"] == {
        "rows": int(odd.sum()),
        "sequences": 2,
        "of": 2,
        "ends": [pytest.approx(0.025), pytest.approx(0.975)],
        "correction": None,
    }
    facts = calibration.facts.model
    assert header["before"] == size_of(facts, whole_model(facts)).model_dump()
    assert header["sizes"].keys() == header["before"].keys()
    for field, size in header["sizes"].items():
        whole = sum(size["rest"]) + sum(size["block"]) + 6 * sum(size["query"]) + 2 * sum(size["key"])
        assert size["fixed"] + whole == header["before"][field]
        assert size["channels"] == [48] * 4
    assert header["sizes"]["parameters"]["channel"] == [3 * 24] * 4  # of the gate, up and down projections
    assert header["sizes"]["kv_bytes_per_token"]["channel"] == [0] * 4


def test_the_payload_says_what_the_board_is_made_of(calibration: Calibration) -> None:
    """The units and how each is planned, the quantities that are shown, and the numbers that plans are made by."""
    header, _ = unpacked(payload(calibration)[1])
    assert {unit: (one["per_layer"], one["single"], one["whole_layers"]) for unit, one in header["units"].items()} == {
        "head": (6, False, False),
        "group": (2, False, False),
        "block": (1, True, False),
        "layer": (1, True, True),
    }
    assert {unit: one["per_group"] for unit, one in header["units"].items()} == {
        "head": [1, 2, 3],
        "group": [3],
        "block": [3],
        "layer": [3],
    }
    assert {unit: one["highest"] for unit, one in header["units"].items()} == {
        "head": 2 * 23,
        "group": 2 * 7,
        "block": 2 * 3,
        "layer": 2 * 3,
    }
    assert {unit: one["shapes"] for unit, one in header["units"].items()} == {
        "head": [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]],
        "group": [[1, 3], [2, 3]],
        "block": None,
        "layer": None,
    }
    shown = {one["name"]: (one["field"], one["faster"]) for one in header["quantities"]}
    assert shown == {
        "params": ("parameters", False),
        "bytes": ("bytes", False),
        "kv": ("kv_bytes_per_token", False),
        "flops": ("flops_per_token", False),
        "prefill": ("flops_per_token", True),
        "decode": ("bytes_read_per_token", True),
    }
    assert header["threshold"] > 1
    assert header["pinned"] > header["threshold"] * 6
    assert header["weight_steps"] == 100_000


def test_the_payload_is_named_by_its_content(calibration: Calibration) -> None:
    """The same numbers have the same name, others another: the browser keeps what it has."""
    assert payload(calibration) == payload(calibration)
    fewer = Calibration(calibration.facts, {"entropy": calibration.estimates["entropy"]}, calibration.sketch)
    assert payload(Calibration(fewer.facts, calibration.estimates, None))[0] != payload(calibration)[0]


def test_a_large_sketch_is_thinned(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many sequences go, each with all its rows, tokens and resamples of their own; the header says so."""
    sketch = calibration.sketch
    assert sketch is not None
    monkeypatch.setattr(board, "LIVE_BYTES", sketch.fold(1).scores.nbytes - 1)
    header, arrays = unpacked(payload(calibration)[1])
    here = sketch.sequence == 1
    assert (header["sketch"]["sequences"], header["sketch"]["of"]) == (1, 2)
    assert arrays["sequences"].tolist() == [0] * int(here.sum())
    np.testing.assert_array_equal(arrays["sketch"].reshape(32, -1), sketch.scores[here].reshape(-1, 32).T)
    np.testing.assert_array_equal(arrays["tokens"], sketch.tokens[[1]])


def test_what_cannot_be_removed_says_why(bare: Calibration, pico: Callable[..., Loaded]) -> None:
    """Layers without a sketch, heads of a family that only knows whole blocks; both still have a board."""
    header, _ = unpacked(payload(bare)[1])
    assert header["sketch"] is None
    assert "loss sketch" in header["units"]["layer"]["why_not"]
    assert header["units"]["head"]["why_not"] is None
    whole = measured(pico("olmo2"), random_rows((9, 12)))
    header, _ = unpacked(payload(whole)[1])
    assert "whole blocks" in header["units"]["head"]["why_not"]
    assert first_state(whole).unit == "block"
    assert "uniform" in header["units"]["block"]["why_not_uniform"]


def test_the_outcome_is_the_plans_own(calibration: Calibration) -> None:
    """The board shows Python's plan after release, word for word."""
    made = first_state(calibration).plan(calibration)
    assert made == plan_by_threshold(calibration, 0.8, weights=first_state(calibration).weights)
    shown = json.loads(json.dumps(outcome(made)))
    assert shown["keep"] == [
        {"layer": heads is not None, "heads": list(heads or ()), "channels": "all"} for heads in shorthand(made.keep)
    ]
    assert shown["after"] == made.after.model_dump()
    assert made.forecast is not None
    assert shown["forecast"]["nats_per_token"] == made.forecast.nats_per_token
    assert [(c["layer"], c["head"], c["change"]) for c in shown["changes"]] == [
        (change.layer, change.head, change.change) for change in made.changes
    ]


def test_weights_that_are_all_0_fall_back_to_the_first(calibration: Calibration) -> None:
    """As on the Explore page."""
    first = first_state(calibration)
    nothing = first.model_copy(update={"weights": dict.fromkeys(first.weights, 0.0)})
    assert nothing.plan(calibration).keep == first.plan(calibration).keep


def some_choice(calibration: Calibration, rng: np.random.Generator) -> BoardState:
    """Any board state that the user could set."""
    facts = calibration.facts.model
    unit = [*UNITS][rng.integers(4)]
    per_layer = {"head": facts.heads, "group": facts.kv_heads, "block": 1, "layer": 1}[unit]
    places = [(layer, index) for layer in range(facts.layers) for index in range(per_layer)]
    pinned = [places[i] for i in rng.permutation(len(places))[: rng.integers(0, 4)]]
    weights = dict.fromkeys(metrics_of(calibration, unit), 0.0)
    for name in weights:
        weights[name] = float(rng.choice([0.0, 0.05, 0.35, 1.0, rng.random()]))
    weights[next(iter(weights))] = float(rng.choice([0.1, 1.0]))
    return BoardState(
        unit=unit,
        threshold=float(rng.choice([0.8, 0.715, 1.0, rng.random()])),
        weights=weights,
        per_layer={int(layer): float(rng.random()) for layer in rng.permutation(facts.layers)[: rng.integers(0, 3)]},
        pins=Pins(
            keep=tuple(sorted(pinned[::2])),
            drop=tuple(sorted(pinned[1::2])),
            protect=tuple(sorted(map(int, rng.permutation(facts.layers)[: rng.integers(0, 3)]))),
        ),
        uniform=bool(rng.integers(2)) and unit != "block",
    )


def test_a_link_gives_back_the_choice(calibration: Calibration) -> None:
    """To the last digit, whatever was set."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        choice = some_choice(calibration, rng)
        assert from_query(to_query(choice), calibration) == (choice, ())


def test_a_link_can_be_read(calibration: Calibration) -> None:
    """Settings at their first value, and those that are 0, are not in it."""
    assert set(to_query(first_state(calibration))) == {"unit", "threshold", "weights"}
    choice = BoardState(
        unit="head",
        threshold=0.8,
        weights={"kl_output": 1.0, "entropy": 0.0, "variance": 0.25},
        per_layer={3: 0.7},
        pins=Pins(keep=((3, 1), (2, 2)), drop=((1, 0),), protect=(0,)),
        uniform=True,
    )
    assert to_query(choice) == {
        "unit": "head",
        "threshold": "0.8",
        "weights": "kl_output:1,variance:0.25",
        "keep": "3:1,2:2",
        "drop": "1:0",
        "protect": "0",
        "layers": "3:0.7",
        "uniform": "1",
    }


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"unit": "neuron"}, "unit=neuron is left out: units are head, group, block, layer"),
        ({"threshold": "high"}, "threshold=high is left out: it must be a number of 0 or more"),
        ({"threshold": "-1"}, "threshold=-1"),
        ({"threshold": "nan"}, "threshold=nan"),
        ({"threshold": "1e999"}, "threshold=1e999"),
        ({"weights": "magic:1"}, "'magic' is not measured per head"),
        ({"weights": "kl_output"}, "weights=kl_output is left out"),
        ({"weights": "kl_output:-1"}, "a number of 0 or more"),
        ({"weights": "kl_output:0"}, "a weight above 0"),
        ({"keep": "9:0"}, "9:0 is not there: layers run to 3 and numbers in each to 5"),
        ({"keep": "0:6"}, "0:6 is not there"),
        ({"keep": "zero:one"}, "'zero:one' is not of the form layer:number"),
        ({"drop": "1:-1"}, "drop=1:-1"),
        ({"drop": ",,"}, "drop=,,"),
        ({"protect": "4"}, "protect=4"),
        ({"layers": "4:0.5"}, "layers=4:0.5"),
        ({"layers": "0.5"}, "layers=0.5"),
        ({"uniform": "maybe"}, "uniform=maybe is left out: it is 1 or 0"),
        ({"uniform": "1", "unit": "block"}, "uniform=1"),
        ({"keep": "1:1", "drop": "1:1"}, "1:1 is both kept and dropped"),
        ({"keep": "x" * 5000}, "keep=" + "x" * 40 + "… is left out"),
    ],
)
def test_a_bad_link_is_followed_as_far_as_it_goes(calibration: Calibration, query: dict[str, str], words: str) -> None:
    """One note, which names the parameter and why; everything else of the link counts."""
    choice, notes = from_query({"protect": "0"} | query, calibration)
    assert len(notes) == 1
    assert words in notes[0]
    assert notes[0].endswith(".")
    first = first_state(calibration, choice.unit)
    assert choice == first.model_copy(update={"pins": Pins(protect=() if "protect" in query else (0,))})


def test_weights_above_1_keep_their_ratio(calibration: Calibration) -> None:
    """The board's sliders end at 1, the command line's weights do not."""
    choice, notes = from_query({"weights": "kl_output=4,variance=1"}, calibration)
    assert notes == ()
    assert {name: weight for name, weight in choice.weights.items() if weight} == {"kl_output": 1, "variance": 0.25}


def test_a_unit_that_cannot_be_removed_here(bare: Calibration) -> None:
    """The link falls back to what can."""
    choice, notes = from_query({"unit": "layer"}, bare)
    assert choice.unit == "head"
    assert "loss sketch" in notes[0]


@pytest.fixture
def saved(calibration: Calibration, own_workspace: Path) -> Calibration:
    return save_calibration(calibration, own_workspace / "calibrations" / "small")


def opened(**link: str) -> AppTest:
    """The page as a link opens it."""
    page = AppTest.from_file(APP, default_timeout=60).run()
    for key, value in link.items():
        page.query_params[key] = value
    page.switch_page("pages/prune.py").run()
    assert not page.exception
    assert [title.value for title in page.title] == ["Prune"]
    return page


@pytest.mark.usefixtures("saved")
def test_the_page_follows_a_link_and_keeps_it_in_its_address() -> None:
    """The settings of the link are in the address again, and no note says otherwise."""
    link = {"calibration": "small", "unit": "group", "threshold": "0.6", "weights": "kl_output:1", "drop": "2:1"}
    page = opened(**link)
    assert dict(page.query_params) == link
    assert not page.info


@pytest.mark.usefixtures("saved")
def test_the_page_says_what_of_a_link_it_left_out() -> None:
    """In a sentence each, not a traceback."""
    page = opened(calibration="small", threshold="<b>high</b>", keep="99:0", unit="head")
    said = [note.value for note in page.info]
    assert len(said) == 2
    assert "99" in said[0]
    assert "threshold=\\<b\\>high" in said[1]
    assert "a number of 0 or more" in said[1]
    assert "threshold" in dict(page.query_params)
    page = opened(calibration="gone")
    assert "is not here" in page.info[0].value


@pytest.mark.usefixtures("saved")
def test_a_link_that_removes_everything() -> None:
    """The board stays, and a sentence says what to do."""
    page = opened(calibration="small", unit="block", threshold="0")
    assert "would remove every attention block" in page.error[0].value
