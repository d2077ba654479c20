"""Comparisons of models: changes, what their intervals say, which models are efficient, and the charts."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from slim.core.records import ModelFacts
from slim.evaluation.charts import change_bars, radar, spokes, trade_off
from slim.evaluation.comparison import ComparedMetric, compare_models, named_metric, pareto
from slim.evaluation.metrics import Figure
from slim.evaluation.record import EvaluationFacts, MetricFacts, ModelScores, Score
from slim.evaluation.settings import EvaluationSettings
from slim.evaluation.speed_record import Footprint, Speed, Timed

NAMES = ["original", "small", "<b>tiny</b> & a name far too long for any chart"]


def model(width: int) -> ModelFacts:
    """A model of `width` × 10 parameters."""
    facts = {"source": "m", "fingerprint": "f", "model_type": "llama", "layers": 1, "heads": 2, "kv_heads": 1}
    return ModelFacts.model_validate(
        facts | {"head_dim": 4, "dtype": "float32", "itemsize": 4, "shapes": {"w": (width, 10)}}
    )


def figure(value: float, low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value=value, low=low, high=high)


def timed(value: float, times: float) -> Timed:
    return Timed(value=value, times=times, low=0.9 * times, high=1.25 * times)


def made(*, timed_too: bool = True, rows: tuple[int, ...] = (1, 8)) -> EvaluationFacts:
    """An original and two models: one a little worse and faster, one far worse."""
    measures = {
        "perplexity": ("", "perplexity", "", False, 2),
        "kl": ("", "KL to the original", "nats/token", False, 4),
        "accuracy": ("", "accuracy", "points", True, 1),
        "arc:acc": ("arc", "acc", "points", True, 1),
    }
    scores = (
        {"perplexity": (20.0, None), "accuracy": (50.0, None), "arc:acc": (40.0, None)},
        {
            "perplexity": (22.0, figure(2.0, 1.0, 3.0)),
            "kl": (0.1, None),
            "accuracy": (48.8, figure(-1.2, -2.9, 0.4)),
            "arc:acc": (40.0, figure(0.0, 0.0, 0.0)),
        },
        {
            "perplexity": (400.0, figure(380.0, 300.0, 500.0)),
            "kl": (3.0, None),
            "accuracy": (60.0, figure(10.0, 5.0, 15.0)),
            "arc:acc": (39.0, figure(-1.0)),
        },
    )
    speeds = (1.0, 1.25, 2.0)
    return EvaluationFacts(
        dataset=None,
        held_out="",
        settings=EvaluationSettings(),
        measures={
            name: MetricFacts(task=task, title=title, unit=unit, higher_is_better=higher, digits=digits, rows=9)
            for name, (task, title, unit, higher, digits) in measures.items()
        },
        models=tuple(
            ModelScores(
                name=name,
                model=model(width),
                scores={
                    key: Score(figure=figure(value, 0.9 * value, 1.1 * value), difference=change)
                    for key, (value, change) in found.items()
                },
                pace=tuple(
                    Speed(
                        rows=count,
                        prefill=timed(100 * speed, speed),
                        decode=timed(10 * speed, speed),
                        first_token=timed(1 / speed, speed),
                        cache_bytes=width * 10**5,
                    )
                    for count in rows
                )
                if timed_too
                else (),
                footprint=Footprint(file_bytes=width * 10**6, load=timed(1, 1), peak_bytes=width * 2 * 10**6)
                if timed_too
                else None,
            )
            for name, width, speed, found in zip(NAMES, (100, 80, 50), speeds, scores, strict=True)
        ),
        versions={},
        device="cpu",
        started="2026-01-01T00:00:00+00:00",
        seconds=1,
    )


@pytest.fixture(scope="module")
def found() -> list[ComparedMetric]:
    return compare_models(made())


def test_everything_found_is_there(found: list[ComparedMetric]) -> None:
    """Quality first, then speed at each batch size, then size; and what was not timed is not there."""
    at = [f"{name}-{rows}" for rows in (1, 8) for name in ("prefill", "decode", "first_token", "cache")]
    names = [one.name for one in found]
    assert names == ["perplexity", "kl", "accuracy", "arc:acc", *at, "parameters", "file", "peak_memory", "load"]
    assert [one.name for one in compare_models(made(timed_too=False))] == [*names[:4], "parameters"]
    assert named_metric(found, "arc:acc").label == "arc: acc, points"
    assert named_metric(found, "parameters").values.tolist() == pytest.approx([0.001, 0.0008, 0.0005])
    assert named_metric(found, "cache-8").values.tolist() == pytest.approx([10, 8, 5])


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("accuracy", ["", "−1.2 points [−2.9, +0.4]", "+10.0 points [+5.0, +15.0]"], [None, "open", "better"]),
        ("perplexity", ["", "+2.00 [+1.00, +3.00]", "+380.00 [+300.00, +500.00]"], [None, "worse", "worse"]),
        (
            "arc:acc",
            ["", "+0.0 points [+0.0, +0.0]", "−1.0 points (one row, no interval)"],
            [None, "same", "unknown"],
        ),
        (
            "kl",
            ["", "+0.1000 nats/token [+0.0900, +0.1100]", "+3.0000 nats/token [+2.7000, +3.3000]"],
            [None, "apart", "apart"],
        ),
        ("decode-1", ["", "+25.0% [+12.5, +56.2]", "+100.0% [+80.0, +150.0]"], [None, "better", "better"]),
        ("first_token-8", ["", "−20.0% [−36.0, −11.1]", "−50.0% [−60.0, −44.4]"], [None, "better", "better"]),
        ("parameters", ["", "−20.0%", "−50.0%"], [None, "better", "better"]),
        ("load", ["", "+0.0% [−20.0, +11.1]", "+0.0% [−20.0, +11.1]"], [None, "open", "open"]),
    ],
)
def test_changes_in_words_and_what_they_say(
    found: list[ComparedMetric], name: str, words: list[str], says: list[str | None]
) -> None:
    """Never a bare number where it was sampled, and better or worse only where the interval excludes no difference."""
    quantity = named_metric(found, name)
    assert [quantity.change_in_words(place) for place in range(3)] == words
    assert [quantity.standing(place) for place in range(3)] == says


def test_shares_are_above_one_where_a_model_is_better(found: list[ComparedMetric]) -> None:
    """Whichever way is better; a distance of the original to itself has none."""
    assert named_metric(found, "perplexity").shares == pytest.approx([1, 20 / 22, 0.05])
    assert named_metric(found, "accuracy").shares == pytest.approx([1, 0.976, 1.2])
    assert named_metric(found, "file").shares == pytest.approx([1, 1.25, 2])
    assert math.isnan(named_metric(found, "kl").shares[0])
    assert "kl" not in [one.name for one in spokes(found)]


def beaten(points: list[tuple[float, float]], place: int) -> bool:
    """By the definition, where less is better in both."""
    x, y = points[place]
    return any(a <= x and b <= y and (a < x or b < y) for a, b in points)


@pytest.mark.parametrize(("more_x", "more_y"), [*product((False, True), repeat=2)])
def test_the_efficient_ones(more_x: bool, more_y: bool) -> None:
    """As the definition says, on grids small enough for ties, whichever way is better."""
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(200):
        x, y = rng.integers(0, 5, (2, rng.integers(1, 9))).astype(float)
        points = list(zip(-x if more_x else x, -y if more_y else y, strict=True))
        expected = [not beaten(points, place) for place in range(len(points))]
        assert pareto(x, y, more_x=more_x, more_y=more_y).tolist() == expected
        sizes.add(sum(expected))
    assert {1, 2, 3} <= sizes


def test_one_that_lacks_a_figure_is_not_efficient_and_beats_nobody() -> None:
    """In either quantity; twins are efficient together."""
    x = np.array([1.0, np.nan, 0.0, 2.0, 2.0, 3.0])
    y = np.array([5.0, 0.0, np.nan, 4.0, 4.0, 4.0])
    assert pareto(x, y, more_x=False, more_y=False).tolist() == [True, False, False, True, True, False]
    assert pareto(np.array([]), np.array([]), more_x=True, more_y=False).tolist() == []
    assert pareto(np.array([np.nan]), np.array([1.0]), more_x=True, more_y=False).tolist() == [False]


def traces(figure: Any) -> Any:
    return figure.data


def test_a_bar_for_each_model_with_its_interval(found: list[ComparedMetric]) -> None:
    """In each quantity's own unit; where there is no interval there are no whiskers; names are text."""
    quality = [one for one in found if one.group == "quality"]
    figure = change_bars(quality, NAMES)
    bars = traces(figure)
    assert [bar.x[0] for bar in bars] == [2.0, 380.0, 0.1, 3.0, -1.2, 10.0, 0.0, -1.0]
    accuracy = bars[4]
    assert accuracy.x[0] - accuracy.error_x.arrayminus[0] == pytest.approx(-2.9)
    assert accuracy.x[0] + accuracy.error_x.array[0] == pytest.approx(0.4)
    assert bars[7].error_x.array is None
    assert "−1.2 points [−2.9, +0.4]" in accuracy.text[0]
    titles = [note.text for note in figure.layout.annotations]  # type: ignore[attr-defined]
    assert titles[1:3] == ["KL to the original, nats/token (left is better)", "accuracy, points (right is better)"]
    label = figure.layout.yaxis.ticktext[1]  # type: ignore[attr-defined]
    assert label.startswith("&lt;b&gt;tiny&lt;/b&gt; &amp; a name")
    assert label.endswith("…")
    assert change_bars([], NAMES).data == ()


def test_the_radar_has_what_all_models_have(found: list[ComparedMetric]) -> None:
    """The original is the ring at 1; without enough spokes nothing is drawn."""
    figure = radar(found, NAMES)
    rings = traces(figure)
    assert len(rings) == 3
    assert set(rings[0].r) == {1.0}
    assert len(rings[1].r) == len(found) - 1 + 1  # without KL, and closed
    assert rings[1].theta[0] == "perplexity"
    assert rings[1].r[0] == pytest.approx(20 / 22)
    assert radar(found[:3], NAMES) is None


def test_size_against_quality(found: list[ComparedMetric]) -> None:
    """Every model at its figures with its interval, the original among them, and a line through the efficient ones."""
    x, y = named_metric(found, "file"), named_metric(found, "accuracy")
    line, *points = traces(trade_off(x, y, NAMES))
    assert [(point.x[0], point.y[0]) for point in points] == [(100, 50), (80, 48.8), (50, 60)]
    assert points[1].y[0] + points[1].error_y.array[0] == pytest.approx(1.1 * 48.8)
    assert [point.marker.symbol for point in points] == ["diamond-open", "circle-open", "circle"]
    assert list(line.x) == [50]
    assert not line.showlegend
    figure = trade_off(named_metric(found, "decode-8"), named_metric(found, "perplexity"), NAMES)
    line, *points = traces(figure)
    assert list(line.x) == [10, 12.5, 20]
    assert "&lt;b&gt;" in points[2].name
    assert figure.layout.yaxis.type == "log"  # type: ignore[attr-defined]
    assert figure.layout.xaxis.type is None  # type: ignore[attr-defined]
    kl = traces(trade_off(x, named_metric(found, "kl"), NAMES))
    assert [point.y[0] for point in kl[1:]] == [0, 0.1, 3.0]
