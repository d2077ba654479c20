"""Writes a report of a run, as HTML or as Markdown by the name of its file."""

from pathlib import Path
from typing import Literal

from slim.core import workspace
from slim.core.errors import InputError
from slim.pruning.model_card import CLOSING
from slim.runs.report.compose import compose

Form = Literal["html", "md"]
FORMS: dict[str, Form] = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}
SIGN = CLOSING.rsplit(" ", 1)[0]
"""Text that every report and model card of Slim contains."""


def text(run: Path, form: Form) -> str:
    """The report of a run. Raises InputError for anything but an undamaged run."""
    document = compose(run)
    if form == "md":
        from slim.core.markdown import markdown

        return markdown(document)
    from slim.runs.report.html import html

    return html(document)


def write(run: Path, output: Path) -> Path:
    """Write the report of a run to the .html or .md file `output`; an earlier report or model card is replaced.

    Raises InputError for another kind of file, another file of that name, or anything but an undamaged run.
    """
    form = FORMS.get(output.suffix.lower())
    if form is None:
        raise InputError(f"output={str(output)!r}: it is neither a page nor a model card; name an .html or .md file.")
    if not _is_ours(output):
        workspace.check_file(output)
    workspace.write_file(output, text(run, form))
    return output


def _is_ours(output: Path) -> bool:
    try:
        return output.is_file() and SIGN in output.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
