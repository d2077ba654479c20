"""Publishing a checkpoint: as one file for llama.cpp, or to a model Hub after its files were listed."""

from pathlib import Path

import streamlit as st

from pages.views.fields import ask
from pages.views.frame import newest_job, plain_errors, sentence, show_job
from slim import jobs
from slim.core import workspace
from slim.core.errors import InputError
from slim.serving import push
from slim.serving.request import ExportRequest, PushRequest

NUMBERS = {
    "auto": "as stored",
    "f16": "f16, half the size of f32",
    "q8_0": "q8_0, a quarter of f32",
    "bf16": "bf16",
    "f32": "f32",
}


def show_export(folder: Path) -> None:
    """Show the form that writes a GGUF file of the checkpoint by a job."""
    columns = st.columns([3, 1], vertical_alignment="bottom")
    number = ask(ExportRequest, "type", "export-numbers", columns[0], labels=NUMBERS)
    with plain_errors():
        file = workspace.subfolder("exports") / f"{folder.name}-{number}.gguf"
        job = newest_job("export")
    asked = ExportRequest.asked(folder=folder, output=file, type=number)
    busy = job is not None and job.unfinished
    if columns[1].button(
        "Write GGUF", icon=":material/save:", key="export-write", width="stretch", disabled=busy or file.exists()
    ):
        with plain_errors():
            jobs.start(asked)
        st.rerun()
    if job is not None and job.arguments == asked.arguments():
        show_job(job)
    if file.exists():
        size = file.stat().st_size / 1e6
        st.success(sentence(f"Written: {file}, {size:,.1f} MB. llama.cpp runs it."), icon=":material/check_circle:")
    else:
        st.caption("One file that llama.cpp runs. It is written on this machine.")


def show_publish(folder: Path) -> None:
    """Show the form of a push: the repository, the files that would be sent, and the button that sends them."""
    columns = st.columns([3, 1], vertical_alignment="bottom")
    name = ask(PushRequest, "repository", "publish-name", columns[0], placeholder="owner/name")
    private = ask(PushRequest, "private", "publish-private", columns[1], value=True)
    if name is None:
        st.caption("Name a repository to see what would be sent. Nothing leaves this machine before you press Push.")
        return
    try:
        upload = push.plan_upload(folder, name, private)
    except InputError as error:
        st.error(sentence(str(error)), icon=":material/error:")
        return
    st.caption(
        f"{len(upload.files)} files, {upload.bytes / 1e6:,.1f} MB, would go to "
        f"{sentence(f'{upload.hub}/{upload.repository}')}. Files of these names that are there are replaced."
    )
    st.dataframe([{"file": file, "bytes": size} for file, size in upload.files], hide_index=True, key="publish-files")
    asked = PushRequest.asked(folder=folder, repository=upload.repository, private=private)
    with plain_errors():
        job = newest_job("push")
    if st.button("Push", icon=":material/cloud_upload:", disabled=job is not None and job.unfinished):
        with plain_errors():
            jobs.start(asked)
        st.rerun()
    if job is None or job.arguments != asked.arguments():
        return
    show_job(job)
    if job.state == "done":
        st.success(sentence(f"Sent: {job.result}"), icon=":material/check_circle:")
