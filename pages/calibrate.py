"""Calibrate: choose a model and a task, start the job, watch it, see the maps."""

import streamlit as st

from pages.views.fields import KEEP, POSITIONS, ask
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
from pages.views.libraries import can_compute
from pages.views.task_data import choose_data, choose_source, open_task, options_of
from pages.views.task_rows import show_counts, show_text
from slim import jobs
from slim.calibration.request import CalibrateRequest
from slim.models import bundled
from slim.models.tokenizer import at_hand

KL = {"fisher": "Forecast", "exact": "Measured, much slower", "none": "Leave out"}

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
    persist_state=KEEP,
)
data = choose_data(choose_source(right, "cal-data"), "cal-data")

with st.expander("Settings", icon=":material/tune:"):
    one, two, three, four = st.columns(4)
    chosen = {
        "samples": ask(CalibrateRequest, "samples", "cal-samples", one),
        "max_length": ask(CalibrateRequest, "max_length", "cal-length", two),
        "batch_size": ask(CalibrateRequest, "batch_size", "cal-batch", three),
        "seed": ask(CalibrateRequest, "seed", "cal-seed", four),
    }
    left, right = st.columns(2)
    chosen["positions"] = ask(CalibrateRequest, "positions", "cal-positions", left, labels=POSITIONS, radio=True)
    chosen["kl"] = ask(CalibrateRequest, "kl", "cal-kl", right, labels=KL, radio=True)

with plain_errors():
    request = CalibrateRequest.asked(model=model, **options_of(data), **chosen)
task = open_task(data)
preview = st.expander(
    "The text that the model will read", icon=":material/visibility:", key="cal-preview", on_change="rerun"
)
if preview.open:
    with preview:
        if can_compute():
            show_text(task, request)
figures = st.container()  # filled last, so that the button does not wait for the tokenizer

if st.button("Calibrate", type="primary", icon=":material/play_arrow:", disabled=busy):
    with plain_errors():
        jobs.start(request)
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
        if can_compute():
            show_counts(task, request)
