"""Evaluate: checkpoints beside the original, in quality, speed and size; and the evaluations that were made before."""

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
    st.caption("There is no evaluation yet. Choose checkpoints above, and what to measure.")

with form:  # filled last: where it cannot be used the page ends, and what was found before is shown already
    arguments, enough = request()
    if st.button("Evaluate", type="primary", icon=":material/play_arrow:", disabled=busy or not enough):
        with plain_errors():
            jobs.start("evaluate", **arguments)
        st.rerun()
    if not enough:
        st.caption("Choose at least one checkpoint, and something to measure.")
