"""Buttons that download a run as one file: a page that needs no network, or a model card."""

from pathlib import Path

import streamlit as st

from slim.runs.report.write import Form, text

FORMS: tuple[tuple[Form, str, str, str], ...] = (
    ("html", "Report as HTML", "text/html", ":material/description:"),
    ("md", "Model card as Markdown", "text/markdown", ":material/article:"),
)


def offer_report(path: Path) -> None:
    """Downloads of the report of the run at `path`, which is written when a button is pressed."""
    name = path.stem if path.suffix == ".json" else path.name
    with st.container(horizontal=True):
        for form, label, kind, icon in FORMS:
            st.download_button(
                label,
                lambda form=form: text(path, form),
                f"{name}.{form}",
                kind,
                icon=icon,
                key=f"report-{form}-{path}",
                on_click="ignore",
            )
