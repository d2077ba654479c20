"""The Hugging Face Hub: whether it can be reached is found out first, then its own clients download."""

from pathlib import Path
from typing import Literal

from slim.core.errors import InputError, without_secrets

PATIENCE = 5.0
"""Seconds the Hub has to answer. The client itself would ask again for most of a minute."""
MODEL_FILES = ("*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja")
"""The files that a model is loaded from: no code, and no other copies of its weights."""


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


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(" ".join(lines[:2])[:300]).rstrip(".") or type(error).__name__
