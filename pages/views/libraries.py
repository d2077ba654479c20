"""The libraries that read tokenizers and models: they take seconds to load, and no page waits for them."""

import gc
import threading
from importlib import import_module

import streamlit as st

LOADER = "libraries"
"""Name of the thread that loads them."""
PATIENCE = 0.1
"""Seconds in which they are there where they were loaded before."""
LOOK = 0.5
"""Seconds between two looks whether they are there."""
_begun = threading.Lock()


def can_compute() -> bool:
    """Return whether they are loaded. Where they are not, say so; the page runs again once they are."""
    if _loaded():
        return True
    _wait()
    return False


def spare_imports() -> None:
    """Leave all that is there now out of the garbage collection with which Streamlit ends each run of a page.

    It would walk all of torch each time, every second while a job is watched.
    """
    gc.collect()
    gc.freeze()


def _load() -> None:
    import_module("slim.models.load")
    spare_imports()


_loader = threading.Thread(target=_load, name=LOADER, daemon=True)


def _loaded() -> bool:
    with _begun:
        if _loader.ident is None:
            _loader.start()
    _loader.join(PATIENCE)
    return not _loader.is_alive()


@st.fragment(run_every=LOOK)
def _wait() -> None:
    if _loaded():
        st.rerun()
    st.caption("Loading the libraries that read models …")
