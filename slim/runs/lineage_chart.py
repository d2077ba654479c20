"""The lineage of runs as a figure: a column for each stage, and a line from each parent to its child."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from slim.core.chart_style import ACCENT, QUIET, framed, ring, steady, visible
from slim.runs.facts import Stage
from slim.runs.lineage import Lineage, Node

if TYPE_CHECKING:
    import networkx as nx

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
"""Symbols of a run, and of one with notes; the ring marks the chosen one."""
COMPARING: tuple[Stage, ...] = ("evaluation", "judgement")
ROOT = ""
"""The key of an artificial root, the parent of all nodes without parents."""
ROW, HEAD = 54, 72
"""Pixels of a row, and of the space above the first."""
BELOW = 13
"""Pixels from the middle of a node to its label, in addition to the label's own gap."""
NARROW, LETTER = 800, 6.8
"""Pixels of the narrowest window's figure, and of a letter under a node."""
Places = Mapping[str, tuple[int, int]]


def columns(lineage: Lineage) -> dict[str, int]:
    """The column of each node: that of its stage, or further right where a parent is in that column.

    Evaluations and judgements are right of all models. A cycle of edited records is cut where it closes.
    """
    import networkx as nx

    graph, stages = _acyclic(lineage), list(COLOURS)
    nx.add_path(graph, range(len(stages)))  # a number is a stage: it is left of all nodes of its stage
    for node in lineage.nodes.values():
        stage = stages.index(node.stage)
        graph.add_edge(stage, node.key)
        graph.add_edges_from((node.key, later) for later in range(stage + 1, len(stages)) if stages[later] in COMPARING)
    generations = [
        [key for key in generation if key in lineage.nodes] for generation in nx.topological_generations(graph)
    ]
    return {key: column for column, keys in enumerate(filter(None, generations)) for key in keys}


def lines(lineage: Lineage) -> list[tuple[str, str]]:
    """The edges that are drawn: those that no path over other runs implies."""
    import networkx as nx

    drawn = nx.transitive_reduction(_acyclic(lineage)).edges
    return [edge for edge in lineage.edges if edge in drawn]


def places(lineage: Lineage) -> Places:
    """The (column, row) of each node. A row is a path from a model to a run without children."""
    import networkx as nx

    column = columns(lineage)
    first = {child: parent for parent, child in reversed(lines(lineage))}  # the most important parent
    ways = nx.DiGraph()
    ways.add_node(ROOT)
    ways.add_edges_from(
        (first.get(key, ROOT), key) for key in sorted(lineage.nodes, key=lambda key: lineage.nodes[key].created)
    )
    rows: dict[str, int] = {}
    free = 0
    for key in nx.dfs_preorder_nodes(ways, ROOT):
        rows[key] = free
        free += not ways.out_degree(key)
    return {key: (column[key], rows[key]) for key in lineage.nodes}


def _acyclic(lineage: Lineage) -> "nx.DiGraph":
    """The lineage as an acyclic graph. A cycle, which edited records may form, is cut where it closes."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(lineage.nodes)
    graph.add_edges_from(lineage.edges)
    while not nx.is_directed_acyclic_graph(graph):
        graph.remove_edge(*nx.find_cycle(graph, orientation="reverse")[-1][:2])
    return graph


def chart(lineage: Lineage, chosen: str | None = None) -> go.Figure:
    """The figure of a lineage; a click on a node gives its key. The paths to and from the chosen one are emphasized."""
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
    """A name shortened in its middle: runs made one after the other differ at the end alone."""
    if len(name) <= letters:
        return name
    end = (letters - 1) // 2
    return f"{name[: letters - 1 - end]}…{name[len(name) - end :]}"


def _join(
    figure: go.Figure, at: Places, edges: Iterable[tuple[str, str]], colour: str, width: float, points: int = 32
) -> None:
    """Curves that start and end horizontally."""
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
