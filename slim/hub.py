"""The Hugging Face Hub: whether it can be reached is found out first, then its own clients download."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from slim.errors import InputError, without_secrets
from slim.sources import Source, arrow_rows

PATIENCE = 5.0
"""Seconds the Hub has to answer. The client itself would ask again for most of a minute."""
MODEL_FILES = ("*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja")
"""What a model is loaded from: no code, and no other copies of its weights."""


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


def reach(kind: Literal["dataset", "model"], source: str, revision: str | None = None) -> tuple[str | None, str | None]:
    """The commit of a repository, or None and why the Hub was not reached within a few seconds.

    Raises InputError when the Hub says that there is no such repository or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return HfApi().repo_info(source, repo_type=kind, revision=revision, timeout=PATIENCE).sha, None
    except RevisionNotFoundError as error:
        raise InputError(f"revision {revision!r} of {kind} {source!r} does not exist: name another.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{kind} {source!r} was not found: no file here has that name, and on the Hub it does not exist or is not "
            "open to you; check the name, or log in with `hf auth login`."
        ) from error
    except OfflineModeIsEnabled:
        return None, "HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        return None, f"it answers {error.response.status_code}"
    except Exception as error:  # the client's errors come from a library that changes between its versions
        return None, first_line(error)


def snapshot(source: str) -> Path:
    """The folder of a model of the Hub, named after its commit: that of today, or as kept when it cannot be reached.

    Raises InputError for one that does not exist, is not open to everyone, or is neither reached nor kept.
    """
    from huggingface_hub import snapshot_download

    _, unreached = reach("model", source)
    try:
        kept = snapshot_download(source, allow_patterns=[*MODEL_FILES], local_files_only=unreached is not None)
    except Exception as error:  # as above
        raise InputError(
            f"model {source!r} could not be loaded from the Hub: check the name and the connection "
            f"({unreached or first_line(error)})."
        ) from error
    return Path(kept)


def _load(source: str, config: str | None, split: str, revision: str | None, unreached: str | None = None) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(source, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if unreached is not None and isinstance(error, OSError):
            raise InputError(
                f"dataset {source!r} is no file here, and the Hub was not reached ({unreached}): "
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


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(" ".join(lines[:2])[:300]).rstrip(".") or type(error).__name__
