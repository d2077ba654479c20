"""The threshold board: removals by hand, with size and forecast loss that follow each move.

The board is a component whose JavaScript is pages/assets/board/, one file after the other. The numbers it computes with
are passed to a second, invisible component: they do not change, and Streamlit sends unchanged data once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import streamlit as st
from pydantic import ValidationError
from streamlit.components.v2 import component

from pages.views.frame import plain_errors, sentence, weight_key, went_back
from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.planning.board import outcome, payload
from slim.planning.board_choice import BoardState, from_query, metrics_of, to_query
from slim.planning.record import Plan

ASSETS = Path(__file__).parent.parent / "assets" / "board"
SCRIPTS = ("core.js", "map.js", "line.js", "figures.js", "board.js")
SCRIPT = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
BOARD = component(
    "slim-board",
    html=(ASSETS / "board.html").read_text(encoding="utf-8"),
    css=(ASSETS / "board.css").read_text(encoding="utf-8"),
    js=SCRIPT,
)
NUMBERS = component("slim-board-numbers", js=SCRIPT)
"""The same script, so that the browser runs it once and the board finds the numbers in it."""
KEY = "board"


@dataclass(frozen=True)
class Kept:
    """A board state of one calibration, as long as the session lasts.

    `edit` counts the edits that the browser sent, `version` the states from elsewhere that the browser has to adopt.
    """

    choice: BoardState
    edit: int = 0
    version: int = 0
    notes: tuple[str, ...] = ()


def board(path: Path, calibration: Calibration) -> Plan:
    """Show the board of a calibration, and return its plan. Ends the page where the state allows no plan."""
    checked = calibration.check.seconds if calibration.check else -1.0
    name, numbers = _numbers(str(path), calibration.facts.started, checked, calibration)
    kept = _followed(name, calibration, _kept(path, calibration))
    st.session_state["boards"] = st.session_state.get("boards", {}) | {str(path): kept}
    write_link({"calibration": path.name} | to_query(kept.choice))
    try:
        made = kept.choice.plan(calibration)
    except InputError:
        made = None  # reported below, so that the board is shown too
    for note in kept.notes:
        st.info(sentence(note), icon=":material/link_off:")
    shown = {
        "payload": name,
        "edit": kept.edit,
        "version": kept.version,
        "choice": kept.choice.model_dump(mode="json"),
        "plan": outcome(made) if made else None,
    }
    with st.container(gap=None):
        BOARD(key=KEY, data=shown, on_state_change=_nothing)
        NUMBERS(key=f"{KEY}-numbers", data=numbers)
    with plain_errors():
        return made or kept.choice.plan(calibration)


@st.cache_resource(max_entries=32, show_spinner="Preparing the board")
def _numbers(path: str, started: str, checked: float, _calibration: Calibration) -> tuple[str, bytes]:
    return payload(_calibration)


def _nothing() -> None:
    """Do nothing: a callback makes `state` a part of the component's state."""


def _kept(path: Path, calibration: Calibration) -> Kept:
    """The board state of this session, or that of the link."""
    before: Kept | None = st.session_state.get("boards", {}).get(str(path))
    linked = st.query_params.get("calibration") in (None, path.name)
    if before and not (linked and went_back()):
        return before
    query = st.query_params.to_dict() if linked else {}
    with plain_errors():
        choice, notes = from_query(query, calibration)
    if "weights" in query:
        _share_weights(choice)
    return Kept(choice, before.edit if before else 0, before.version + 1 if before else 0, notes)


def _followed(name: str, calibration: Calibration, kept: Kept) -> Kept:
    """The state after the browser's last edit, or, without one, with the weights that were chosen on other pages."""
    sent = _sent(name)
    if sent is None or sent[0] == kept.edit:
        weights = {
            name: st.session_state.get(weight_key(kept.choice.unit, name), kept.choice.weights.get(name, 0.0))
            for name in metrics_of(calibration, kept.choice.unit)
        }
        if weights == kept.choice.weights:
            return kept
        choice = kept.choice.model_copy(update={"weights": weights})
        return replace(kept, choice=choice, version=kept.version + 1)
    choice = sent[1]
    _share_weights(choice)
    return Kept(choice, sent[0], kept.version)


def _sent(name: str) -> tuple[int, BoardState] | None:
    """The browser's last edit number and board state of these numbers; None where it sent no valid one."""
    state: Any = (st.session_state.get(KEY) or {}).get("state")
    if not isinstance(state, Mapping) or state.get("payload") != name:
        return None
    try:
        return int(state["edit"]), BoardState.model_validate(state["choice"])
    except (ValidationError, KeyError, TypeError, ValueError):
        return None


def _share_weights(choice: BoardState) -> None:
    """Set the same weights on every page."""
    for name, weight in choice.weights.items():
        st.session_state[weight_key(choice.unit, name)] = min(1.0, weight)


def write_link(query: dict[str, str]) -> None:
    """Set the page's address to a link to its current state."""
    if st.query_params.to_dict() != query:
        st.query_params.from_dict(query)
