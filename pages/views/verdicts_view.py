"""A judgement on a page: the winner and the intervals, every pair with its verdicts, and downloads."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import streamlit as st

from pages.views.frame import choose_run, duration, plain_errors, sentence
from pages.views.report_button import offer_report
from pages.views.vote_view import show_agreement, show_figure, show_metric, show_vote
from slim.judging import judge, review, votes
from slim.judging.pair_html import VERDICTS, named_pair
from slim.judging.record import JUDGMENTS, Judgment
from slim.judging.review import Wanted
from slim.judging.votes import Votes

CSS = Path(__file__).parent.parent / "assets" / "compare.css"
SHOWN = 10
"""Pairs at a time."""
NAMES = {"original_model": "the original", "pruned_model": "the pruned model", "tie": "neither, a tie"}
FLIPS = {"Any": None, "Changed the verdict": True, "Did not": False}
BY_ROW, BY_REFERENCE = "Row", "Disagreement with the reference"
VIEWS = ("Verdicts", "Vote blind", "Agreement")


@st.cache_resource(max_entries=4, show_spinner="Reading the judgement")
def _judgment(path: str, written: int) -> Judgment:
    return judge.load_judgment(Path(path))


@st.cache_resource(max_entries=4, show_spinner="Comparing with the references")
def _scores(path: str, written: int, _judgment: Judgment) -> dict[int, tuple[float, float]]:
    return review.reference_scores(_judgment)


def show_past(key: str) -> None:
    """Show the chosen judgement of the workspace, the newest first; the page's link keeps the choice."""
    st.html(CSS)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        path = choose_run("judgement", "Judgement", key, "pages/compare.py")
        view = st.segmented_control(
            "Look at", VIEWS, default=VIEWS[0], required=True, key="compare-look", persist_state="session"
        )
    st.query_params["judgement"] = path.name
    with plain_errors():
        written = path.stat().st_mtime_ns
        found, given = _judgment(str(path), written), votes.load_votes(path)
    if view == "Vote blind":
        show_vote(path, found, given, lambda place: _show_pair(found, place, given, None))
    elif view == "Agreement":
        show_agreement(found, given)
    else:
        _show_headline(found)
        _show_pairs(found, given, lambda: _scores(str(path), written, found))
        _show_downloads(path, found, given)
        offer_report(path)


def _show_headline(found: Judgment) -> None:
    """The judge, the winner and the figures."""
    figures = found.figures
    st.caption(sentence(_about(found)))
    judged = figures.win + figures.loss + figures.tie
    if figures.coverage < found.min_coverage:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in figures.failures.items())
        st.warning(
            sentence(
                f"no winner is named: {figures.coverage:.0%} of the pairs were judged, not {found.min_coverage:.0%} "
                f"({reasons}). The same request asks only for missing verdicts."
            ),
            icon=":material/block:",
        )
    elif found.overall_winner is None:
        st.warning("No winner is named.", icon=":material/block:")
    else:
        st.markdown(f"**More wins: {NAMES[found.overall_winner]}.**")
    if found.notes:
        st.caption(" ".join(f"{sentence(note)}." for note in found.notes))
    one, two, three, four = st.columns(4)
    show_figure(one, "Pruned win rate", figures.win_rate, "{:.1%}", "(wins + ½ ties) / judged, and its 95% interval")
    show_figure(
        two, "At equal length", figures.length_controlled, "{:.1%}", "Predicted by a model of the verdict by length"
    )
    flips = "one order suffices" if figures.flip_rate is None else f"{figures.flips:,} flips, {figures.flip_rate:.1%}"
    show_metric(three, "Wins · losses · ties", f"{figures.win:,} · {figures.loss:,} · {figures.tie:,}", flips)
    show_metric(four, "Coverage", f"{figures.coverage:.1%}", f"{judged:,} of {found.num_samples:,} pairs")
    lengths, made = figures.mean_length, found.generated
    cut = [made[name].truncated for name in ("original_model", "pruned_model")]
    st.caption(
        f"Mean answer: {lengths[0]:,.0f} characters by the original, {lengths[1]:,.0f} by the pruned model. "
        f"Cut at {found.answers.max_new_tokens} tokens: {cut[0]:,} and {cut[1]:,}. "
        f"Empty: {made['original_model'].empty:,} and {made['pruned_model'].empty:,}."
    )


def _about(found: Judgment) -> str:
    who = {"endpoint": "judged by", "local": "judged on this machine by", "reference": "judged without a model by"}
    words = [f"{who[found.judge.kind]} {found.judge.name}"]
    if found.judge.endpoint:
        words[0] += f" at {found.judge.endpoint}"
    words.append(f"{found.original_model} against {found.pruned_model}")
    words.append(f"{found.num_samples:,} rows of {found.dataset}, split {found.split}")
    return "; ".join([*words, duration(found.seconds)]) + "."


def _show_pairs(found: Judgment, given: Votes, scores: Callable[[], review.Scores]) -> None:
    """The pairs that the filters let through, `SHOWN` at a time."""
    places = review.chosen(found, _wanted(found))
    if _sorted_by(found) == BY_REFERENCE:
        places = review.by_disagreement(found, places, scores())
    st.caption(f"{len(places):,} of {found.num_samples:,} pairs. Marked: words that the other answer lacks.")
    pages = max(1, -(-len(places) // SHOWN))
    if st.session_state.get("compare-page", 1) > pages:
        st.session_state["compare-page"] = 1
    number = st.session_state.get("compare-page", 1)
    for place in places[(number - 1) * SHOWN : number * SHOWN]:
        _show_pair(found, place, given, review.scores_of(found.comparisons[place]))
    if pages > 1:
        st.pagination(pages, key="compare-page")


def _first_page() -> None:
    st.session_state["compare-page"] = 1


def _wanted(found: Judgment) -> Wanted:
    """The filters; every change begins at the first page again."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kinds = st.pills(
            "Verdict",
            JUDGMENTS,
            selection_mode="multi",
            format_func=VERDICTS.__getitem__,
            key="compare-kinds",
            persist_state="session",
            on_change=_first_page,
        )
        flip = st.segmented_control(
            "The other order",
            list(FLIPS),
            default="Any",
            required=True,
            key="compare-flip",
            persist_state="session",
            on_change=_first_page,
            disabled=not found.judge.both_orders,
        )
        lengths = sorted({review.longer(pair) for pair in found.comparisons})
        longest = None
        if len(lengths) > 1:
            longest = st.slider(
                "Longer answer, characters",
                lengths[0],
                lengths[-1],
                (lengths[0], lengths[-1]),
                key=f"compare-length-{found.started}",
                on_change=_first_page,
                width=260,
            )
        text = st.text_input(
            "Search",
            type="search",
            placeholder="in questions, answers, reasons",
            key="compare-search",
            persist_state="session",
            on_change=_first_page,
            width=280,
        )
    return Wanted(frozenset(kinds or JUDGMENTS), FLIPS[flip or "Any"], longest, text)


def _sorted_by(found: Judgment) -> str:
    if not any(map(review.has_reference, found.comparisons)):  # a reference judge agrees with itself
        return BY_ROW
    chosen = st.segmented_control(
        "Sort by",
        [BY_ROW, BY_REFERENCE],
        default=BY_ROW,
        required=True,
        key="compare-sort",
        persist_state="session",
        on_change=_first_page,
        help="By how much the loser is closer to the dataset's own answer (ROUGE-L F1); for a tie half the difference.",
    )
    return chosen or BY_ROW


def _show_pair(found: Judgment, place: int, given: Votes, scores: tuple[float, float] | None) -> None:
    with st.container(border=True):
        st.html(named_pair(place, found.comparisons[place], given, scores))


def _show_downloads(path: Path, found: Judgment, given: Votes) -> None:
    """Buttons for the judgement's file and for a table of the pairs."""
    with st.container(horizontal=True):
        st.download_button(
            "Judgement as JSON",
            path.read_bytes,
            path.name,
            "application/json",
            icon=":material/download:",
            on_click="ignore",
        )
        st.download_button(
            "Pairs as CSV",
            lambda: as_csv(found, given),
            f"{path.stem}.csv",
            "text/csv",
            icon=":material/download:",
            on_click="ignore",
        )


def as_csv(found: Judgment, given: Votes) -> str:
    """A line for each pair, with its scores against the reference and your vote."""
    rows = review.table(found, review.reference_scores(found), votes.choices(found, given))
    return pd.DataFrame(rows).to_csv(index=False)
