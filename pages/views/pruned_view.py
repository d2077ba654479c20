"""What is done with the weights beside removing them, and what came of it."""

from pathlib import Path

import streamlit as st

from pages.views.frame import plain_errors, sentence
from pages.views.recovery_form import calibrated
from pages.views.recovery_view import lead_on, show_steps
from slim.core.errors import SlimError
from slim.planning import budget
from slim.planning.record import ByBudget, Plan
from slim.pruning.history import load_recovery

MOST_ROUNDS = 20


def repair_choice(made: Plan) -> tuple[bool, int]:
    """Whether what is left is repaired, and in how many rounds it is cut."""
    problem = ""
    try:
        calibrated(made)
    except SlimError as error:
        problem = str(error)
    repaired = st.checkbox(
        "Repair what is left",
        not problem,
        key=f"prune-repair-{not problem}",
        disabled=bool(problem),
        help="Least squares of what is left onto what was, on rows of the calibration's dataset: no training, and kept "
        "only where rows that took no part say it is better.",
    )
    by_size = isinstance(made.reason, ByBudget) and budget.LOSS not in made.reason.limits
    rounds = 1
    if by_size and not problem:
        rounds = st.number_input(
            "Rounds",
            1,
            MOST_ROUNDS,
            1,
            key="prune-rounds",
            disabled=not repaired,
            width=140,
            help="More than one: a part goes, what is left is repaired and measured again, until the budget is met. "
            "Better, and as many times as long.",
        )
    if problem:
        st.caption(f"Not repaired: {sentence(problem)}")
    return repaired, rounds if repaired else 1


def show_pruned(folder: Path) -> None:
    """The checkpoint that was made, what its repair gave, and the steps that follow."""
    st.success(sentence(f"Saved: {folder}"), icon=":material/check_circle:")
    with plain_errors():
        steps = load_recovery(folder).steps
    if steps:
        show_steps(steps)
    lead_on(folder, recover=True)
