"""Charts of an evaluation: every model beside the original, and size against quality; a color for each model."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from slim.core.chart_style import ACCENT, GRID, LINES, QUIET, WHISKER, framed, visible
from slim.evaluation.comparison import ComparedMetric, efficient
from slim.evaluation.metrics import Figure

LONGEST = 28
"""Most characters of a model's name in a chart."""
COLUMNS = 2
PANEL, BAR = 78, 26
"""Height in pixels of a panel without its bars, and of a bar."""
FEWEST_SPOKES = 3
WIDE = 10.0
"""From this ratio of the largest to the smallest figure on, an axis is logarithmic."""


def shown(name: str) -> str:
    """Return a model's name for a chart: as plain text, and cut where it is long."""
    return visible(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…")


def color(place: int) -> str:
    """Return the color of a model by its place; the original is gray."""
    return QUIET if place == 0 else LINES[(place - 1) % len(LINES)]


def change_bars(quantities: Sequence[ComparedMetric], names: Sequence[str]) -> go.Figure:
    """Return a panel for each metric: the difference of every model to the original, with its interval and unit.

    Only metrics with a known difference get a panel; the line at 0 is the original.
    """
    known = [quantity for quantity in quantities if any(quantity.changes)]
    lines = max(1, -(-len(known) // COLUMNS))
    figure = make_subplots(
        lines,
        COLUMNS,
        shared_yaxes=True,
        horizontal_spacing=0.06,
        vertical_spacing=0 if lines == 1 else min(0.5, 62 / (PANEL + BAR * (len(names) - 1))) / lines,
        subplot_titles=[_panel_title(quantity) for quantity in known],
    )
    figure.update_annotations(font={"size": 13})
    for place, quantity in enumerate(known):
        row, column = place // COLUMNS + 1, place % COLUMNS + 1
        for model, change in enumerate(quantity.changes):
            if change is not None:
                figure.add_trace(_bar(quantity, model, change, names[model]), row=row, col=column)
        figure.add_vline(x=0, line={"color": QUIET, "width": 1.5}, row=row, col=column)  # type: ignore[arg-type]
    figure.update_xaxes(gridcolor=GRID, zeroline=False, nticks=6, tickformat="~g")
    figure.update_yaxes(
        tickvals=list(range(1, len(names))),
        ticktext=[shown(name) for name in names[1:]],
        range=[len(names) - 0.4, 0.4],
        showgrid=False,
        automargin=True,
        ticksuffix="  ",
    )
    framed(figure, "Difference to the original", 90 + lines * (PANEL + BAR * (len(names) - 1)))
    return figure.update_layout(margin={"t": 70})


def _panel_title(quantity: ComparedMetric) -> str:
    unit = f", {quantity.change_unit}" if quantity.change_unit else ""
    return f"{visible(quantity.title)}{unit} ({'right' if quantity.higher_is_better else 'left'} is better)"


def _bar(quantity: ComparedMetric, model: int, change: Figure, name: str) -> go.Bar:
    error = {}
    if change.low is not None and change.high is not None and change.high > change.low:
        ends = {"array": [change.high - change.value], "arrayminus": [change.value - change.low]}
        error = {"error_x": {"type": "data", "symmetric": False, **ends, **WHISKER}}
    return go.Bar(
        x=[change.value],
        y=[model],
        orientation="h",
        width=0.62,
        marker={"color": color(model)},
        name=shown(name),
        text=[f"{quantity.change_in_words(model)}<br>{_said(quantity, model)}"],
        textposition="none",
        hovertemplate=f"{shown(name)}<br>%{{text}}<extra></extra>",
        **error,
    )


def spokes(quantities: Sequence[ComparedMetric]) -> list[ComparedMetric]:
    """Return the metrics whose ratio to the original's is known for every model."""
    return [quantity for quantity in quantities if np.isfinite(quantity.shares).all()]


def radar(quantities: Sequence[ComparedMetric], names: Sequence[str]) -> go.Figure | None:
    """Return every model as a ring: outward is better, the gray ring is the original. None below three spokes."""
    known = spokes(quantities)
    if len(known) < FEWEST_SPOKES:
        return None
    titles = [visible(quantity.title) for quantity in known]
    figure = go.Figure()
    for model, name in enumerate(names):
        values = [float(quantity.shares[model]) for quantity in known]
        figure.add_scatterpolar(
            r=[*values, values[0]],
            theta=[*titles, titles[0]],
            mode="lines+markers",
            name=shown(name),
            line={"color": color(model), "width": 2, "dash": "dash" if model == 0 else "solid"},
            marker={"size": 6},
            hovertemplate=f"{shown(name)}<br>%{{theta}}: %{{r:.2f}} times as good<extra></extra>",
        )
    framed(figure, "Times as good as the original: outward is better", 460)
    figure.update_polars(
        bgcolor="rgba(0,0,0,0)",
        radialaxis={"rangemode": "tozero", "gridcolor": GRID, "angle": 90, "tickangle": 90, "nticks": 5},
        angularaxis={"gridcolor": GRID, "rotation": 90, "direction": "clockwise"},
    )
    figure.update_layout(margin={"l": 90, "r": 90, "t": 60, "b": 60})
    return _with_legend(figure, -0.12)


def trade_off(x: ComparedMetric, y: ComparedMetric, names: Sequence[str]) -> go.Figure:
    """Return one metric against another, a point for each model with both; the efficient ones are filled and joined."""
    best, xs, ys = efficient(x, y), x.values, y.values
    log_x, log_y = _spread(x), _spread(y)
    figure = go.Figure()
    line = sorted(np.flatnonzero(best), key=lambda model: (xs[model], ys[model]))
    figure.add_scatter(
        x=xs[line],
        y=ys[line],
        mode="lines",
        line={"color": ACCENT, "width": 1.5, "dash": "dot"},
        name="efficient",
        hoverinfo="skip",
        showlegend=len(line) > 1,
    )
    for model, name in enumerate(names):
        if not np.isfinite([xs[model], ys[model]]).all():
            continue
        tone, found = color(model), y.figures[model]
        error = {}
        if found is not None and found.low is not None and found.high is not None and found.high > found.low:
            ends = {"array": [found.high - found.value], "arrayminus": [found.value - found.low]}
            error = {"error_y": {"type": "data", "symmetric": False, **ends, **WHISKER}}
        figure.add_scatter(
            x=[xs[model]],
            y=[ys[model]],
            mode="markers",
            name=shown(name),
            marker={
                "size": 13,
                "symbol": ("diamond" if model == 0 else "circle") + ("" if best[model] else "-open"),
                "color": tone,
                "line": {"width": 2, "color": tone},
            },
            text=[_said(x, model) + "<br>" + _said(y, model) + ("<br>efficient" if best[model] else "")],
            hovertemplate=f"{shown(name)}<br>%{{text}}<extra></extra>",
            **error,
        )
    for update, quantity, log in ((figure.update_xaxes, x, log_x), (figure.update_yaxes, y, log_y)):
        title = f"{visible(quantity.label)} ({'more' if quantity.higher_is_better else 'less'} is better)"
        update(title=title, gridcolor=GRID, zeroline=False, automargin=True, tickformat="~g")
        if log:
            update(type="log", dtick="D2")
    framed(figure, visible(f"{y.title[:1].upper()}{y.title[1:]} against {x.title}"), 460)
    return _with_legend(figure, -0.2)


def _spread(quantity: ComparedMetric) -> bool:
    values = quantity.values[np.isfinite(quantity.values)]
    return bool(values.size and values.min() > 0 and values.max() >= WIDE * values.min())


def _said(quantity: ComparedMetric, model: int) -> str:
    figure = quantity.figures[model]
    if figure is None:
        return ""
    sure = quantity.group == "quality"
    words = figure.words(quantity.digits) if sure else f"{figure.value:,.{quantity.digits}f}"
    return f"{visible(quantity.title)} {words} {quantity.unit}".rstrip()


def _with_legend(figure: go.Figure, y: float) -> go.Figure:
    legend = {"orientation": "h", "x": 0, "y": y, "yanchor": "top", "font": {"size": 12}}
    return figure.update_layout(showlegend=True, legend=legend)
