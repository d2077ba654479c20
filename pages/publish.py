"""A checkpoint to a model Hub: what would go where is shown first, and one button sends it."""

from pathlib import Path

import streamlit as st

from pages.frame import newest_job, plain_errors, sentence, show_job
from slim import jobs, push
from slim.errors import InputError


def show_publish(folder: Path) -> None:
    """The name of a repository, the files that a push would send there, and the button that sends them."""
    columns = st.columns([3, 1], vertical_alignment="bottom")
    name = columns[0].text_input(
        "Repository on the Hub", key="publish-name", placeholder="owner/name", persist_state="session"
    )
    private = columns[1].checkbox(
        "Private", value=True, key="publish-private", persist_state="session", help="Only you see it, if it is new."
    )
    if not name.strip():
        st.caption("Name a repository to see what would be sent. Nothing leaves this machine before you press Push.")
        return
    try:
        upload = push.planned(folder, name.strip(), private)
    except InputError as error:
        st.error(sentence(str(error)), icon=":material/error:")
        return
    st.caption(
        f"{len(upload.files)} files, {upload.bytes / 1e6:,.1f} MB, would go to "
        f"{sentence(f'{upload.hub}/{upload.repository}')}. Files of these names that are there are replaced."
    )
    st.dataframe([{"file": file, "bytes": size} for file, size in upload.files], hide_index=True, key="publish-files")
    with plain_errors():
        job = newest_job("push")
    if st.button("Push", icon=":material/cloud_upload:", disabled=job is not None and job.unfinished):
        with plain_errors():
            jobs.start("push", folder=str(folder), repository=upload.repository, private=private)
        st.rerun()
    if job is None or job.arguments != {"folder": str(folder), "repository": upload.repository, "private": private}:
        return
    show_job(job)
    if job.state == "done":
        st.success(sentence(f"Sent: {job.result}"), icon=":material/check_circle:")
