"""The check of the importance criteria: its figures on a page, and the button that starts one."""

import numpy as np
import pandas as pd
import streamlit as st

from pages.views.frame import PLOT, duration, newest_job, show_job
from pages.views.head_detail import NAMES, Shown, clickable, title_of
from slim import jobs
from slim.calibration import check_charts, scores
from slim.calibration.check_record import SHARES, CriterionCheck, Verdict, rank_correlation
from slim.calibration.record import Calibration
from slim.calibration.request import CheckRequest
from slim.calibration.resources import forwards
from slim.core.markdown import escaped


def show_check(shown: Shown) -> None:
    """Show the criterion check, and the button that starts one."""
    found, job = shown.calibration.check, newest_job("check")
    mine = job is not None and job.arguments.get("calibration") == str(shown.path)
    request = CheckRequest.asked(calibration=shown.path, weights=shown.weights)
    if found is None:
        st.info(
            "Not checked yet. Checking ablates heads on rows of their own, one at a time and together, and compares "
            "every criterion with the loss increase. It also corrects the forecast.",
            icon=":material/rule:",
        )
    else:
        show_verdicts(shown, found)
    if mine:
        show_job(job)
    label = "Check the criteria" if found is None else "Check again with these weights"
    busy = job is not None and job.unfinished
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            label,
            type="primary" if found is None else "secondary",
            icon=":material/rule:",
            disabled=busy,
        ):
            jobs.start(request)
            st.rerun()
        seconds = check_seconds(shown.calibration, request)
        if not busy and seconds is not None:
            st.caption(f"Takes about {duration(seconds)}.")


def check_seconds(calibration: Calibration, request: CheckRequest) -> float | None:
    """Return about how long a check takes, by the pace of the calibration; None where that measured nothing anew.

    A head alone runs a part of the model, a joint removal all of it.
    """
    facts = calibration.facts
    if facts.reused >= 1:
        return None
    length = facts.dataset.tokens / facts.dataset.rows
    orders = len(scores.criteria(calibration, scores.default_weights(calibration)))
    heads = min(request.heads, facts.model.layers * facts.model.heads)
    asked = request.samples * length * (0.6 * heads + orders * len(SHARES))
    lengths = [round(length)] * facts.dataset.rows
    measured = forwards(facts.model, lengths, facts.settings, facts.precision) * (1 - facts.reused)
    return facts.seconds * asked / measured


def show_verdicts(shown: Shown, found: CriterionCheck) -> None:
    """Show the check's figures, and their meaning in words."""
    order = check_charts.ranked(found)
    if order:
        st.markdown(in_words(found))
    prunable = shown.measures["composite"].values
    now = None
    if dict(shown.weights) != found.weights:
        alone = np.array([prunable[head] for head in found.heads])
        now = rank_correlation(alone, np.array(found.damage), shown.calibration.facts.settings.seed)
    st.plotly_chart(check_charts.correlations(found, NAMES, now), key="correlations", config=PLOT)
    st.plotly_chart(check_charts.perplexities(found, NAMES), key="perplexities", config=PLOT)
    columns = st.container(key="wide-fit").columns(2)
    with columns[0]:
        orders = scores.criteria(shown.calibration, shown.weights)
        names: list[str] = list(orders)
        name: str = st.selectbox(
            "Order the heads by",
            names,
            index=names.index("composite"),
            format_func=title_of,
            key="order",
            bind="query-params",
        )
        figure = check_charts.damage_by_rank(orders[name], found, title_of(name), chosen=shown.head)
        clickable(figure, "damage")
    with columns[1]:
        st.plotly_chart(check_charts.correction_fit(found, NAMES), key="fit", config=PLOT)
        st.caption(correction_in_words(found))
    rows = "rows that took no part in the calibration" if found.unseen else "rows of the calibration, as it had no more"
    st.caption(
        f"Measured on {found.tokens:,} predicted tokens of {found.rows} {rows}; {len(found.heads)} heads ablated "
        f"one at a time; {duration(found.seconds)}. Intervals are over resampled heads."
    )
    with st.expander("The perplexities as a table"):
        shares = [removal.share for removal in found.verdicts[0].removals]
        table = pd.DataFrame(
            [
                [title_of(v.criterion), v.correlation, *(removal.perplexity for removal in v.removals)]
                for v in found.verdicts
            ],
            columns=["Criterion", "Rank correlation", *(f"{share:.0%} gone" for share in shares)],
        )
        numbers = {name: st.column_config.NumberColumn(format="%.1f") for name in table.columns[2:]}
        numbers["Rank correlation"] = st.column_config.NumberColumn(format="%+.2f")
        st.dataframe(table, hide_index=True, column_config=numbers)
        st.caption(f"All heads in place: {found.perplexity:,.1f}.")


def in_words(found: CriterionCheck) -> str:
    """Say which criterion to follow here and which not, from the record alone."""
    order = check_charts.ranked(found)
    best, worst, chance = order[0], order[-1], found.verdict("random")
    at = min(1, len(worst.removals) - 1)
    share = worst.removals[at].share

    def named(verdict: Verdict) -> str:
        return f"**{escaped(title_of(verdict.criterion))}**"

    def costs(verdict: Verdict) -> str:
        return f"{verdict.removals[at].perplexity:,.1f}"

    words = (
        f"{named(best)} orders the heads best ({_signed(best)}), {named(worst)} worst ({_signed(worst)}). Removing the "
        f"{share:.0%} of the heads that {named(worst)} would take first turns a perplexity of {found.perplexity:,.1f} "
        f"into {costs(worst)}; {named(best)} makes it {costs(best)}"
    )
    if chance is None:
        return f"{words}."
    if chance not in (best, worst):
        words += f", chance {costs(chance)}"
    ruinous = [v for v in found.verdicts if v.removals[at].perplexity > chance.removals[at].perplexity]
    if ruinous:
        words += f". Worse than chance at {share:.0%}: {', '.join(map(named, ruinous))}"
    return f"{words}."


def _signed(verdict: Verdict) -> str:
    return f"{verdict.correlation:+.2f}".replace("-", "−")


def correction_in_words(found: CriterionCheck) -> str:
    """Say how the correction changes a forecast."""
    fit = found.correction
    if fit is None:
        return "Too few removals to correct the forecast by."
    small, large = fit.factor(fit.smallest), fit.factor(fit.largest)
    return (
        f"A forecast of {fit.smallest:.2g} nats/token is multiplied by {small:.2f}, one of {fit.largest:.2g} by "
        f"{large:.2f}; after that the {fit.removals} removals lie within a factor of {np.exp(fit.spread):.2f} of it, "
        "two times in three."
    )
