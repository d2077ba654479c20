"""Evaluate: checkpoints beside the original, in quality, speed and size; and earlier evaluations."""

import streamlit as st

from pages.views.evaluation_form import request
from pages.views.evaluation_view import show_past
from pages.views.frame import follow_job, newest_job, page_title, plain_errors, show_job
from slim import jobs
from slim.core.run_index import runs

RUN = "evaluate-run"

page_title("Evaluate")
st.caption("Are the smaller models still good, and how much faster are they? Every difference has its interval.")
with plain_errors():
    job = newest_job("evaluate")
    past = runs("evaluation")
busy = follow_job(job, "evaluation", RUN)

form = st.expander("A new evaluation", icon=":material/add_chart:", expanded=not past)
show_job(job)
if past:
    show_past(RUN)
elif not busy:
    st.caption("There is no evaluation yet. Choose checkpoints and measurements above.")

with form:  # filled last: where it cannot be used the page ends, and earlier evaluations are shown already
    asked = request()
    if st.button("Evaluate", type="primary", icon=":material/play_arrow:", disabled=busy or asked is None) and asked:
        with plain_errors():
            jobs.start(asked)
        st.rerun()
    if asked is None:
        st.caption("Choose at least one checkpoint, and something to measure.")
