"""The runs of the workspace on a page: their lineage, a table, and the chosen one in detail."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import streamlit as st

from pages.views.frame import PLOT, plain_errors, sentence, went_back
from pages.views.run_detail import show_run
from pages.views.runs_care import show_care, show_comparison, show_import
from slim.runs import lineage
from slim.runs.lineage import Lineage, Node
from slim.runs.lineage_chart import chart

CHOSEN, LINK = "runs-chosen", "run"
TALLEST = 620
"""Height in pixels beyond which the graph scrolls."""
CSS = Path(__file__).parent.parent / "assets" / "runs.css"


def choose(key: str) -> None:
    """Open a run's detail."""
    st.session_state[CHOSEN] = key


def show_runs() -> None:
    """Show the page below its title."""
    st.html(CSS)
    with plain_errors():
        found = lineage.read_lineage()
    if not found.runs:
        st.info("There is no run yet.", icon=":material/info:")
        st.page_link("pages/calibrate.py", label="Make the first one", icon=":material/arrow_forward:")
        show_import(choose)
        return
    chosen = _chosen(found)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = st.text_input(
            "Find", key="runs-find", placeholder="Name, kind, tag or figure", icon=":material/search:"
        )
        near = st.toggle(
            "Only the chosen run's lineage",
            key="runs-near",
            help="Runs that it was made from, and runs that were made from it",
        )
    shown = found
    if near:
        shown = found.part({chosen, *_keys(found.ancestors(chosen)), *_keys(found.dependents(chosen))})
    shown = matching(shown, words)
    if shown.runs:
        show_graph(shown, chosen)
    else:
        st.info("No run matches.", icon=":material/search_off:")
    show_run(found, found.nodes[chosen], choose)
    if shown.runs:
        show_table(shown)
    show_comparison(found, chosen)
    show_care(found)
    show_import(choose)


def _chosen(found: Lineage) -> str:
    """The key of the run that was clicked, or that the link names; initially the newest. Updates the link."""
    linked = st.query_params.get(LINK)
    if linked and (CHOSEN not in st.session_state or went_back()):
        if linked in found.nodes:
            choose(linked)
        else:
            st.info(sentence(f"the link's run {linked!r} is not here."), icon=":material/link_off:")
    chosen = str(st.session_state.get(CHOSEN))
    if chosen not in found.nodes:
        chosen = found.runs[0].key
    st.query_params[LINK] = chosen
    return chosen


def _keys(nodes: list[Node]) -> set[str]:
    return {node.key for node in nodes}


def matching(found: Lineage, words: str) -> Lineage:
    """The nodes that contain all of the words, and their models."""
    sought = words.casefold().split()
    if not sought:
        return found
    keys = {node.key for node in found.runs if all(word in _text(node) for word in sought)}
    models = {other.key for key in keys for other in found.ancestors(key) if other.path is None}
    return found.part(keys | models)


def _text(node: Node) -> str:
    texts = (node.name, str(node.path), node.stage, *node.tags, *node.figures.values(), *node.notes)
    return " ".join(texts).casefold()


def show_graph(shown: Lineage, chosen: str) -> None:
    """Show the lineage; a click on a node chooses it."""
    figure = chart(shown, chosen)
    height = int(figure.layout.height)  # type: ignore[attr-defined]
    with st.container(height=TALLEST if height > TALLEST else "content", border=height > TALLEST):
        st.plotly_chart(
            figure,
            key="runs-graph",
            on_select=_clicked,
            selection_mode="points",
            config=PLOT,
            alt="The runs and the runs that each was made from. Click a run to see it in detail.",
        )
    st.caption("Click a run to see it in detail. A cross: a run that it was made from is gone, or it cannot be read.")


def _clicked() -> None:
    for point in st.session_state["runs-graph"]["selection"]["points"]:
        if data := point.get("customdata"):
            (key,) = data.values() if isinstance(data, Mapping) else data
            choose(str(key))


def show_table(shown: Lineage) -> None:
    """Show every run with its figures; ticking a row chooses it."""
    nodes = shown.runs
    table = pd.DataFrame(
        {
            "Name": [node.name for node in nodes],
            "Kind": [node.stage for node in nodes],
            "Figures": [" · ".join(f"{name} {words}" for name, words in node.figures.items()) for node in nodes],
            "Tags": [list(node.tags) for node in nodes],
            "Size, MB": [node.bytes / 1e6 for node in nodes],
            "Made": pd.to_datetime([node.created for node in nodes], format="ISO8601", utc=True, errors="coerce"),
            "Notes": ["; ".join(node.notes) for node in nodes],
        }
    )
    st.dataframe(
        table,
        hide_index=True,
        key="runs-table",
        on_select=_ticked,
        selection_mode="single-row",
        column_config={
            "Figures": st.column_config.TextColumn(width="large"),
            "Tags": st.column_config.ListColumn(),
            "Size, MB": st.column_config.NumberColumn(format="%.2f"),
            "Made": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        },
    )
    st.session_state["runs-listed"] = [node.key for node in nodes]


def _ticked() -> None:
    listed = st.session_state.get("runs-listed", [])
    for place in st.session_state["runs-table"]["selection"]["rows"]:
        if place < len(listed):
            choose(listed[place])
