"""A check's record to figures: what each criterion is worth, and how far the forecast is off."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from slim.calibration.check_record import Correction, CriterionCheck, Verdict
from slim.core.chart_style import (
    ACCENT,
    ALARM,
    GRID,
    LINES,
    QUIET,
    WHISKER,
    Head,
    framed,
    lowest,
    ring,
    steady,
    visible,
)


def correlations(
    check: CriterionCheck, titles: Mapping[str, str], now: tuple[float, float, float] | None = None
) -> go.Figure:
    """Rank correlation of every criterion with the damage that was measured, with its interval, the best on top.

    `now` is value, low and high of the composite at other weights than those of the check.
    """
    bars = [(_title(v.criterion, titles), v.correlation, v.low, v.high) for v in ranked(check)]
    if now is not None and np.isfinite(now[0]):
        low, high = (end if np.isfinite(end) else None for end in now[1:])
        bars.append(("Composite, weights now", now[0], low, high))
    bars.sort(key=lambda bar: bar[1] or 0.0)
    value = np.array([bar[1] for bar in bars], dtype=float)
    ends = np.array([[np.nan if end is None else end for end in bar[2:]] for bar in bars], dtype=float).reshape(-1, 2)
    figure = go.Figure(
        go.Bar(
            x=value,
            y=[bar[0] for bar in bars],
            orientation="h",
            marker={"color": [_tone(bar[0], bar[1] or 0.0, titles) for bar in bars]},
            error_x={
                "array": np.nan_to_num(ends[:, 1] - value),
                "arrayminus": np.nan_to_num(value - ends[:, 0]),
                **WHISKER,
            },
            text=[
                f"{v:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) else "")
                for v, (low, high) in zip(value, ends, strict=True)
            ],
            textposition="none",
            hovertemplate="%{y}<br>%{text}<extra></extra>",
        )
    )
    figure.update_xaxes(title="rank correlation, 1 = perfect", range=[-1.05, 1.05], gridcolor=GRID)
    figure.update_xaxes(zeroline=True, zerolinecolor=QUIET, dtick=0.5)
    figure.update_yaxes(showgrid=False, automargin=True, ticksuffix="  ")
    return framed(figure, "Who orders the heads as their damage does", 110 + 28 * len(bars))


def perplexities(check: CriterionCheck, titles: Mapping[str, str]) -> go.Figure:
    """Perplexity without each criterion's first heads, over the share of heads that is gone, on a logarithmic axis."""
    figure = go.Figure()
    order = sorted(check.verdicts, key=lambda verdict: verdict.removals[-1].perplexity)
    for index, verdict in enumerate(order):
        chance = verdict.criterion == "random"
        name = _title(verdict.criterion, titles)
        figure.add_scatter(
            x=[0, *(removal.share for removal in verdict.removals)],
            y=[check.perplexity, *(removal.perplexity for removal in verdict.removals)],
            name=name,
            mode="lines+markers",
            line={
                "width": 2,
                "color": QUIET if chance else LINES[index % len(LINES)],
                "dash": "dot" if chance else "solid",
            },
            marker={"size": 6},
            hovertemplate=f"{name}<br>%{{x:.0%}} of the heads gone: perplexity %{{y:,.1f}}<extra></extra>",
        )
    figure.add_hline(y=check.perplexity, line={"color": QUIET, "width": 1, "dash": "dash"})
    figure.update_xaxes(title="heads removed together", tickformat=".0%", showgrid=False, zeroline=False)
    figure.update_yaxes(title="perplexity", type="log", dtick=1, gridcolor=GRID, tickformat=",.0f")
    framed(figure, "Loss of following each criterion", 360)
    legend = {"x": 1.02, "y": 1, "traceorder": "reversed", "font": {"size": 12}}
    return figure.update_layout(showlegend=True, legend=legend)


def correction_fit(check: CriterionCheck, titles: Mapping[str, str]) -> go.Figure:
    """Draw the forecast and the measured loss of joint removals, and the correction fitted to them (log-log)."""
    points: dict[tuple[float, float], list[str]] = {}
    for verdict in check.verdicts:
        for removal in verdict.removals:
            if removal.forecast and removal.kl > 0:
                label = f"{_title(verdict.criterion, titles)}, {removal.share:.0%}"
                points.setdefault((removal.forecast, removal.kl), []).append(label)
    figure = go.Figure(
        go.Scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            text=["<br>".join(labels) for labels in points.values()],
            mode="markers",
            marker={"size": 8, "color": ACCENT, "opacity": 0.85},
            name="removed together",
            hovertemplate="%{text}<br>forecast %{x:.3g}, measured %{y:.3g} nats/token<extra></extra>",
        )
    )
    if points:
        ends = np.array([min(min(point) for point in points), max(max(point) for point in points)])
        figure.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": QUIET, "dash": "dash", "width": 1.5},
            name="as forecast",
            hoverinfo="skip",
        )
    if check.correction is not None:
        line = _fitted(check.correction)
        figure.add_scatter(
            x=line[0], y=line[1], mode="lines", line={"color": ALARM, "width": 2}, name="corrected", hoverinfo="skip"
        )
    for axis, title in ((figure.update_xaxes, "forecast, nats/token"), (figure.update_yaxes, "measured, nats/token")):
        axis(title=title, type="log", dtick=1, tickformat="~g", gridcolor=GRID, zeroline=False)
    framed(figure, "How far the forecast is off", 400)
    legend = {"x": 0.98, "xanchor": "right", "y": 0.03, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}
    return figure.update_layout(showlegend=True, legend=legend)


def damage_by_rank(
    prunability: NDArray[np.float64], check: CriterionCheck, title: str, *, chosen: Head | None = None
) -> go.Figure:
    """The heads that were left out alone: when a criterion (L, H) would take each, and what it really cost."""
    ranks = [float(1 - prunability[head]) for head in check.heads]
    floor = lowest(np.array(check.damage))
    shown = np.maximum(check.damage, floor)
    figure = go.Figure(
        go.Scatter(
            x=ranks,
            y=shown,
            mode="markers",
            marker={"size": 9, "color": ACCENT, "opacity": 0.85},
            **steady(0.85),
            customdata=[list(head) for head in check.heads],
            text=[f"{cost:.3g}" for cost in check.damage],
            hovertemplate="layer %{customdata[0]}, head %{customdata[1]}<br>measured %{text} nats/token<br>"
            "goes after %{x:.0%} of the heads<extra></extra>",
        )
    )
    if chosen in check.heads:
        place = check.heads.index(chosen)
        ring(figure, ranks[place], float(shown[place]), "circle-open", 15)
    figure.update_xaxes(title="goes first  →  goes last", tickformat=".0%", range=[-0.04, 1.04], gridcolor=GRID)
    figure.update_yaxes(title="measured damage, nats/token", type="log", dtick=1, tickformat="~g")
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    return framed(figure, f"Heads left out alone, by {title[:1].lower()}{title[1:]}", 400)


def ranked(check: CriterionCheck) -> list[Verdict]:
    """The criteria whose correlation is known, the best first."""
    return sorted(
        (verdict for verdict in check.verdicts if verdict.correlation is not None),
        key=lambda verdict: -(verdict.correlation or 0.0),
    )


def _fitted(correction: Correction) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = np.geomspace(correction.smallest, correction.largest, 30)
    return x, x * np.array([correction.factor(float(value)) for value in x])


def _tone(name: str, value: float, titles: Mapping[str, str]) -> str:
    if name == titles.get("random", "random"):
        return QUIET
    return ACCENT if value >= 0 else ALARM


def _title(criterion: str, titles: Mapping[str, str]) -> str:
    """A criterion's title, or its name as the record has it."""
    return titles.get(criterion) or visible(criterion)
