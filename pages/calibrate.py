"""Calibrate: choose a model and a task, start the job, watch it, see the maps."""

import streamlit as st

from pages.frame import (
    facts_line,
    newest_job,
    next_step,
    open_calibration,
    page_title,
    plain_errors,
    result_of,
    show_job,
    show_maps,
)
from slim import bundled, jobs, tasks
from slim.calibrate import checked_settings


@st.cache_data(max_entries=8, show_spinner="Reading the dataset")
def first_rows(dataset: str, config: str | None, split: str | None) -> tuple[int, str, list[tuple[str, str]]]:
    task = tasks.load_task(dataset, config, split)
    return len(task.examples), task.kind, [(example.prompt, example.answer) for example in task.examples[:3]]


page_title("Calibrate")
st.caption("Measures every attention head and block on rows of your task. Nothing in the model changes.")

with plain_errors():
    job = newest_job("calibrate")
busy = job is not None and job.unfinished

left, right = st.columns(2)
model = left.selectbox(
    "Model",
    [bundled.NAME],
    accept_new_options=True,
    help="The bundled model, a folder, a .gguf file or a Hub id.",
    key="cal-model",
    persist_state="session",
)
dataset = right.selectbox(
    "Task data",
    [f"bundled:{name}" for name in tasks.BUNDLED],
    accept_new_options=True,
    help="bundled:briefs, bundled:triage, a .jsonl, .csv, .parquet or .txt file, or a Hub id.",
    key="cal-data",
    persist_state="session",
)
with st.expander("Settings"):
    one, two, three, four = st.columns(4)
    samples = one.number_input(
        "Rows", 1, 10_000, 16, key="cal-samples", persist_state="session", help="More rows, surer figures, more time."
    )
    length = two.number_input("Longest row, tokens", 2, 32_768, 320, key="cal-length", persist_state="session")
    batch = three.number_input("Rows per forward", 1, 256, 4, key="cal-batch", persist_state="session")
    seed = four.number_input("Seed", 0, 2**31 - 1, 0, key="cal-seed", persist_state="session")
    config = (
        one.text_input(
            "Dataset configuration",
            "",
            key="cal-config",
            persist_state="session",
            help="For Hub datasets that have several.",
        )
        or None
    )
    split = two.text_input("Split", "train", key="cal-split", persist_state="session") or None
with st.expander("What the model will read"):
    with plain_errors():
        count, kind, rows = first_rows(dataset, config, split)
    st.caption(f"{count} rows, read as {kind}. The first ones:")
    for prompt, answer in rows:
        with st.container(border=True):
            if prompt:
                st.text(prompt)
            st.text(f"→ {answer}")

if st.button("Calibrate", type="primary", icon=":material/play_arrow:", disabled=busy):
    with plain_errors():
        settings = checked_settings(samples=samples, max_length=length, batch_size=batch, seed=seed)
        jobs.start(
            "calibrate", model=model, dataset=dataset, config=config, split=split, settings=settings.model_dump()
        )
    st.rerun()

show_job(job)
if (folder := result_of(job)) is not None:
    calibration = open_calibration(folder)
    st.success(f"Done: {facts_line(calibration)}.", icon=":material/check_circle:")
    next_step("Choose what to prune", "pages/prune.py", ":material/content_cut:")
    show_maps(calibration, "calibrated")
