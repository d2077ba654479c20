"""A masked trial of a plan before anything is cut: the original answers beside itself with the removals masked."""

import threading
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.views.frame import plain_errors
from slim.core import paths
from slim.data import tasks
from slim.models.units import Keep

if TYPE_CHECKING:
    from slim.evaluation.streaming import Answer
    from slim.models.load import Loaded

ONE_AT_A_TIME = threading.Lock()
"""A loaded model is shared between visitors, and one with hooks serves one at a time."""


@st.cache_resource(max_entries=2, show_spinner="Loading the model")
def load_model(source: str, written: int, device: str, dtype: str) -> "Loaded":
    from slim.models import load

    return load.load_model(source, device=device, dtype=dtype)


def open_model(source: str, device: str = "auto", dtype: str = "auto") -> "Loaded":
    """A model, from a small cache in memory. Raises InputError as `models.load` does."""
    config = paths.local(source, "model") / "config.json"
    return load_model(source, config.stat().st_mtime_ns if config.exists() else 0, device, dtype)


@st.cache_data(max_entries=4, show_spinner=False)
def examples() -> list[tasks.Example]:
    """Prompts to try."""
    return [
        example for name in tasks.BUNDLED for example in tasks.load_task(f"bundled:{name}", split="validation").examples
    ]


def pace(answer: "Answer") -> str:
    """Tokens, speed of generation and time to first token, as a line."""
    speed = f"{answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second else "…"
    return f"{answer.tokens} tokens · {speed} · first after {answer.first * 1000:.0f} ms"


def answer_places(titles: tuple[str, str]) -> list[tuple[Any, Any]]:
    """Two framed places side by side, each for an answer and its speed."""
    places = []
    for column, title in zip(st.columns(2), titles, strict=True):
        with column.container(border=True, height="stretch"):
            st.markdown(title)
            places.append((st.empty(), st.empty()))
    return places


def show_answer(place: tuple[Any, Any], answer: "Answer", with_pace: bool = True) -> None:
    place[0].text(answer.text or " ")
    if with_pace:
        place[1].caption(pace(answer))


def show_preview(source: str, keep: Keep, key: str, title: str) -> None:
    """Ask for a prompt, and show the original's answers with and without the units that `keep` removes masked."""
    st.session_state.setdefault(f"{key}-prompt", examples()[0].prompt)
    prompt = st.text_area("Prompt", key=f"{key}-prompt", persist_state="session", height=120)
    asked = st.button(
        "Answer with and without", icon=":material/play_arrow:", key=f"{key}-ask", disabled=not prompt.strip()
    )
    kept = st.session_state.get(f"{key}-answers")
    if not asked and (kept is None or kept[:3] != (source, keep, prompt)):
        return
    places = answer_places(("**Original**", f"**{title}**"))
    if asked:
        from slim.evaluation.settings import PLAYGROUND_PENALTY
        from slim.evaluation.streaming import side_by_side

        with plain_errors(), ONE_AT_A_TIME:
            loaded, last = open_model(source), {}
            for index, answer in side_by_side([loaded, (loaded, keep)], prompt, 64, PLAYGROUND_PENALTY):
                last[index] = answer
                show_answer(places[index], answer, with_pace=False)
        st.session_state[f"{key}-answers"] = (source, keep, prompt, last)
    elif kept:
        for index, answer in kept[3].items():
            show_answer(places[index], answer, with_pace=False)
