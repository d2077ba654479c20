"""Rows of a dataset of the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from slim.core.errors import InputError
from slim.core.hub import first_line, reach
from slim.data.source import Source, arrow_rows


def open_hub(source: str, config: str | None, split: str, revision: str | None) -> Source:
    """A dataset of the Hub at the commit that `revision` stands for today, or as it was kept when it cannot be reached.

    Raises InputError for one that does not exist, is not open to everyone, or is neither reached nor kept.
    """
    from datasets import disable_progress_bars

    disable_progress_bars()
    # `datasets` takes the name of one of its own readers for that reader, on the files of the working folder.
    if "/" not in source and find_spec(f"datasets.packaged_modules.{source}"):
        raise InputError(f"dataset {source!r} was not found: name a file, or a Hub id (owner/name).")
    commit, unreached = reach("dataset", source, revision)
    if unreached is None:
        data = _load(source, config, split, commit)
    elif revision is not None:
        raise InputError(
            f"dataset {source!r} at revision {revision!r} cannot be had: the Hub was not reached ({unreached}): "
            "check the connection."
        )
    else:
        with _offline():
            data = _load(source, config, split, None, unreached)
    return Source(source, split, lambda: arrow_rows(data, len(data)), commit)


def _load(source: str, config: str | None, split: str, revision: str | None, unreached: str | None = None) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(source, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if unreached is not None and isinstance(error, OSError):
            raise InputError(
                f"dataset {source!r} is not a file here, and the Hub was not reached ({unreached}): "
                "check the name and the connection."
            ) from error
        raise InputError(
            f"dataset {source!r} (config {config!r}, split {split!r}) could not be loaded from the Hub: "
            f"check the config and the split ({first_line(error)})."
        ) from error


@contextmanager
def _offline() -> Iterator[None]:
    """`datasets` looks only at what it has kept."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
