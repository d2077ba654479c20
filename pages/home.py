"""Home: a summary of Slim, the first step, and the state of the workspace."""

import streamlit as st

from pages.views import login
from pages.views.frame import go_to, newest_job, page_title, plain_errors, sentence
from slim import jobs
from slim.calibration.request import CalibrateRequest
from slim.core import workspace
from slim.core.run_index import runs

STEPS = (
    ("speed", "Calibrate", "Run the model on rows of your task and measure every attention head and block."),
    ("grid_on", "Explore", "See which heads carry the task: KL, entropy, variance, layer by layer."),
    ("content_cut", "Prune", "Drag a threshold; size and forecast loss follow. Then remove the weights for real."),
    (
        "healing",
        "Recover",
        "Repair what remains, or distil the original into it, and see how much quality comes back.",
    ),
    ("monitoring", "Evaluate", "Quality and speed of the smaller model beside the original, each with its interval."),
    ("compare", "Compare", "Original and pruned answer side by side; a judge, or you, says which is better."),
)

page_title("Make a language model smaller, knowing the cost first")
st.markdown(
    "Slim measures what each attention head does for **your** task, forecasts what removing it will cost, "
    "and writes a smaller model that loads anywhere transformers runs."
)

with plain_errors():
    calibrations, checkpoints = runs("calibration"), runs("checkpoint")
    running = newest_job("calibrate")

with st.container(border=True):
    st.markdown("#### Try it now")
    st.markdown(
        "The bundled SmolLM2-135M and a summarisation task are ready. It takes about two minutes on two CPU cores."
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        busy = running is not None and running.unfinished
        if st.button("Calibrate the bundled model", type="primary", icon=":material/play_arrow:", disabled=busy):
            with plain_errors():
                jobs.start(CalibrateRequest())
            go_to("pages/calibrate.py")
        st.page_link(
            "pages/calibrate.py", label="Watch it" if busy else "Use my own model or data", icon=":material/tune:"
        )

for column, (icon, title, text) in zip((*st.columns(3), *st.columns(3)), STEPS, strict=True):
    with column.container(border=True, height="stretch"):
        st.markdown(f"**:material/{icon}: {title}**")
        st.caption(text)

st.subheader("Your workspace")
login.show_sharing()
if not calibrations and not checkpoints:
    st.caption(f"Nothing yet. Runs are kept in {sentence(str(workspace.home()))}.")
left, right = st.columns(2)
for column, title, page, made in (
    (left, "Calibrations", "pages/explore.py", calibrations),
    (right, "Pruned models", "pages/compare.py", checkpoints),
):
    if made:
        with column.container(border=True):
            st.page_link(page, label=f"{title} ({len(made)})", icon=":material/folder_open:")
            for path in made[:5]:
                st.text(path.name)
