"""Two runs side by side, disk use, cleaning up, and runs from another machine."""

import pandas as pd
import streamlit as st

from pages.views.frame import plain_errors, sentence
from pages.views.run_detail import Choose
from slim.core.errors import SlimError
from slim.core.formatting import format_bytes
from slim.core.markdown import escaped
from slim.runs import archive, disk_use
from slim.runs.comparison import compare
from slim.runs.disk_use import Left
from slim.runs.lineage import Lineage, Node

LARGEST_UPLOAD = 1000
"""Most megabytes of an upload: the server holds it in memory."""


def show_comparison(found: Lineage, chosen: str) -> None:
    """Any two runs, their differences first."""
    with st.expander(
        "Compare two runs", icon=":material/difference:", key="runs-comparing", on_change="rerun"
    ) as opened:
        if not opened.open:  # so that nothing is read that is not shown
            return
        nodes = {node.key: node for node in found.runs}
        if len(nodes) < 2:
            st.caption("There is only one run.")
            return
        first = list(nodes).index(chosen) if chosen in nodes else 0
        kind = list(nodes.values())[first].kind
        others = [place for place, node in enumerate(nodes.values()) if place != first]
        alike = [place for place in others if list(nodes.values())[place].kind == kind]
        left, right = st.columns(2)
        one = left.selectbox("One", nodes, first, format_func=lambda key: _called(nodes[key]), key=f"one-{chosen}")
        other = right.selectbox(
            "Other", nodes, (alike or others)[0], format_func=lambda key: _called(nodes[key]), key=f"other-{chosen}"
        )
        try:
            both = compare(nodes[one], nodes[other])
        except SlimError as error:
            st.error(sentence(str(error)), icon=":material/error:")
            return
        if both.plans:
            st.caption(
                f"Both remove {both.plans.shared} heads; {len(both.plans.only_one)} only the one, "
                f"{len(both.plans.only_other)} only the other."
            )
        all_of_it = st.toggle("Also what they share", key="runs-same")
        lines = [line for line in both.lines if line.differs or all_of_it]
        if not lines:
            st.caption("They do not differ.")
            return
        table = pd.DataFrame([(line.name, line.one, line.other) for line in lines], columns=["", "One", "Other"])
        st.dataframe(table, hide_index=True, key="runs-compared")


def _called(node: Node) -> str:
    return f"{node.name} ({node.stage})"


def show_care(found: Lineage) -> None:
    """Disk use, and leftovers that may be removed."""
    with st.expander(
        "Disk use and clean-up", icon=":material/hard_drive:", key="runs-care", on_change="rerun"
    ) as opened:
        if not opened.open:  # counting all of the workspace's files takes time
            return
        with plain_errors():
            used, left = disk_use.use(found), disk_use.leftovers(found)
        st.caption(f"{format_bytes(sum(used.values()))} together.")
        table = pd.DataFrame({"Of": list(used), "Size, MB": [size / 1e6 for size in used.values()]})
        numbers = {"Size, MB": st.column_config.NumberColumn(format="%.1f")}
        st.dataframe(table, hide_index=True, key="runs-use", column_config=numbers)
        sizes = {kind: sum(one.bytes for one in left if one.what == kind) for kind in disk_use.LEFT}
        counts = {kind: sum(one.what == kind for one in left) for kind in disk_use.LEFT}
        there: list[Left] = [kind for kind in disk_use.LEFT if counts[kind]]
        if not there:
            st.caption("There are no leftovers.")
            return
        st.caption("Leftovers that may be removed:")
        chosen: list[Left] = [
            kind
            for kind in there
            if st.checkbox(
                f"{kind.capitalize()}: {counts[kind]}, {format_bytes(sizes[kind])} – {disk_use.MEANING[kind]}",
                key=f"clean-{kind}",
            )
        ]
        size = format_bytes(sum(sizes[kind] for kind in chosen))
        if st.button(f"Remove {size}", key="runs-clean", disabled=not chosen, icon=":material/mop:"):
            with plain_errors():
                freed = disk_use.clean(chosen, found)
            st.toast(f"Freed: {format_bytes(freed)}")
            st.rerun()


def show_import(choose: Choose) -> None:
    """The import of an archive, once all of it was checked."""
    with st.expander("Import runs from another machine", icon=":material/unarchive:"):
        turn = st.session_state.setdefault("runs-import-turn", 0)
        upload = st.file_uploader(
            "A file that was exported here or with `slim runs export`",
            "zip",
            key=f"runs-import-{turn}",
            max_upload_size=LARGEST_UPLOAD,
        )
        st.caption(f"Larger than {LARGEST_UPLOAD:,} MB: `slim runs import FILE` on the machine that serves this page.")
        if st.button("Import", key="runs-import", disabled=upload is None, icon=":material/input:") and upload:
            try:
                taken = archive.import_runs(upload, upload.name)
            except SlimError as error:
                st.error(sentence(str(error)), icon=":material/error:")
                return
            choose(taken[-1].key)
            st.session_state["runs-import-turn"] = turn + 1
            st.toast(escaped(f"{len(taken)} runs imported"))
            st.rerun()
