"""Explore: the maps of a calibration, block by block and head by head."""

import pandas as pd
import streamlit as st

from pages.frame import PLOT, chosen_calibration, facts_line, page_title, show_maps
from slim import charts, plan
from slim.metrics import CRITERIA

page_title("Explore")
_, calibration = chosen_calibration("explore-calibration")
st.caption(facts_line(calibration))
show_maps(calibration, "explore")

st.subheader("Attention blocks")
blocks = calibration.level("block")
left, right = st.columns(2)
for column, name in ((left, "kl_output"), (right, "block_influence")):
    if name in blocks:
        title = {"kl_output": "Loss without the block, measured"}.get(name, CRITERIA[name].title)
        figure = charts.block_bars(blocks[name], title, CRITERIA[name].unit)
        column.plotly_chart(figure, key=f"blocks-{name}", config=PLOT)

st.subheader("Every head")
heads = calibration.level("head")
facts = calibration.facts.model
table = pd.DataFrame(
    {
        "layer": [layer for layer in range(facts.layers) for _ in range(facts.heads)],
        "head": list(range(facts.heads)) * facts.layers,
        "score": plan.composite(calibration, plan.default_weights(calibration), "head").ravel(),
        **{name: values.ravel() for name, values in heads.items()},
    }
).sort_values("score", ascending=False)
st.dataframe(table, hide_index=True, height=360)
st.download_button("Download as CSV", table.to_csv(index=False), "heads.csv", "text/csv", icon=":material/download:")

with st.expander("What the figures mean"):
    for name, measured in calibration.facts.metrics.items():
        title = f"**{CRITERIA[name].title}** (`{name}`, {measured.unit})"
        st.markdown(f"{title}: {measured.method}. {measured.positions:,} positions.")
    st.markdown(
        "KL to uniform is mean(ln n) minus entropy, so using both adds nothing. Attention entropy says little about "
        "what a head is worth: on the bundled model, removing the most diffuse ones costs more than removing any."
    )
