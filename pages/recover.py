"""Recover: the loss of pruning, the steps that recover it, and their measured effect, for each checkpoint."""

import streamlit as st

from pages.views.frame import choose_run, follow_job, page_title, plain_errors
from pages.views.libraries import can_compute
from pages.views.recovery_form import choose_step, offer, start, suggestion
from pages.views.recovery_view import lead_on, newest_recovery, show_loss, show_recovery, show_running
from slim.pruning.history import load_recovery

RUN = "recover-checkpoint"

page_title("Recover")
st.caption("Wins back what pruning lost. Acceptance rows decide whether a step is kept, and test rows measure it.")
with plain_errors():
    job = newest_recovery()
busy = follow_job(job, "checkpoint", RUN)
path = choose_run("checkpoint", "Pruned model", RUN, "pages/prune.py")
st.query_params["checkpoint"] = path.name
show_running(job, path)
if not can_compute():
    st.stop()
with plain_errors():
    from slim.pruning.checkpoint import recipe

    plan, recovery = recipe(path), load_recovery(path)
show_loss(plan, recovery)
if recovery.steps:
    show_recovery(recovery)
    lead_on(path, primary=not busy and suggestion(recovery) is None)
offer(path, plan, recovery, busy)
with st.expander("Choose the method, the data and the settings", icon=":material/tune:"):
    start("Start", choose_step(path, plan, recovery), busy, "recover-start")
