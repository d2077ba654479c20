"""Runs: what the workspace holds, what each run was made from, and what to do with it."""

import streamlit as st

from pages.views.frame import page_title
from pages.views.jobs_view import show_jobs
from pages.views.runs_view import show_runs

page_title("Runs")
st.caption("Everything that was made here, and what it was made from: model, calibration, plan, checkpoint, verdict.")
runs, jobs = st.tabs(["Runs", "Jobs"], key="runs-tab", on_change="rerun")
if runs.open:
    with runs:
        show_runs()
if jobs.open:
    with jobs:
        show_jobs()
