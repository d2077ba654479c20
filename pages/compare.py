"""Compare: the original and a pruned model answer the same prompt, side by side."""

import random
import threading
from pathlib import Path

import streamlit as st

from pages.frame import choose_run, page_title, plain_errors
from slim import generate, models, plan, tasks
from slim.checkpoint import PLAN_FILE
from slim.generate import Answer
from slim.models import Loaded

ONE_AT_A_TIME = threading.Lock()


@st.cache_resource(max_entries=2, show_spinner="Loading the model")
def load_model(source: str, written: int) -> Loaded:
    return models.load(source)


def open_model(source: str) -> Loaded:
    config = Path(source) / "config.json"
    return load_model(source, config.stat().st_mtime_ns if config.exists() else 0)


@st.cache_data(max_entries=4, show_spinner=False)
def examples() -> list[tasks.Example]:
    return [
        example for name in tasks.BUNDLED for example in tasks.load_task(f"bundled:{name}", split="validation").examples
    ]


def another() -> None:
    st.session_state["compare-prompt"] = random.choice(examples()).prompt


def pace(answer: Answer) -> str:
    speed = f"{answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second else "…"
    return f"{answer.tokens} tokens · {speed} · first after {answer.first * 1000:.0f} ms"


page_title("Compare")
path = choose_run("checkpoint", "Pruned model", "compare-checkpoint", "pages/prune.py")
with plain_errors():
    recipe = plan.load(path / PLAN_FILE)

st.session_state.setdefault("compare-prompt", examples()[0].prompt)
prompt = st.text_area("Prompt", key="compare-prompt", persist_state="session", height=180)
with st.container(horizontal=True, vertical_alignment="bottom"):
    asked = st.button("Answer with both", type="primary", icon=":material/play_arrow:", disabled=not prompt.strip())
    st.button("Another example", icon=":material/shuffle:", on_click=another)
    limit = st.slider("Most tokens", 16, 512, 96, 16, key="compare-limit", persist_state="session", width=260)

sizes = (recipe.before.parameters, recipe.after.parameters)
titles = ("Original", "Pruned")
captions = (
    f"{sizes[0] / 1e6:,.1f} M parameters",
    f"{sizes[1] / 1e6:,.1f} M parameters ({sizes[1] / sizes[0] - 1:.1%})",
)
places = []
for column, title, caption in zip(st.columns(2), titles, captions, strict=True):
    with column.container(border=True, height="stretch"):
        st.markdown(f"**{title}** · {caption}")
        places.append((st.empty(), st.empty()))


def show(index: int, answer: Answer) -> None:
    places[index][0].text(answer.text or " ")
    places[index][1].caption(pace(answer))


if asked:
    with plain_errors(), ONE_AT_A_TIME:
        pair = [open_model(recipe.model.source), open_model(str(path))]
        last: dict[int, Answer] = {}
        for index, answer in generate.side_by_side(pair, prompt, limit):
            last[index] = answer
            show(index, answer)
    st.session_state["compare-answers"] = (str(path), prompt, last)
elif "compare-answers" in st.session_state:
    shown_for, shown_prompt, last = st.session_state["compare-answers"]
    if (shown_for, shown_prompt) == (str(path), prompt):
        for index, answer in last.items():
            show(index, answer)
