"""Figures: what is drawn is what was measured, and what can be clicked names its head."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slim.calibration import charts, check_charts
from slim.calibration.check_record import Correction, CriterionCheck, Removal, Verdict
from slim.calibration.head_scores import HeadScore
from slim.calibration.task_vs_general import TaskDifference
from slim.core.statistics import Estimate

LAYERS, HEADS = 4, 3
VALUES = np.geomspace(1e-4, 1, LAYERS * HEADS).reshape(LAYERS, HEADS)


def measure(name: str = "variance", values: Any = VALUES, sure: bool = True) -> HeadScore:
    """A figure; `variance` and `kl_output` span decades, `entropy` does not."""
    values = np.array(values, dtype=float)
    estimate = Estimate(values, values * 0.9, values * 1.1) if sure else Estimate.unsure(values)
    return HeadScore(name, f"The {name}", "units", estimate, False)


def traces(figure: Any) -> Any:
    """The traces in the order in which they are drawn."""
    return figure.data


def trace(figure: Any, **properties: Any) -> Any:
    """The one trace with these properties."""
    (found,) = [t for t in figure.data if all(t.to_plotly_json().get(name) == v for name, v in properties.items())]
    return found


def ringed(figure: Any) -> list[tuple[float, float]]:
    """Where a head is marked as chosen."""
    return [(float(t.x[0]), float(t.y[0])) for t in figure.data if t.name == "chosen"]


def points(figure: Any) -> Any:
    """The trace that can be clicked."""
    (found,) = [t for t in figure.data if t.type == "scatter" and t.customdata is not None]
    return found


def clicked_at(figure: Any) -> dict[tuple[int, int], tuple[float, float]]:
    """Where each head can be clicked."""
    found = points(figure)
    return {
        (int(layer), int(head)): (float(x), float(y))
        for (layer, head), x, y in zip(found.customdata, found.x, found.y, strict=True)
    }


def test_a_map_shows_every_value_where_its_head_is() -> None:
    """Layers to the right, heads downwards, colour by magnitude where asked."""
    figure: Any = charts.heatmap(VALUES, "Title", "units")
    (cells,) = figure.data
    np.testing.assert_array_equal(cells.z, VALUES.T)
    assert figure.layout.title.text == "Title (units)"
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]
    np.testing.assert_allclose(traces(charts.heatmap(VALUES, "", "", log=True))[0].z, np.log10(VALUES.T))


def test_a_click_on_a_map_names_its_head() -> None:
    """One invisible point on each cell, which stays so whatever is chosen."""
    figure: Any = charts.heatmap(VALUES, "Title", "units", clickable=True, chosen=(2, 1))
    heads = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    assert clicked_at(figure) == {head: head for head in heads}
    found = points(figure)
    assert [text.split()[0] for text in found.text] == [f"{value:.4g}" for value in VALUES.ravel()]
    assert found.marker.opacity == found.selected.marker.opacity == found.unselected.marker.opacity == 0
    assert ringed(figure) == [(2, 1)]


def test_a_map_leaves_out_what_was_not_measured() -> None:
    """It is blank, says so, and does not bend the colours."""
    values = VALUES.copy()
    values[1, 2] = np.nan
    for log in (False, True):
        figure: Any = charts.heatmap(values, "", "units", log=log, clickable=True)
        cells = figure.data[0]
        assert np.isnan(np.array(cells.z, dtype=float)[2, 1])
        assert np.isfinite((cells.zmin, cells.zmax)).all()
        assert points(figure).text[1 * HEADS + 2] == "not measured"


def test_a_map_of_one_value_can_be_drawn() -> None:
    """All alike, or all zero on a logarithmic scale."""
    for values in (np.ones((2, 2)), np.zeros((2, 2))):
        for log in (False, True):
            cells = traces(charts.heatmap(values, "", "", log=log))[0]
            assert cells.zmin < cells.zmax


def test_blocks_carry_their_intervals() -> None:
    """As whiskers from the low to the high end; none where there is no interval."""
    values = np.array([0.1, 1.0])
    sure = Estimate(values, np.array([0.05, 0.8]), np.array([0.4, 1.5]))
    bars = traces(charts.block_bars(values, "", "units", removed=[1], sure=sure))[0]
    np.testing.assert_allclose(np.array(bars.y) + bars.error_y.array, sure.high)
    np.testing.assert_allclose(np.array(bars.y) - bars.error_y.arrayminus, sure.low)
    assert bars.marker.color[0] != bars.marker.color[1]
    plain = traces(charts.block_bars(values, "", "units", sure=Estimate.unsure(values)))[0]
    assert plain.error_y.array is None


def test_a_distribution_holds_every_head_in_its_layer() -> None:
    """Beside the layer's number, at its value, with the layer's median and the histogram of them all."""
    figure: Any = charts.distribution(measure(), chosen=(3, 0))
    places = clicked_at(figure)
    assert len(places) == LAYERS * HEADS
    assert len(set(places.values())) == LAYERS * HEADS
    for (layer, head), (x, y) in places.items():
        assert abs(x - layer) < 0.5
        assert y == pytest.approx(np.log10(VALUES[layer, head]))
    lines = trace(figure, mode="lines")
    medians = [y for y in lines.y if y is not None][::2]
    np.testing.assert_allclose(medians, [np.log10(np.median(row)) for row in VALUES])
    bars = trace(figure, type="bar")
    assert sum(bars.x) == LAYERS * HEADS
    assert ringed(figure) == [places[3, 0]]


def test_a_distribution_can_show_intervals() -> None:
    """From the low to the high end at the head's place; nothing without intervals."""
    figure: Any = charts.distribution(measure("entropy"), intervals=True)
    places = clicked_at(figure)
    line = figure.data[0]
    x, y = np.array(line.x, float).reshape(-1, 3), np.array(line.y, float).reshape(-1, 3)
    np.testing.assert_allclose(x[:, 0], [place[0] for place in places.values()])
    np.testing.assert_allclose(y[:, :2], np.stack((0.9 * VALUES.ravel(), 1.1 * VALUES.ravel()), 1))
    assert len(traces(charts.distribution(measure(sure=False), intervals=True))) == len(figure.data) - 1


def test_a_distribution_of_odd_figures() -> None:
    """Zeros on a logarithmic axis, heads and whole layers that were not measured."""
    values = VALUES.copy()
    values[0, 0], values[1] = 0, np.nan
    figure: Any = charts.distribution(measure(values=values), chosen=(1, 0))
    places = clicked_at(figure)
    assert places[0, 0][1] == pytest.approx(np.log10(values[values > 0].min()))
    assert np.isnan(places[1, 1][1])
    assert sum(trace(figure, type="bar").x) == LAYERS * HEADS - HEADS
    assert not ringed(figure)


def test_a_scatter_holds_the_heads_that_have_both_figures() -> None:
    """At their values; without those not measured, and without a zero that a logarithmic axis cannot show."""
    x, y = VALUES.copy(), VALUES[::-1].copy()
    x[0, 0], y[1, 1], y[2, 2] = np.nan, 0, 0
    figure: Any = charts.scatter(measure("entropy", x), measure("variance", y), chosen=(3, 2))
    places = clicked_at(figure)
    assert set(range(LAYERS * HEADS)) - {layer * HEADS + head for layer, head in places} == {0, 4, 8}
    for (layer, head), place in places.items():
        assert place == (x[layer, head], y[layer, head])
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == (None, "log")
    assert ringed(figure) == [(x[3, 2], y[3, 2])]
    assert not ringed(charts.scatter(measure("entropy", x), measure(), chosen=(0, 0)))


def test_a_difference_is_shown_around_nothing() -> None:
    """The scale is even on both sides; a dot stands on what is sure; the text gives factor, interval and costs."""
    value = np.linspace(-1, 2, LAYERS * HEADS).reshape(LAYERS, HEADS)
    value[0, 1] = np.nan
    found = TaskDifference(Estimate(value, value - 0.5, value + 0.5), VALUES, VALUES * np.exp(value))
    figure: Any = charts.difference_map(found, chosen=(2, 0))
    cells = figure.data[0]
    assert cells.zmin == -cells.zmax
    dots = figure.data[-1]
    assert set(zip(dots.x, dots.y, strict=True)) == {
        (layer, head) for layer in range(LAYERS) for head in range(HEADS) if abs(value[layer, head]) > 0.5
    }
    texts = dict(zip(clicked_at(figure), points(figure).text, strict=True))
    assert texts[3, 2].startswith(f"× {np.exp(2):.2f} [{np.exp(1.5):.2f}, {np.exp(2.5):.2f}]")
    assert "no ratio" in texts[0, 1]
    ticks = dict(zip(cells.colorbar.ticktext, cells.colorbar.tickvals, strict=True))
    assert {text: float(np.exp(tick)) for text, tick in ticks.items()} == {
        text: pytest.approx(float(text.removeprefix("× ")), rel=0.01) for text in ticks
    }
    assert len(ticks) >= 3
    same = replace(found, ratio=Estimate.unsure(np.zeros((LAYERS, HEADS))))
    assert "no interval" in points(charts.difference_map(same)).text[0]


def test_attention_is_drawn_query_by_query() -> None:
    """Cells stand at the middle of their tokens; the labels are the tokens, safe to show."""
    cells = np.array([[1.0, np.nan], [0.25, 0.75]])
    figure: Any = charts.attention_map(cells, 2, ["<s>", "a", "b", "c"], query=3)
    (shown,) = figure.data
    assert tuple(shown.x) == tuple(shown.y) == (0.5, 2.5)
    np.testing.assert_allclose(shown.customdata, 100 * cells)
    assert "0 to 1" in shown.text[1][0]
    assert "&lt;s&gt;a" in shown.text[1][0]
    assert (figure.layout.shapes[0].y0, figure.layout.shapes[0].y1) == (3, 3)


def checked(correction: Correction | None = None) -> CriterionCheck:
    """A check of three criteria on five heads; the second one removes the same heads as the first."""

    def removals(factor: float) -> tuple[Removal, ...]:
        return tuple(
            Removal(
                share=share, heads=3, forecast=share * factor, kl=2 * share * factor, perplexity=10 + share * factor
            )
            for share in (0.05, 0.1, 0.2, 0.3)
        )

    verdicts = (
        Verdict(criterion="random", correlation=0.1, low=-0.4, high=0.5, removals=removals(3)),
        Verdict(criterion="kl_output", correlation=0.9, low=0.8, high=0.95, removals=removals(1)),
        Verdict(criterion="composite", correlation=0.9, low=None, high=None, removals=removals(1)),
        Verdict(criterion="entropy", correlation=-0.6, low=-0.8, high=-0.2, removals=removals(1000)),
        Verdict(criterion="magnitude", correlation=None, low=None, high=None, removals=removals(7)),
    )
    return CriterionCheck(
        rows=2,
        tokens=100,
        unseen=True,
        perplexity=9.5,
        weights={"kl_output": 1.0},
        heads=((0, 0), (1, 2), (2, 1), (3, 0), (3, 2)),
        damage=(0.5, 0.0, 0.02, 0.1, 0.003),
        verdicts=verdicts,
        correction=correction,
        seconds=3,
    )


TITLES = {"random": "Chance", "kl_output": "KL", "entropy": "Entropy"}


def test_correlations_stand_in_order_with_their_intervals() -> None:
    """The best on top; one that is not known is left out; the composite of now joins them at its place."""
    (bars,) = traces(check_charts.correlations(checked(), TITLES, now=(0.5, 0.3, 0.6)))
    assert list(bars.y[:3]) == ["Entropy", "Chance", "Composite, weights now"]
    assert set(bars.y[3:]) == {"KL", "composite"}
    at = dict(zip(bars.y, zip(bars.x, bars.error_x.arrayminus, bars.error_x.array, strict=True), strict=True))
    assert at["KL"] == pytest.approx((0.9, 0.1, 0.05))
    assert at["composite"] == (0.9, 0, 0)
    assert at["Composite, weights now"] == pytest.approx((0.5, 0.2, 0.1))
    assert len(traces(check_charts.correlations(checked(), TITLES, now=(np.nan, np.nan, np.nan)))[0].y) == 4


def test_perplexities_start_at_the_whole_model() -> None:
    """Every criterion is a line over the share that is gone, on a logarithmic axis."""
    figure: Any = check_charts.perplexities(checked(), TITLES)
    assert {line.name for line in figure.data} == {"Chance", "KL", "composite", "Entropy", "magnitude"}
    for line in figure.data:
        assert (line.x[0], line.y[0]) == (0, 9.5)
        assert tuple(line.x[1:]) == (0.05, 0.1, 0.2, 0.3)
    assert trace(figure, name="Entropy").y[-1] == pytest.approx(310)
    assert figure.layout.yaxis.type == "log"


def test_the_correction_is_drawn_through_its_points() -> None:
    """Forecast against measured, each removal once, and the line that the record gives."""
    correction = Correction(intercept=0.3, slope=-0.1, smallest=0.05, largest=1.0, spread=0.1, removals=9)
    figure: Any = check_charts.correction_fit(checked(correction), TITLES)
    dots = trace(figure, name="removed together")
    assert len(dots.x) == 16
    np.testing.assert_allclose(dots.y, 2 * np.array(dots.x))
    assert "KL, 5%<br>composite, 5%" in dots.text
    line = trace(figure, name="corrected")
    assert (line.x[0], line.x[-1]) == pytest.approx((0.05, 1.0))
    assert line.y[0] == pytest.approx(0.05 * np.exp(0.3 - 0.1 * np.log(0.05)))
    same = trace(figure, name="as forecast")
    np.testing.assert_array_equal(same.x, same.y)
    assert "corrected" not in {t.name for t in traces(check_charts.correction_fit(checked(), TITLES))}


def test_heads_left_out_alone_can_be_clicked() -> None:
    """To the right what goes last; upwards what it cost, nothing at the lower edge."""
    prunability = np.linspace(0, 1, LAYERS * HEADS).reshape(LAYERS, HEADS)
    figure: Any = check_charts.damage_by_rank(prunability, checked(), "Composite score", chosen=(2, 1))
    places = clicked_at(figure)
    assert list(places) == list(checked().heads)
    assert places[0, 0] == (1.0, 0.5)
    assert places[3, 2] == (0.0, 0.003)
    assert places[1, 2][1] == 0.003
    assert ringed(figure) == [places[2, 1]]
    other = check_charts.damage_by_rank(prunability, checked(), "Composite score", chosen=(0, 1))
    assert not ringed(other)


def test_the_mouse_moves_no_figure() -> None:
    """Axes are fixed, so that a click is a click."""
    figures: tuple[Any, ...] = (
        charts.heatmap(VALUES, "", "", clickable=True),
        charts.distribution(measure()),
        charts.scatter(measure(), measure("entropy")),
        check_charts.correlations(checked(), TITLES),
    )
    for figure in figures:
        axes = [figure.layout[name] for name in figure.layout if name.startswith(("xaxis", "yaxis"))]
        assert axes
        assert all(axis.fixedrange for axis in axes)
