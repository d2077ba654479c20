"""Calibrate: choose a model and a task, start the job, watch it, see the maps."""

import streamlit as st

from pages.views.frame import (
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
from pages.views.task_data import Reading, choose_data, choose_source, open_task, show_counts, show_text
from slim import jobs
from slim.calibration.calibrate import checked_settings
from slim.data.tasks import Positions
from slim.models import bundled
from slim.models.tokenizer import at_hand

KL = {"fisher": "Forecast", "exact": "Measured, much slower", "none": "Leave out"}
POSITIONS: dict[Positions, str] = {"all": "Every token", "answer": "The answer only"}

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
source = choose_source(right, "cal-data")
data = choose_data(source, "cal-data")

with st.expander("Settings", icon=":material/tune:"):
    one, two, three, four = st.columns(4)
    samples = one.number_input(
        "Rows", 1, 10_000, 32, key="cal-samples", persist_state="session", help="More rows, surer figures, more time."
    )
    length = two.number_input("Longest row, tokens", 2, 32_768, 320, key="cal-length", persist_state="session")
    batch = three.number_input("Rows per forward", 1, 256, 4, key="cal-batch", persist_state="session")
    seed = four.number_input("Seed", 0, 2**31 - 1, 0, key="cal-seed", persist_state="session")
    left, right = st.columns(2)
    positions = left.radio(
        "Loss and KL count",
        list(POSITIONS),
        format_func=POSITIONS.__getitem__,
        horizontal=True,
        key="cal-positions",
        persist_state="session",
        help="What the model says is what a task is judged by; every token gives more to measure on.",
    )

    kl = right.radio(
        "What each head costs",
        list(KL),
        format_func=KL.__getitem__,
        horizontal=True,
        key="cal-kl",
        persist_state="session",
        help="Forecast: one gradient per row. Measured: every head, group and block is left out, one by one.",
    )

with plain_errors():
    settings = checked_settings(
        samples=samples, max_length=length, batch_size=batch, seed=seed, positions=positions, kl=kl
    )
task = open_task(data)
reading = Reading(model, samples, length, seed, positions)
preview = st.expander("What the model will read", icon=":material/visibility:", key="cal-preview", on_change="rerun")
if preview.open:
    with preview:
        show_text(task, reading)
figures = st.container()  # filled last: a tokenizer takes a moment to read, and the button need not wait for it

if st.button("Calibrate", type="primary", icon=":material/play_arrow:", disabled=busy):
    with plain_errors():
        rest = {name: value for name, value in data.items() if name != "source"}
        jobs.start("calibrate", model=model, dataset=data["source"], **rest, settings=settings.model_dump())
    st.rerun()

show_job(job)
if (folder := result_of(job)) is not None:
    calibration = open_calibration(folder)
    st.success(f"Done: {facts_line(calibration)}.", icon=":material/check_circle:")
    next_step("Choose what to prune", "pages/prune.py", ":material/content_cut:")
    show_maps(calibration, "calibrated")

with plain_errors():
    here = at_hand(model)
if not busy and (here or preview.open):
    with figures:
        show_counts(task, data, reading, settings)
