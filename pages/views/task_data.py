"""The choice of task data on a page: the dataset or an upload, and the column mapping."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.views.fields import KEEP
from pages.views.frame import plain_errors, sentence
from slim.core import paths
from slim.core.errors import InputError, SlimError
from slim.core.markdown import escaped
from slim.data import tasks, uploads
from slim.data.columns import BESIDE, fit_mapping, suggest_mapping
from slim.data.request import DataSource
from slim.data.sources import FORMATS, is_hub_id
from slim.data.tasks import TEMPLATES, Task

if TYPE_CHECKING:
    pass

IN_A_LINE = 3
"""Select boxes of columns side by side."""
NO_COLUMN = "None of them"


def choose_source(place: Any, key: str) -> str:
    """Ask for a bundled dataset, an earlier upload, or any other name."""
    kept = [str(path) for path in uploads.kept_uploads()]
    return place.selectbox(
        "Task data",
        [*(f"bundled:{name}" for name in (*tasks.BUNDLED, tasks.GENERAL)), *kept],
        format_func=lambda source: Path(source).name if source in kept else source,
        accept_new_options=True,
        help="A bundled dataset, a .jsonl, .csv, .parquet or .txt file, or a Hub id. The box below takes an upload.",
        key=key,
        persist_state=KEEP,
    )


def choose_data(source: str, key: str) -> dict[str, Any]:
    """Ask for the fields of a `DataSource`, which are guessed and can be changed in an expander.

    `key` is that of the select box of `choose_source`. Ends the page with one sentence where the data cannot be used.
    """
    data = DataSource(source=source).model_dump()
    details = st.expander("Your own file, columns and prompt", icon=":material/table_rows:")
    with details:
        left, right = st.columns(2)
        left.file_uploader(
            "Upload rows",
            [ending.removeprefix(".") for ending in FORMATS],
            key=f"{key}-upload",
            on_change=_keep_upload,
            args=(key,),
            help="It is saved in the workspace. For a file beyond the limit, enter its path as task data instead.",
        )
        with right, plain_errors():
            data |= _where(source, key)
    if problem := st.session_state.pop(f"{key}-problem", None):
        st.error(sentence(problem), icon=":material/error:")
    where = {name: data[name] for name in ("source", "config", "split", "revision")}
    with plain_errors():
        names = _columns(**where, written=modified(source))
    with details:
        data |= _mapping(where, names, f"{key}-{source}")
    return data


def options_of(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `DataSource` as a request names them."""
    return {"dataset" if name == "source" else name: value for name, value in data.items()}


def _keep_upload(key: str) -> None:
    uploaded = st.session_state[f"{key}-upload"]
    if uploaded is None:
        return
    try:
        st.session_state[key] = str(uploads.keep_upload(uploaded.name, uploaded.getbuffer()))
    except SlimError as error:
        st.session_state[f"{key}-problem"] = str(error)


def _where(source: str, key: str) -> dict[str, str | None]:
    """Ask for the split of a bundled dataset, and for a Hub dataset's configuration and revision as well."""
    path = paths.local(source, "dataset")
    if path.is_file():
        size = path.stat().st_size
        st.caption(f"{escaped(path.name)}, " + (f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"))
        return {}
    if source.startswith("bundled:"):
        return {"split": st.selectbox("Split", tasks.SPLITS, key=f"{key}-part", persist_state=KEEP)}
    if not is_hub_id(source):
        return {}
    fields = {"config": "Configuration", "split": "Split", "revision": "Revision"}
    hints = {"config": "where there are several", "split": "train", "revision": "the newest"}
    return {
        name: st.text_input(title, key=f"{key}-{name}", persist_state=KEEP, placeholder=hints[name]) or None
        for name, title in fields.items()
    }


def _mapping(where: dict[str, Any], names: tuple[str, ...], key: str) -> dict[str, Any]:
    """Ask for the template, the column mapping and the wording; the guess is the initial value."""
    try:
        guess: str | None = fit_mapping(names).template.name
    except InputError:
        guess = None
    options = list(TEMPLATES)
    name = st.selectbox(
        "Template",
        options,
        index=None if guess is None else options.index(guess),
        format_func=lambda option: TEMPLATES[option].title,
        placeholder="Choose what the rows are",
        key=f"{key}-template",
        persist_state=KEEP,
    )
    if name is None:
        return {}
    template, key = TEMPLATES[name], f"{key}-{name}"
    layout = suggest_mapping(template, names)
    likely = layout.columns
    places = [place for _ in range(0, len(template.roles), IN_A_LINE) for place in st.columns(IN_A_LINE)]
    columns = {
        role: _choose_column(place, role, names, likely.get(role), role in template.optional, f"{key}-{role}")
        for place, role in zip(places, template.roles, strict=False)
    }
    found = {"template": name, "columns": {role: column for role, column in columns.items() if column}}
    if name == "chat":
        return found
    placeholders = [
        *(role for role in template.roles if role not in BESIDE),
        *(["labels"] if "label" in template.roles else []),
        *names,
    ]
    prompt = st.text_area(
        "Prompt",
        tasks.wording(where["source"], layout),
        key=f"{key}-prompt",
        persist_state=KEEP,
        placeholder="None: the text alone",
        help="In braces a role or a column: "
        + ", ".join(escaped(f"{{{name}}}") for name in dict.fromkeys(placeholders)),
    )
    return found | {"prompt": prompt}


def _choose_column(
    place: Any, role: str, names: tuple[str, ...], likely: str | None, optional: bool, key: str
) -> str | None:
    """Ask for the column of a role; an optional role need not have one."""
    options = ["", *names] if optional else list(names)
    first = options.index(likely) if likely in options else 0 if optional else None
    return place.selectbox(
        f"Column: {role}",
        options,
        index=first,
        format_func=lambda name: name or NO_COLUMN,
        placeholder="Choose a column",
        key=key,
        persist_state=KEEP,
    )


def open_task(data: dict[str, Any]) -> Task:
    """The task, from a small cache in memory. Ends the page with one sentence where it cannot be read."""
    with plain_errors():
        return _task(data, modified(data["source"]))


def modified(source: str) -> int:
    """The modification time of a file, as a part of cache keys."""
    path = paths.local(source, "dataset")
    return path.stat().st_mtime_ns if path.is_file() else 0


@st.cache_data(max_entries=8, show_spinner="Reading the dataset")
def _columns(source: str, config: str | None, split: str | None, revision: str | None, written: int) -> tuple[str, ...]:
    return tasks.columns_of(source, config, split, revision)


@st.cache_resource(max_entries=2, show_spinner="Reading the dataset")
def _task(data: dict[str, Any], written: int) -> Task:
    return tasks.load_task(DataSource.checked(**data))
