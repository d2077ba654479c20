"""The playground: the original and a pruned model answer one prompt, side by side, token by token."""

import random

import streamlit as st

from pages.views.frame import choose_run, plain_errors
from pages.views.libraries import can_compute
from pages.views.preview import ONE_AT_A_TIME, answer_places, examples, open_model, show_answer


def another() -> None:
    """Put the prompt of another example into the field."""
    st.session_state["compare-prompt"] = random.choice(examples()).prompt  # noqa: S311  chance, not a secret


def show_playground() -> None:
    """Ask for a prompt, and stream both models' answers. Without a checkpoint the page leads to Prune and ends."""
    path = choose_run("checkpoint", "Pruned model", "compare-checkpoint", "pages/prune.py")
    if not can_compute():
        return
    from slim.pruning.checkpoint import recipe

    with plain_errors():
        made = recipe(path)

    st.session_state.setdefault("compare-prompt", examples()[0].prompt)
    prompt = st.text_area("Prompt", key="compare-prompt", persist_state="session", height=180)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        asked = st.button("Answer with both", type="primary", icon=":material/play_arrow:", disabled=not prompt.strip())
        st.button("Another example", icon=":material/shuffle:", on_click=another)
        limit = st.slider("Most tokens", 16, 512, 96, 16, key="compare-limit", persist_state="session", width=260)

    sizes = (made.before.parameters, made.after.parameters)
    places = answer_places(
        (
            f"**Original** · {sizes[0] / 1e6:,.1f} M parameters",
            f"**Pruned** · {sizes[1] / 1e6:,.1f} M parameters ({sizes[1] / sizes[0] - 1:.1%})",
        )
    )

    if asked:
        from slim.evaluation.settings import PLAYGROUND_PENALTY
        from slim.evaluation.streaming import Answer, side_by_side

        with plain_errors(), ONE_AT_A_TIME:
            pair = [open_model(made.model.source), open_model(str(path))]
            last: dict[int, Answer] = {}
            for index, answer in side_by_side(pair, prompt, limit, PLAYGROUND_PENALTY):
                last[index] = answer
                show_answer(places[index], answer)
        st.session_state["compare-answers"] = (str(path), prompt, last)
    elif "compare-answers" in st.session_state:
        shown_for, shown_prompt, last = st.session_state["compare-answers"]
        if (shown_for, shown_prompt) == (str(path), prompt):
            for index, answer in last.items():
                show_answer(places[index], answer)
