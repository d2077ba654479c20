"""Runs: the workspace's runs, their provenance, and their management."""

import streamlit as st

from pages.views.frame import page_title
from pages.views.jobs_view import show_jobs
from pages.views.runs_view import show_runs

page_title("Runs")
st.caption("All runs of the workspace and their provenance: model, calibration, plan, checkpoint, verdict.")
runs, jobs = st.tabs(["Runs", "Jobs"], key="runs-tab", on_change="rerun")
if runs.open:
    with runs:
        show_runs()
if jobs.open:
    with jobs:
        show_jobs()
