"""One run on a page: its figures, the runs that it is joined to, and its buttons."""

import html
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from pages.views.frame import go_to, plain_errors, sentence
from pages.views.report_button import offer_report
from slim.core.errors import SlimError
from slim.core.formatting import format_bytes
from slim.core.markdown import escaped
from slim.runs import archive, manage
from slim.runs.lineage import Lineage, Node
from slim.runs.lineage_chart import COLOURS

LARGEST = 500_000_000
"""Most bytes of an archive for a browser: the server holds all of it in memory."""
Choose = Callable[[str], None]
Step = tuple[str, str, str, dict[str, object]]
"""A button's words and icon, the page it leads to, and the state of the session that chooses the run there."""


def show_run(found: Lineage, node: Node, choose: Choose) -> None:
    """Show the detail of a run, or of a model that runs were made from."""
    with st.container(border=True, key="run-detail"):
        st.html(_heading(node))
        for note in node.notes:
            st.warning(f"{sentence(note)}.", icon=":material/link_off:")
        st.html(_figures(node))
        _show_others("Made from", found.parents(node.key), choose, f"up-{node.key}")
        _show_others("Used by", found.children(node.key), choose, f"down-{node.key}")
        if node.path is None:
            return
        with st.container(horizontal=True):
            for words, icon, page, chosen in steps(node):
                if st.button(words, icon=f":material/{icon}:", key=f"go-{page}-{node.key}"):
                    st.session_state.update(chosen)
                    go_to(page)
            with st.popover("Name and tags", icon=":material/sell:"):
                _show_names(found, node)
            with st.popover("Export", icon=":material/archive:"):
                _show_export(found, node)
            with st.popover("Delete", icon=":material/delete:"):
                _show_delete(found, node)


def _heading(node: Node) -> str:
    tags = "".join(f"<span class='run-tag'>{html.escape(tag)}</span>" for tag in node.tags)
    color = COLOURS[node.stage]
    return (
        f"<div class='run-head'><span class='run-dot' style='background:{color}'></span>"
        f"<strong>{html.escape(node.name)}</strong><span class='run-kind'>{node.stage}</span>{tags}</div>"
    )


def _figures(node: Node) -> str:
    lines = dict(node.figures)
    if node.path is not None:
        lines |= {
            "made": node.created[:16].replace("T", " "),
            "on disk": format_bytes(node.bytes),
            "place": str(node.path),
        }
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(words)}</dd></div>" for name, words in lines.items()
    )
    return f"<dl class='run-figures'>{items}</dl>"


def _show_others(title: str, others: Sequence[Node], choose: Choose, key: str) -> None:
    """Show parents or children of a run; a click leads there."""
    if others:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(title, width=72)
            for other in others:
                label = escaped(f"{other.stage} {other.name}")
                st.button(label, key=f"{key}-{other.key}", type="tertiary", on_click=partial(choose, other.key))


def steps(node: Node) -> list[Step]:
    """The next steps of the work with a run."""
    path = node.path
    match node.kind:
        case "calibration":
            return [
                ("Explore it", "grid_on", "pages/explore.py", {"explore-calibration": path}),
                ("Prune by it", "content_cut", "pages/prune.py", {"prune-calibration": path}),
            ]
        case "checkpoint":
            return [
                ("Recover more of it", "healing", "pages/recover.py", {"recover-checkpoint": path}),
                ("Evaluate it", "monitoring", "pages/evaluate.py", {"evaluate-checkpoints": [str(path)]}),
                (
                    "Compare its answers",
                    "compare",
                    "pages/compare.py",
                    {"compare-checkpoint": path, "judge-pruned": str(path)},
                ),
            ]
        case "evaluation":
            return [("Open it", "monitoring", "pages/evaluate.py", {"evaluate-run": path})]
        case "judgement":
            shown = {"compare-judgement": path, "compare-view": "Judge"}
            return [("Open it", "compare", "pages/compare.py", shown)]
    return []


def _show_names(found: Lineage, node: Node) -> None:
    """Name and tags. The run stays where it lies, because others name its place."""
    name = st.text_input("Name", node.name, key=f"name-{node.key}", max_chars=manage.LONGEST)
    used = sorted({tag for other in found.runs for tag in other.tags})
    tags = st.multiselect(
        "Tags", used, default=list(node.tags), accept_new_options=True, key=f"tags-{node.key}", placeholder="Add a tag"
    )
    if st.button("Save", type="primary", key=f"save-{node.key}"):
        try:
            if name != node.name:
                manage.rename(found, node, name)
            if added := [tag for tag in tags if tag not in node.tags]:
                manage.tag(node, *added)
            if taken := [tag for tag in node.tags if tag not in tags]:
                manage.untag(node, *taken)
        except SlimError as error:
            st.error(sentence(str(error)), icon=":material/error:")
            return
        st.rerun()
    st.caption("The files stay where they are, under the name they have.")


def _show_export(found: Lineage, node: Node) -> None:
    """Downloads: the report of a run, or all of it in one file."""
    if node.path is not None:
        offer_report(node.path)
    whole = st.toggle("With all that it was made from", value=True, key=f"whole-{node.key}")
    nodes = archive.with_ancestors(found, node) if whole else [node]
    size = sum(one.bytes for one in nodes)
    st.caption(f"{len(nodes)} run{'s' if len(nodes) > 1 else ''}, {format_bytes(size)}")
    if size > LARGEST:
        lineage = " --with-lineage" if whole else ""
        st.caption("That is too large for a browser. On the command line:")
        st.code(f"slim runs export {node.key}{lineage} --output run{archive.SUFFIX}", language="sh")
        return
    st.download_button(
        "Download",
        partial(_packed, found, nodes),
        f"{(node.path or Path('run')).stem}{archive.SUFFIX}",
        "application/zip",
        key=f"download-{node.key}-{whole}",
        type="primary",
        icon=":material/download:",
        on_click="ignore",
    )
    st.caption("Import it on another machine at the bottom of this page, or with `slim runs import`.")


def _packed(found: Lineage, nodes: Sequence[Node]) -> bytes:
    """The archive, written when it is requested."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"runs{archive.SUFFIX}"
        archive.export_runs(found, nodes, file)
        return file.read_bytes()


def _show_delete(found: Lineage, node: Node) -> None:
    """The runs that depend on this one, and the button that deletes."""
    after = manage.dependents(found, [node])
    if after:
        names = ", ".join(f"{other.stage} {other.name}" for other in after[: manage.LISTED])
        more = f" and {len(after) - manage.LISTED} more" if len(after) > manage.LISTED else ""
        st.warning(f"Made from it: {escaped(names)}{more}.", icon=":material/account_tree:")
    all_of_it = bool(after) and st.checkbox("Delete these too", key=f"all-{node.key}")
    if after and not all_of_it:
        st.caption("They stay, but no longer name the runs that they were made from.")
    nodes = [node, *after] if all_of_it else [node]
    size = format_bytes(sum(one.bytes for one in nodes))
    words = f"Delete {len(nodes)} runs, {size}" if len(nodes) > 1 else f"Delete it, {size}"
    if st.button(words, type="primary", key=f"delete-{node.key}", icon=":material/delete_forever:"):
        with plain_errors():
            manage.delete(nodes)
        st.toast(f"Deleted: {escaped(node.name)}")
        st.rerun()
    st.caption("This cannot be undone.")
