"""The repair that goes with pruning, and the resulting checkpoint."""

from pathlib import Path

import streamlit as st

from pages.views.fields import ask
from pages.views.frame import plain_errors, sentence
from pages.views.recovery_form import calibrated
from pages.views.recovery_view import lead_on, show_steps
from slim.core.errors import SlimError
from slim.planning import budget
from slim.planning.record import ByBudget, Plan
from slim.pruning.history import load_recovery
from slim.recovery.request import PruneRequest


def repair_choice(made: Plan) -> tuple[bool, int]:
    """Ask whether the checkpoint is repaired, and in how many rounds it is cut."""
    problem = ""
    try:
        calibrated(made)
    except SlimError as error:
        problem = str(error)
    possible = not problem
    repair = ask(PruneRequest, "repair", f"prune-repair-{possible}", value=possible, disabled=not possible)
    by_size = isinstance(made.reason, ByBudget) and budget.LOSS not in made.reason.limits
    rounds = 1
    if by_size and possible:
        rounds = ask(PruneRequest, "rounds", "prune-rounds", disabled=not repair, width=140)
    if problem:
        st.caption(f"Not repaired: {sentence(problem)}")
    return repair, rounds if repair else 1


def show_pruned(folder: Path) -> None:
    """Show the resulting checkpoint, the effect of its repair, and the next steps."""
    st.success(sentence(f"Saved: {folder}"), icon=":material/check_circle:")
    with plain_errors():
        steps = load_recovery(folder).steps
    if steps:
        show_steps(steps)
    lead_on(folder, recover=True)
