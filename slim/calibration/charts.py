"""Records to figures. Layers run to the right and heads downwards; nothing here knows how figures are shown.

Clickable points carry their head as customdata [layer, head]. A heatmap reports no clicks on its cells, so clickable
maps have an invisible point on each cell. `chosen` is a head (layer, head) with a ring around it.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from slim.calibration.head_scores import HeadScore
from slim.calibration.task_vs_general import TaskDifference
from slim.core.chart_style import (
    ACCENT,
    ALARM,
    BETWEEN,
    GRID,
    QUIET,
    SCALE,
    WHISKER,
    Head,
    decades,
    factors,
    framed,
    head_places,
    lowest,
    number,
    ring,
    steady,
    step,
    visible,
)
from slim.core.statistics import Estimate


def heatmap(
    values: NDArray[np.float64],
    title: str,
    unit: str,
    *,
    log: bool = False,
    removed: NDArray[np.bool_] | None = None,
    clickable: bool = False,
    chosen: Head | None = None,
) -> go.Figure:
    """Map of a per-head figure (L, H), blank where it is NaN.

    `log` colours by magnitude; heads in `removed` (L, H) are crossed out.
    """
    shown = np.log10(np.maximum(values, 1e-12)) if log else values
    bar: dict[str, object] = {"thickness": 10, "outlinewidth": 0}
    low, high = float(np.nanquantile(shown, 0.01)) if log else float(np.nanmin(shown)), float(np.nanmax(shown))
    if log:
        bar |= decades(low, high)
    figure = go.Figure(
        go.Heatmap(
            z=shown.T,
            zmin=low,
            zmax=high if high > low else low + 1e-9,
            customdata=values.T,
            colorscale=SCALE,
            colorbar=bar,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate=f"layer %{{x}}, head %{{y}}<br>%{{customdata:.4g}} {unit}<extra></extra>",
        )
    )
    if removed is not None and removed.any():
        layer, head = np.nonzero(removed)
        figure.add_scatter(
            x=layer,
            y=head,
            mode="markers",
            marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": ALARM}},
            hovertemplate="layer %{x}, head %{y} goes<extra></extra>",
        )
    return _map(figure, values, f"{title} ({unit})", unit, clickable, chosen)


def _map(
    figure: go.Figure, values: NDArray[np.float64], title: str, unit: str, clickable: bool, chosen: Head | None
) -> go.Figure:
    """Draw the parts that every map of layers × heads shares."""
    layers, heads = values.shape
    if clickable:
        figure.data[0].update(hoverinfo="skip", hovertemplate=None)  # type: ignore[attr-defined]
        places = head_places(layers, heads)
        figure.add_scatter(
            x=places[:, 0],
            y=places[:, 1],
            mode="markers",
            marker={"symbol": "square", "size": 12, "opacity": 0},
            selected={"marker": {"opacity": 0}},
            unselected={"marker": {"opacity": 0}},
            customdata=places,
            text=[f"{value:.4g} {unit}" if np.isfinite(value) else "not measured" for value in values.ravel()],
            hovertemplate="layer %{x}, head %{y}<br>%{text}<extra></extra>",
        )
    if chosen is not None:
        ring(figure, chosen[0], chosen[1], "square-open", 14)
    figure.update_xaxes(title="layer", dtick=step(layers), range=[-0.5, layers - 0.5], showgrid=False, zeroline=False)
    figure.update_yaxes(title="head", dtick=step(heads), range=[heads - 0.5, -0.5], showgrid=False, zeroline=False)
    return framed(figure, title, 150 + 16 * min(heads, 40))


def block_bars(
    values: NDArray[np.float64], title: str, unit: str, removed: Sequence[int] = (), sure: Estimate | None = None
) -> go.Figure:
    """A per-block figure (L,) as bars on a log axis, with the intervals of `sure`; removed blocks stand out."""
    colours = [ALARM if layer in removed else ACCENT for layer in range(len(values))]
    figure = go.Figure(
        go.Bar(
            x=list(range(len(values))),
            y=np.maximum(values, 1e-6),
            marker={"color": colours},
            hovertemplate=f"layer %{{x}}<br>%{{y:.4g}} {unit}<extra></extra>",
        )
    )
    if sure is not None and np.isfinite(sure.low).any():
        figure.update_traces(
            error_y={
                "array": np.nan_to_num(sure.high - values),
                "arrayminus": np.nan_to_num(values - np.maximum(sure.low, 1e-6)),
                **WHISKER,
            },
            customdata=[f"[{low:.3g}, {high:.3g}]" for low, high in zip(sure.low, sure.high, strict=True)],
            hovertemplate=f"layer %{{x}}<br>%{{y:.4g}} %{{customdata}} {unit}<extra></extra>",
        )
    figure.update_yaxes(type="log", title=unit, dtick=1, tickformat="~g", gridcolor=GRID)
    figure.update_xaxes(title="layer", dtick=step(len(values)), showgrid=False)
    return framed(figure, title, 280)


def size_against_loss(points: Sequence[tuple[float, float]], current: tuple[float, float]) -> go.Figure:
    """Forecast loss over the share of the bytes that stays, with the plan at hand marked."""
    figure = go.Figure(
        go.Scatter(
            x=[size for size, _ in points],
            y=[loss for _, loss in points],
            mode="lines",
            line={"color": ACCENT, "width": 2},
            hovertemplate="%{x:.1%} of the bytes<br>%{y:.3f} nats/token<extra></extra>",
        )
    )
    figure.add_scatter(
        x=[current[0]],
        y=[current[1]],
        mode="markers",
        marker={"color": ALARM, "size": 11},
        hovertemplate="this plan: %{x:.1%}, %{y:.3f} nats/token<extra></extra>",
    )
    figure.update_xaxes(title="bytes that stay", tickformat=".0%", autorange="reversed")
    figure.update_yaxes(title="forecast loss, nats/token", rangemode="tozero")
    return framed(figure, "Forecast loss of each size", 300)


def distribution(measure: HeadScore, *, intervals: bool = False, chosen: Head | None = None) -> go.Figure:
    """Every head's figure by layer, heads side by side within it, each layer's median, and the histogram of them all.

    `intervals` draws the 95% interval of each head.
    """
    values = measure.values
    layers, heads = values.shape
    low = lowest(values) if measure.log else 0.0

    def scaled(figures: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log10(np.maximum(figures, low)) if measure.log else figures

    places, y = head_places(layers, heads), scaled(values)
    x = places[:, 0] + (places[:, 1] - (heads - 1) / 2) * (0.7 / max(1, heads))
    figure = go.Figure()
    if intervals and np.isfinite(measure.estimate.low).any():
        below, above = (scaled(end).ravel() for end in (measure.estimate.low, measure.estimate.high))
        gaps = np.full_like(below, np.nan)
        figure.add_scatter(
            x=np.stack((x, x, x), 1).ravel(),
            y=np.stack((below, above, gaps), 1).ravel(),
            mode="lines",
            line={"width": 1, "color": QUIET},
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=x,
        y=y.ravel(),
        mode="markers",
        marker={"size": 7, "color": ACCENT, "opacity": 0.75},
        **steady(0.75),
        customdata=places,
        text=[_said(measure, layer, head) for layer, head in places],
        hovertemplate="layer %{customdata[0]}, head %{customdata[1]}<br>%{text}<extra></extra>",
    )
    measured = np.isfinite(values).any(1)
    figure.add_scatter(
        x=[edge for layer in np.nonzero(measured)[0] for edge in (layer - 0.42, layer + 0.42, None)],
        y=[edge for layer in np.nonzero(measured)[0] for edge in (*[np.nanmedian(y[layer])] * 2, None)],
        mode="lines",
        line={"width": 2, "color": ALARM},
        hoverinfo="skip",
    )
    known = y[np.isfinite(y)]
    counts, edges = np.histogram(known, bins=min(36, max(6, known.size // 5)))
    figure.add_bar(
        x=counts,
        y=(edges[:-1] + edges[1:]) / 2,
        width=np.diff(edges) * 0.92,
        orientation="h",
        xaxis="x2",
        marker={"color": QUIET, "line": {"width": 0}},
        customdata=[[number(edge, measure.log) for edge in pair] for pair in pairwise(edges)],
        hovertemplate=f"%{{x}} heads between %{{customdata[0]}} and %{{customdata[1]}} {measure.unit}<extra></extra>",
    )
    if chosen is not None and np.isfinite(y[chosen]):
        ring(figure, float(x[chosen[0] * heads + chosen[1]]), float(y[chosen]), "circle-open", 13)
    figure.update_layout(
        xaxis={"domain": [0, 0.82], "title": "layer", "dtick": step(layers), "range": [-0.7, layers - 0.3]},
        xaxis2={"domain": [0.84, 1], "title": "heads", "anchor": "y", "rangemode": "tozero", "nticks": 3},
    )
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(title=measure.unit, gridcolor=GRID, zeroline=False)
    if measure.log:
        figure.update_yaxes(decades(float(known.min()), float(known.max())))
    return framed(figure, f"{measure.title} ({measure.unit})", 460)


def scatter(x: HeadScore, y: HeadScore, *, chosen: Head | None = None) -> go.Figure:
    """One figure of every head against another, coloured by layer; axes of figures that span decades are logarithmic.

    Left out are heads without one of the figures, and on a logarithmic axis those of 0.
    """
    places = head_places(*x.values.shape)
    one, other = x.values.ravel(), y.values.ravel()
    fine = np.isfinite(one) & np.isfinite(other) & ((one > 0) | (not x.log)) & ((other > 0) | (not y.log))
    figure = go.Figure(
        go.Scatter(
            x=one[fine],
            y=other[fine],
            mode="markers",
            marker={
                "size": 8,
                "opacity": 0.85,
                "color": places[fine, 0],
                "colorscale": SCALE,
                "cmin": 0,
                "cmax": max(1, len(x.values) - 1),
                "colorbar": {"title": {"text": "layer"}, "thickness": 10, "outlinewidth": 0},
                "line": {"width": 1, "color": QUIET},
            },
            **steady(0.85),
            customdata=places[fine],
            text=[
                f"{x.title} {_said(x, layer, head)}<br>{y.title} {_said(y, layer, head)}"
                for layer, head in places[fine]
            ],
            hovertemplate="layer %{customdata[0]}, head %{customdata[1]}<br>%{text}<extra></extra>",
        )
    )
    if chosen is not None and fine[chosen[0] * x.values.shape[1] + chosen[1]]:
        ring(figure, float(x.values[chosen]), float(y.values[chosen]), "circle-open", 15)
    for axis, measure in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        axis(title=f"{measure.title} ({measure.unit})", gridcolor=GRID, zeroline=False)
        if measure.log:
            axis(type="log", dtick=1, tickformat="~g")
    return framed(figure, f"{y.title} against {x.title[:1].lower()}{x.title[1:]}", 500)


def difference_map(found: TaskDifference, *, chosen: Head | None = None) -> go.Figure:
    """Map of ln(cost on general text / cost on the task): teal where the task needs a head less, orange where more.

    A dot marks the heads whose interval leaves out 0. The colour ends at the value that 2% of the heads go beyond.
    """
    values = found.ratio.value
    known = np.abs(values[np.isfinite(values)])
    most = float(np.quantile(known, 0.98)) if known.size else 1.0
    bar = {"thickness": 10, "outlinewidth": 0} | factors(most)
    figure = go.Figure(
        go.Heatmap(z=values.T, zmin=-most or -1e-9, zmax=most or 1e-9, colorscale=BETWEEN, colorbar=bar, xgap=1, ygap=1)
    )
    _map(figure, values, "Cost on general text over cost on this task", "", True, chosen)
    layer, head = np.nonzero(found.sure)
    dot = {"size": 6, "color": "#ffffff", "line": {"width": 1.5, "color": "#1e293b"}}
    figure.add_scatter(x=layer, y=head, mode="markers", marker=dot, hoverinfo="skip")
    figure.data[1].update(  # type: ignore[attr-defined]
        text=[_compared(found, *place) for place in head_places(*values.shape)]
    )
    return figure


def attention_map(cells: NDArray[np.float64], side: int, labels: Sequence[str], query: int | None = None) -> go.Figure:
    """Where a head looks on a row: queries downwards, keys to the right, cells of `side` × `side` tokens (C, C).

    `labels` are the row's tokens as text; the colour is logarithmic, from a thousandth up; `query` is the token whose
    line is marked.
    """
    count = len(cells)
    floor = 1e-3
    spans = [
        f"{place * side}" if side == 1 else f"{place * side} to {min(len(labels), (place + 1) * side) - 1}"
        for place in range(count)
    ]
    words = ["".join(labels[place * side : (place + 1) * side])[:40] for place in range(count)]
    text = [
        [f"token {spans[i]} {visible(words[i])!r}<br>looks at {spans[j]} {visible(words[j])!r}" for j in range(count)]
        for i in range(count)
    ]
    places = [place * side + (side - 1) / 2 for place in range(count)]
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=places,
            z=np.log10(np.maximum(cells, floor)),
            zmin=np.log10(floor),
            zmax=0,
            colorscale=SCALE,
            customdata=100 * cells,
            text=text,
            hoverongaps=False,
            hovertemplate="%{text}<br>%{customdata:.2f}% of its attention<extra></extra>",
            colorbar={
                "thickness": 10,
                "outlinewidth": 0,
                "tickvals": [-3, -2, -1, 0],
                "ticktext": ["0.1%", "1%", "10%", "100%"],
            },
        )
    )
    if query is not None:
        figure.add_hline(y=query, line={"color": ALARM, "width": 1.5})
    end = count * side - 0.5
    figure.update_xaxes(title="token looked at", range=[-0.5, end], showgrid=False, zeroline=False, nticks=6)
    figure.update_yaxes(title="token that looks", range=[end, -0.5], showgrid=False, zeroline=False, nticks=6)
    return framed(figure, "Attention", 380)


def _said(measure: HeadScore, layer: int, head: int) -> str:
    estimate = measure.estimate
    value, low, high = (float(part[layer, head]) for part in (estimate.value, estimate.low, estimate.high))
    if not np.isfinite(value):
        return "not measured"
    ends = f" [{low:.3g}, {high:.3g}]" if np.isfinite(low) and np.isfinite(high) else ""
    return f"{value:.3g}{ends} {measure.unit}"


def _compared(found: TaskDifference, layer: int, head: int) -> str:
    value, low, high = (float(part[layer, head]) for part in (found.ratio.value, found.ratio.low, found.ratio.high))
    costs = f"general {found.general[layer, head]:.3g}, task {found.task[layer, head]:.3g} nats/token"
    if not np.isfinite(value):
        return f"no ratio<br>{costs}"
    ends = f" [{np.exp(low):.2f}, {np.exp(high):.2f}]" if np.isfinite(low) and np.isfinite(high) else ", no interval"
    return f"× {np.exp(value):.2f}{ends}<br>{costs}"
