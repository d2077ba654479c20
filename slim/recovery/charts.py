"""Charts of a recovery: the curve of a training, and the change of each step."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from slim.core.chart_style import ACCENT, ALARM, GRID, QUIET, framed
from slim.pruning.history import CurvePoint, Method, Quality, RecoveryStep

NAMES: dict[Method, str] = {
    "repair": "Repair",
    "local": "Local distillation",
    "kd": "Knowledge distillation",
    "lora": "LoRA on the task",
}
PANELS = ("Loss on validation rows", "KL to the original, nats/token")
LINE = 34
"""Height in pixels of a step."""


def curve(points: Sequence[CurvePoint], steps: int | None = None) -> go.Figure:
    """Return loss and KL to the original over the steps of a training, the best step ringed; `steps` is the last."""
    figure = make_subplots(1, 2, horizontal_spacing=0.1, subplot_titles=PANELS)
    at = [point.step for point in points]
    trained = [point for point in points if point.training is not None]
    _line(figure, 1, [point.step for point in trained], [point.training or 0.0 for point in trained], "training", QUIET)
    _line(figure, 1, at, [point.validation for point in points], "validation", ACCENT)
    _line(figure, 2, at, [point.kl for point in points], "validation", ACCENT)
    after = [point for point in points if point.step]
    if after:
        best = min(after, key=lambda point: point.validation)
        for column, value in ((1, best.validation), (2, best.kl)):
            marker = {"size": 14, "symbol": "circle-open", "color": ALARM, "line": {"width": 2.5}}
            ring = go.Scatter(
                x=[best.step],
                y=[value],
                mode="markers",
                marker=marker,
                name="best so far" if steps and at[-1] < steps else "best",
                hoverinfo="skip",
                showlegend=column == 1,
            )
            figure.add_trace(ring, row=1, col=column)
    last = max([steps or 0, *at, 1])
    figure.update_xaxes(
        title="step",
        gridcolor=GRID,
        zeroline=False,
        range=[-0.04 * last, 1.06 * last],
        rangemode="tozero",
        tickformat="d",
    )
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True, nticks=6, tickformat="~g")
    figure.update_annotations(font={"size": 13})
    framed(figure, "Training", 320)
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.16, "yanchor": "bottom", "font": {"size": 12}}
    return figure.update_layout(showlegend=True, legend=legend, margin={"t": 76})


def _line(figure: go.Figure, column: int, x: Sequence[int], y: Sequence[float], name: str, color: str) -> None:
    trace = go.Scatter(
        x=x,
        y=y,
        mode="lines+markers",
        name=name,
        line={"color": color, "width": 2},
        marker={"size": 6},
        hovertemplate=f"step %{{x}}, {name}: %{{y:.4f}}<extra></extra>",
        showlegend=column == 1,
    )
    figure.add_trace(trace, row=1, col=column)


def changes(steps: Sequence[RecoveryStep]) -> go.Figure:
    """Return a line for each step, from the model before it to the one after it: KL to the original, and perplexity.

    The left edge of both panels is the original.
    """
    titles = (PANELS[1], "Perplexity, times the original's")
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=titles)
    names = [f"{number}. {NAMES[step.method]}" for number, step in enumerate(steps, 1)]
    for place, step in enumerate(steps):
        for column, (one, other, digits) in enumerate(
            ((step.before.kl, step.after.kl, 4), (step.before.ratio, step.after.ratio, 3)), 1
        ):
            figure.add_trace(_change(place, one, other, digits, step.applied), row=1, col=column)
    figure.add_vline(x=1, line={"color": QUIET, "width": 1.5}, row=1, col=2)  # type: ignore[arg-type]
    figure.update_xaxes(gridcolor=GRID, zeroline=False, nticks=6, tickformat="~g")
    figure.update_xaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(
        tickvals=list(range(len(steps))),
        ticktext=names,
        range=[len(steps) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
        automargin=True,
        ticksuffix="  ",
    )
    figure.update_annotations(font={"size": 13})
    framed(figure, "Change by each step, from the model before it (open) to the one after it", 130 + LINE * len(steps))
    return figure.update_layout(margin={"t": 70})


def _change(place: int, one: float, other: float, digits: int, applied: bool) -> go.Scatter:
    tone = (ACCENT if other <= one else ALARM) if applied else QUIET
    words = f"{one:.{digits}f} → {other:.{digits}f}" if applied else f"{one:.{digits}f}, not applied"
    return go.Scatter(
        x=[one, other],
        y=[place, place],
        mode="lines+markers",
        line={"color": tone, "width": 3},
        marker={
            "size": [11, 13],
            "symbol": ["circle-open", "circle"],
            "color": tone,
            "line": {"width": 2, "color": tone},
        },
        hovertemplate=f"{words}<extra></extra>",
    )


def in_words(one: Quality, other: Quality) -> str:
    """Return the quality before and after in one line."""
    words = (
        f"KL to the original {one.kl:.3f} → {other.kl:.3f} nats/token, "
        f"perplexity {one.ratio:.3f}× → {other.ratio:.3f}× the original's"
    )
    if one.answers is None or other.answers is None:
        return words
    return f"{words}, answers that ended by themselves {one.answers.stopped} → {other.answers}"
