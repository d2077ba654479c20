"""The style of all figures: colors, axes that read as numbers, the ring around the chosen head."""

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

SCALE = "Viridis"
ACCENT = "#0d9488"
QUIET = "#94a3b8"
ALARM = "#e4572e"
LINES = ("#0d9488", "#e4572e", "#3b82f6", "#d19a00", "#a855f7", "#ec4899", "#84a500", "#06b6d4", "#a16207", "#6366f1")
"""One for each of several things side by side."""
BETWEEN = [[0, "#c2410c"], [0.25, "#f59e6b"], [0.5, "rgba(148,163,184,0.25)"], [0.75, "#5eb8ae"], [1, "#0f766e"]]
"""From less to more than nothing; the middle lets the page through, so that it is quiet in light and dark."""
GRID = "rgba(148,163,184,0.25)"
WHISKER = {"color": "#64748b", "thickness": 1.5, "width": 3}
"""Of an interval."""
Head = tuple[int, int]


def head_places(layers: int, heads: int) -> NDArray[np.int64]:
    """Layer and head of each entry of a ravelled (L, H).  # (L·H, 2)"""
    return np.stack(np.divmod(np.arange(layers * heads), heads), 1)


def ring(figure: go.Figure, x: float, y: float, symbol: str, size: int) -> None:
    """Marks the chosen head."""
    marker = {"symbol": symbol, "size": size, "color": ALARM, "line": {"width": 2.5, "color": ALARM}}
    figure.add_scatter(x=[x], y=[y], mode="markers", marker=marker, hoverinfo="skip", name="chosen")


def steady(opacity: float) -> dict[str, object]:
    """A click must not fade the other points: the ring says which head is chosen."""
    return {"selected": {"marker": {"opacity": opacity}}, "unselected": {"marker": {"opacity": opacity}}}


def lowest(values: NDArray[np.float64]) -> float:
    """Return the value that stands for 0 on a logarithmic axis: the smallest one above it."""
    above = values[np.isfinite(values) & (values > 0)]
    return float(above.min()) if above.size else 1e-12


def decades(low: float, high: float) -> dict[str, object]:
    """Ticks for log10 values from `low` to `high`: powers of ten, and 2 and 5 between them where they are few."""
    ticks = np.arange(np.ceil(low), np.floor(high) + 1)
    if len(ticks) > 7:
        ticks = ticks[:: -(-len(ticks) // 7)]
    elif len(ticks) < 2:
        between = [decade + step for decade in np.arange(np.floor(low), high + 1) for step in np.log10((1, 2, 5))]
        ticks = np.array([tick for tick in between if low <= tick <= high])
    return {"tickvals": list(ticks), "ticktext": [f"{10.0**tick:.3g}" for tick in ticks]}


def factors(most: float) -> dict[str, object]:
    """Ticks of a logarithm as the factors they stand for."""
    step = next((step for step in (1.5, 2, 3, 5, 10, 100) if np.log(step) >= 0.4 * most), 1000)
    times = max(1, int(most / np.log(step) + 1e-9))
    ticks = [power * np.log(step) for power in range(-times, times + 1)]
    if not most:
        ticks = [0.0]
    return {"tickvals": ticks, "ticktext": [f"× {np.exp(tick):.3g}" for tick in ticks]}


def number(edge: float, log: bool) -> str:
    return f"{10.0**edge if log else edge:.3g}"


def visible(text: str) -> str:
    """Text as a figure shows it: plotly reads HTML in it, and braces where the mouse points as a figure's place."""
    signs = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "}": "&#125;"}
    return text.translate(str.maketrans(signs))


def step(count: int) -> int:
    return 1 if count <= 12 else 5 if count <= 64 else 10


def framed(figure: go.Figure, title: str, height: int) -> go.Figure:
    """Give a figure the layout that all share. The mouse points and clicks; it does not move or zoom."""
    figure.update_layout(
        title={"text": title, "font": {"size": 15}, "x": 0, "xanchor": "left"},
        height=height,
        margin={"l": 44, "r": 8, "t": 40, "b": 40},
        showlegend=False,
        dragmode=False,
    )
    figure.update_xaxes(fixedrange=True)
    return figure.update_yaxes(fixedrange=True)
