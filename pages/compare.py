"""Compare: both models on one prompt, or a judge, and your own vote, on hundreds of rows."""

import streamlit as st

from pages.views.frame import follow_job, newest_job, page_title, plain_errors, show_job
from pages.views.judge_form import request
from pages.views.playground import show_playground
from pages.views.verdicts_view import show_past
from slim import jobs
from slim.core.run_index import runs

RUN, VIEW = "compare-judgement", "compare-view"
TRY, JUDGE = "Try a prompt", "Judge"


def show_judge() -> None:
    """Show earlier judgements, the running one, and the form for another."""
    past = runs("judgement")
    busy = follow_job(job, "judgement", RUN)

    form = st.expander("A new judgement", icon=":material/gavel:", expanded=not past)
    show_job(job)
    if past:
        show_past(RUN)
    else:
        st.caption("There is no judgement yet. Choose a checkpoint and a judge above.")

    with form:  # filled last: where it cannot be used the page ends, and earlier judgements are shown already
        asked = request()
        if st.button("Judge", type="primary", icon=":material/play_arrow:", disabled=busy or asked is None) and asked:
            with plain_errors():
                jobs.start(asked)
            st.rerun()


page_title("Compare")
with plain_errors():
    job = newest_job("judge")
linked = "judgement" in st.query_params or (job is not None and job.unfinished)
st.session_state.setdefault(VIEW, JUDGE if linked else TRY)
view = st.segmented_control(
    "View", [TRY, JUDGE], required=True, key=VIEW, persist_state="session", label_visibility="collapsed"
)
if view == JUDGE:
    with plain_errors():
        show_judge()
else:
    st.query_params.pop("judgement", None)
    show_playground()
