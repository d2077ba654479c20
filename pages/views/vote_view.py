"""Your own vote: two answers without their models' names, and afterwards the agreement of votes and judge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from pages.views.frame import plain_errors
from slim.evaluation.metrics import Figure
from slim.judging import review, votes
from slim.judging.pair_html import pair
from slim.judging.record import Comparison, Judgment
from slim.judging.votes import FEW, SIDES, Ballot, Votes

BALLOTS: dict[Ballot, str] = {"A": "A is better", "B": "B is better", "tie": "Tie", "skip": "Skip"}
SIDE_NAMES = {"original_model": "original", "tie": "tie", "pruned_model": "pruned"}
AT = "compare-vote-at"
"""The key in the session of the judgement's file and of the pair voted on last, which is shown named."""


def show_vote(path: Path, found: Judgment, given: Votes, show_named: Callable[[int], None]) -> None:
    """Show the next pair without a vote, blind; after a vote the same pair with its models named by `show_named`.

    Until then nothing that the browser is sent depends on which answer is whose, the answers apart.
    """
    places = votes.queue(found)
    voted = votes.choices(found, given)
    done = sum(place in voted for place in places)
    st.progress(done / max(1, len(places)), f"{done:,} of {len(places):,} pairs have your vote")
    named = st.session_state.get(AT)
    if named and named[0] == str(path) and named[1] in voted:
        _show_named(path, found, named[1], show_named)
        return
    left = [place for place in places if place not in voted]
    if not left:
        st.success("Every pair has your vote. See Agreement.", icon=":material/check_circle:")
        return
    place = left[0]
    one = found.comparisons[place]
    answers = [one.response1, one.response2]
    if votes.pruned_is_a(found, one):
        answers.reverse()
    first, second = review.word_diff(*answers)
    with st.container(border=True):
        st.html(
            pair(
                f"Row {place + 1}",
                one.question,
                one.reference,
                [("Answer A", first, "one"), ("Answer B", second, "one")],
            )
        )
    st.caption("Which answer is better? The models are named after the vote.")
    _buttons(path, found, one, place, "vote")


def _buttons(path: Path, found: Judgment, one: Comparison, place: int, key: str) -> None:
    with st.container(horizontal=True):
        pressed: list[Ballot] = [ballot for ballot, title in BALLOTS.items() if st.button(title, key=f"{key}-{ballot}")]
    if pressed:
        with plain_errors():
            votes.cast(path, one, pressed[0], votes.pruned_is_a(found, one))
        st.session_state[AT] = (str(path), place)
        st.rerun()


def _show_named(path: Path, found: Judgment, place: int, show_named: Callable[[int], None]) -> None:
    one = found.comparisons[place]
    a, b = ("pruned model", "original") if votes.pruned_is_a(found, one) else ("original", "pruned model")
    st.markdown(f"A was the **{a}**, B the **{b}**.")
    show_named(place)
    with st.container(horizontal=True):
        if st.button("Next pair", type="primary", icon=":material/arrow_forward:"):
            st.session_state.pop(AT)
            st.rerun()
        with st.popover("Change my vote"):
            st.caption("A changed vote counts, but not as blind.")
            _buttons(path, found, one, place, "again")


def show_agreement(found: Judgment, given: Votes) -> None:
    """Votes beside the judge's verdicts: counts, the share on which they agree, and Cohen's kappa."""
    both = votes.agreement(found, given)
    skipped = f" Skipped: {both.skipped:,}." if both.skipped else ""
    if not both.pairs:
        st.info(f"There is no vote on a pair that the judge has a verdict on.{skipped}", icon=":material/how_to_vote:")
        return
    one, two = st.columns(2)
    of = f"{both.same:,} of {both.pairs:,}"
    show_figure(one, "You and the judge agree", both.share, "{:.1%}", of)
    show_figure(two, "Cohen's kappa", both.kappa, "{:.2f}", "1: always the same; 0: as often as by chance")
    if both.pairs < FEW:
        st.warning(
            f"Too few votes for a conclusion: {both.pairs:,} so far, {FEW} or more are enough.", icon=":material/scale:"
        )
    rows = {f"you: {SIDE_NAMES[side]}": both.counts[place] for place, side in enumerate(SIDES)}
    columns = [f"judge: {SIDE_NAMES[side]}" for side in SIDES]
    st.dataframe(pd.DataFrame.from_dict(rows, orient="index", columns=columns), key="agreement-counts", width=560)
    changed = f" Changed after the models were named: {both.not_blind:,}." if both.not_blind else ""
    st.caption(f"Pairs with your vote and the judge's verdict: {both.pairs:,}.{skipped}{changed}")


def show_figure(place: Any, title: str, figure: Figure | None, form: str, help: str) -> None:
    """A figure with its interval below it, in the format `form`."""
    if figure is None or figure.low is None or figure.high is None:
        below = "no interval"
    else:
        below = f"{form.format(figure.low)} to {form.format(figure.high)}"
    show_metric(place, title, "unknown" if figure is None else form.format(figure.value), below, help)


def show_metric(place: Any, title: str, value: str, below: str, help: str | None = None) -> None:
    """A figure in words, with a line below it."""
    place.metric(title, value, below, delta_color="off", delta_arrow="off", border=True, help=help)
