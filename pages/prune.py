"""Prune: plan by threshold or by budget, see sizes and forecast, try it masked, then remove the weights."""

import streamlit as st

from pages.views.board import board, write_link
from pages.views.budget_form import budget_plan
from pages.views.frame import chosen_calibration, newest_job, page_title, plain_errors, result_of, sentence, show_job
from pages.views.plan_view import compare_plans, show_curve, show_map, show_projection, show_words
from pages.views.preview import show_preview
from pages.views.pruned_view import repair_choice, show_pruned
from pages.views.publish import show_export, show_publish
from slim import jobs
from slim.core import workspace
from slim.planning.files import save_plan
from slim.planning.record import Plan
from slim.recovery.request import PruneRequest

page_title("Prune")
with st.container(horizontal=True, vertical_alignment="bottom"):
    path, calibration = chosen_calibration("prune-calibration")
    way = st.segmented_control(
        "Plan by", ["Threshold", "Budget"], default="Threshold", required=True, key="prune-way", persist_state="session"
    )
made: Plan | None
if way == "Budget":
    write_link({"calibration": path.name})
    with plain_errors():
        made = budget_plan(path, calibration)
    if made is None:
        st.caption("Give at least one limit. Of all plans within them the one with the least forecast loss is found.")
        st.stop()
    show_projection(made)
    show_words(made)
else:
    made = board(path, calibration)
for note in made.notes:
    st.warning(f"{sentence(note)}.", icon=":material/warning:")
if way == "Budget":
    show_map(made, calibration)
show_curve(path, calibration, made)
with st.expander("Try it before you cut", icon=":material/compare:"):
    st.caption("The original answers, and answers again with the plan's removals masked. Nothing is written.")
    show_preview(made.model.source, made.keep, "preview", "As planned")
with st.expander("Compare with a saved plan", icon=":material/difference:"):
    compare_plans(made)

with plain_errors():
    job = newest_job("prune")
busy = job is not None and job.unfinished
with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
    cut = st.button("Prune", type="primary", icon=":material/content_cut:", disabled=busy or made.removed_heads == 0)
    if st.button("Save the plan", icon=":material/save:"):
        with plain_errors():
            saved = save_plan(made, workspace.fresh_path("plan", f"{made.unit}-{made.reason.kind}"))
        st.toast(sentence(f"Saved: {saved}"))
    repair, rounds = repair_choice(made)
if cut:
    with plain_errors():
        file = save_plan(made, workspace.fresh_path("plan", f"{made.unit}-{made.reason.kind}"))
        jobs.start(PruneRequest.asked(plan=file, repair=repair, rounds=rounds))
    st.rerun()
show_job(job)
if (folder := result_of(job)) is not None:
    show_pruned(folder)
    with st.expander("Publish it", icon=":material/cloud_upload:"):
        show_export(folder)
        st.divider()
        show_publish(folder)
