"""Records to figures. Layers run to the right and heads downwards; nothing here knows how figures are shown."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

SCALE = "Viridis"
ACCENT = "#0d9488"
QUIET = "#94a3b8"
ALARM = "#e4572e"


def heatmap(
    values: NDArray[np.float64], title: str, unit: str, *, log: bool = False, removed: NDArray[np.bool_] | None = None
) -> go.Figure:
    """Map of a per-head figure (L, H). `log` colours by magnitude; heads in `removed` (L, H) are crossed out."""
    shown = np.log10(np.maximum(values, 1e-12)) if log else values
    layers, heads = values.shape
    bar: dict[str, object] = {"thickness": 10, "outlinewidth": 0}
    low, high = float(np.quantile(shown, 0.01)) if log else float(shown.min()), float(shown.max())
    if log:
        ticks = np.arange(np.ceil(low), np.floor(high) + 1)
        bar |= {"tickvals": list(ticks), "ticktext": [f"{10.0**t:g}" for t in ticks]}
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
    figure.update_xaxes(title="layer", dtick=_step(layers), range=[-0.5, layers - 0.5], showgrid=False, zeroline=False)
    figure.update_yaxes(title="head", dtick=_step(heads), range=[heads - 0.5, -0.5], showgrid=False, zeroline=False)
    return _frame(figure, f"{title} ({unit})", 150 + 16 * min(heads, 40))


def block_bars(values: NDArray[np.float64], title: str, unit: str, removed: Sequence[int] = ()) -> go.Figure:
    """A per-block figure (L,) as bars on a log axis; removed blocks stand out."""
    colours = [ALARM if layer in removed else ACCENT for layer in range(len(values))]
    figure = go.Figure(
        go.Bar(
            x=list(range(len(values))),
            y=np.maximum(values, 1e-6),
            marker={"color": colours},
            hovertemplate=f"layer %{{x}}<br>%{{y:.4g}} {unit}<extra></extra>",
        )
    )
    figure.update_yaxes(type="log", title=unit, dtick=1, exponentformat="power")
    figure.update_xaxes(title="layer", dtick=_step(len(values)), showgrid=False)
    return _frame(figure, title, 280)


def size_against_loss(points: Sequence[tuple[float, float]], current: tuple[float, float]) -> go.Figure:
    """Forecast loss over the share of the parameters that stays, with the plan at hand marked."""
    figure = go.Figure(
        go.Scatter(
            x=[size for size, _ in points],
            y=[loss for _, loss in points],
            mode="lines",
            line={"color": ACCENT, "width": 2},
            hovertemplate="%{x:.1%} of the parameters<br>%{y:.3f} nats/token<extra></extra>",
        )
    )
    figure.add_scatter(
        x=[current[0]],
        y=[current[1]],
        mode="markers",
        marker={"color": ALARM, "size": 11},
        hovertemplate="this plan: %{x:.1%}, %{y:.3f} nats/token<extra></extra>",
    )
    figure.update_xaxes(title="parameters that stay", tickformat=".0%", autorange="reversed")
    figure.update_yaxes(title="forecast loss, nats/token", rangemode="tozero")
    return _frame(figure, "What each size would cost", 300)


def _step(count: int) -> int:
    return 1 if count <= 12 else 5 if count <= 64 else 10


def _frame(figure: go.Figure, title: str, height: int) -> go.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 15}, "x": 0, "xanchor": "left"},
        height=height,
        margin={"l": 44, "r": 8, "t": 40, "b": 40},
        showlegend=False,
        dragmode=False,
    )
    return figure
