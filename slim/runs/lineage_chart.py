"""The lineage of runs as a figure: a column for each stage, what was made from what joined by a line."""

from collections.abc import Iterable, Mapping

import numpy as np
import plotly.graph_objects as go

from slim.core.chart_style import ACCENT, QUIET, framed, ring, steady, visible
from slim.runs.facts import Stage
from slim.runs.lineage import Lineage, Node

COLOURS: dict[Stage, str] = {
    "model": "#94a3b8",
    "calibration": "#3b82f6",
    "plan": "#d19a00",
    "checkpoint": "#0d9488",
    "recovered": "#84a500",
    "evaluation": "#a855f7",
    "judgement": "#ec4899",
}
TITLES: dict[Stage, str] = {stage: stage.capitalize() for stage in COLOURS}
SYMBOLS = ("circle", "circle-x")
"""Of a run, and of one with notes: the ring is for the chosen one."""
BASE: dict[Stage, int] = {"model": 0, "calibration": 1, "plan": 2, "checkpoint": 3, "recovered": 4}
ROW, HEAD = 54, 72
"""Pixels of a row, and of what is above the first."""
BELOW = 13
"""Pixels from the middle of a node to its label, beside the gap that a label has anyway."""
NARROW, LETTER = 800, 6.8
"""Pixels of the narrowest window's figure, and of a letter under a node."""
Places = Mapping[str, tuple[int, int]]


def columns(lineage: Lineage) -> dict[str, int]:
    """The column of each node: that of its stage, or further right where it was made from what stands there.

    What compares models stands right of them all. A circle of edited records is cut where it closes.
    """
    found: dict[str, int] = {}

    def of(node: Node, below: frozenset[str]) -> int:
        if node.key not in found:
            before = [parent for parent in lineage.parents(node.key) if parent.key not in below]
            deeper = [1 + of(parent, below | {node.key}) for parent in before]
            found[node.key] = max([BASE[node.stage], *deeper])
        return found[node.key]

    for node in lineage.nodes.values():
        if node.stage in BASE:
            of(node, frozenset({node.key}))
    for stage in ("evaluation", "judgement"):
        last = 1 + max(found.values(), default=0)
        found |= {node.key: last for node in lineage.nodes.values() if node.stage == stage}
    used = sorted(set(found.values()))
    return {key: used.index(column) for key, column in found.items()}


def lines(lineage: Lineage) -> list[tuple[str, str]]:
    """The edges that are drawn: those that no way over other runs says already."""
    before = {key: {node.key for node in lineage.ancestors(key)} for key in lineage.nodes}
    return [
        (parent, node.key)
        for node in lineage.nodes.values()
        for parent in node.parents
        if not any(parent in before[other] and other not in before[parent] for other in node.parents if other != parent)
    ]


def places(lineage: Lineage) -> Places:
    """(column, row) of each node. A row is a way from a model to a run that nothing was made from."""
    column, drawn = columns(lineage), lines(lineage)
    first = {child: parent for parent, child in reversed(drawn)}  # the parent that matters most
    after: dict[str, list[str]] = {}
    for key in sorted(lineage.nodes, key=lambda key: lineage.nodes[key].created):
        after.setdefault(first.get(key, ""), []).append(key)
    rows: dict[str, int] = {}
    free = 0

    def put(key: str) -> None:
        nonlocal free
        rows[key] = free
        waiting = [child for child in after.get(key, []) if child not in rows]
        for child in waiting:
            if child not in rows:
                put(child)
        free += not waiting

    for key in (*after.get("", []), *lineage.nodes):
        if key not in rows:
            put(key)
    return {key: (column[key], row) for key, row in rows.items()}


def chart(lineage: Lineage, chosen: str | None = None) -> go.Figure:
    """All of a lineage; a click on a node gives its key. The way to the chosen one and on from it is emphasised."""
    at = places(lineage)
    width = 1 + max((column for column, _ in at.values()), default=0)
    height = 1 + max((row for _, row in at.values()), default=0)
    near: set[str] = set()
    if chosen is not None and chosen in at:
        near = {chosen, *(node.key for node in (*lineage.ancestors(chosen), *lineage.dependents(chosen)))}
    figure = go.Figure()
    drawn = lines(lineage)
    on_the_way = [edge for edge in drawn if near.issuperset(edge)]
    _join(figure, at, [edge for edge in drawn if edge not in on_the_way], QUIET, 1.2)
    _join(figure, at, on_the_way, ACCENT, 2.4)
    if chosen is not None and chosen in at:
        ring(figure, *at[chosen], "circle-open", 28)
    for stage in COLOURS:
        nodes = [node for node in lineage.nodes.values() if node.stage == stage]
        if nodes:
            figure.add_trace(_nodes(nodes, at, stage))
    letters = int(NARROW / width / LETTER)
    figure.add_scatter(
        x=[at[key][0] for key in at],
        y=[at[key][1] + BELOW / ROW for key in at],
        text=[visible(short(lineage.nodes[key].name, letters)) for key in at],
        mode="text",
        textposition="bottom center",
        textfont={"size": 11},
        hoverinfo="skip",
    )
    for column in range(width):
        there = {lineage.nodes[key].stage for key in at if at[key][0] == column}
        named = "<br>".join(TITLES[stage] for stage in COLOURS if stage in there)
        figure.add_annotation(
            x=column, y=1, yref="paper", yshift=8, yanchor="bottom", text=named, showarrow=False, font={"size": 12.5}
        )
    framed(figure, "", HEAD + ROW * height)
    figure.update_layout(title=None, margin={"l": 0, "r": 0, "t": 44, "b": 8}, hoverlabel={"align": "left"})
    figure.update_xaxes(visible=False, range=[-0.5, width - 0.5])
    return figure.update_yaxes(visible=False, range=[height - 0.35, -0.45])


def short(name: str, letters: int) -> str:
    """A name that fits, both of its ends in it: runs made one after the other differ at the end alone."""
    if len(name) <= letters:
        return name
    end = (letters - 1) // 2
    return f"{name[: letters - 1 - end]}…{name[len(name) - end :]}"


def _join(
    figure: go.Figure, at: Places, edges: Iterable[tuple[str, str]], colour: str, width: float, points: int = 32
) -> None:
    """Lines that leave and arrive level."""
    x: list[float | None] = []
    y: list[float | None] = []
    way = np.linspace(0, 1, points)
    for start, end in edges:
        (left, top), (right, bottom) = at[start], at[end]
        x += [*(left + (right - left) * way), None]
        y += [*(top + (bottom - top) * way**2 * (3 - 2 * way)), None]
    figure.add_scatter(x=x, y=y, mode="lines", line={"color": colour, "width": width}, hoverinfo="skip")


def _nodes(nodes: list[Node], at: Places, stage: Stage) -> go.Scatter:
    return go.Scatter(
        x=[at[node.key][0] for node in nodes],
        y=[at[node.key][1] for node in nodes],
        mode="markers",
        marker={
            "size": 17,
            "color": COLOURS[stage],
            "symbol": [SYMBOLS[bool(node.notes)] if node.path else "diamond" for node in nodes],
            "line": {"width": [1.5 if node.notes else 0 for node in nodes], "color": "white"},
        },
        customdata=[[node.key] for node in nodes],
        text=[_hover(node) for node in nodes],
        hovertemplate="%{text}<extra></extra>",
        name=stage,
        **steady(1.0),
    )


def _hover(node: Node) -> str:
    said = [f"{name}: {words}" for name, words in node.figures.items()]
    said += [node.created[:16].replace("T", " ")] if node.created else []
    said += [", ".join(node.tags)] if node.tags else []
    told = "<br>".join(visible(line) for line in (*said, *node.notes))
    return f"<b>{visible(node.name)}</b><br>{node.stage}<br>{told}"
