"""The tokenizer and the shape of a model without its weights, to show what will be before anything long starts."""

from pathlib import Path
from typing import TYPE_CHECKING

from slim.core import paths
from slim.core.errors import InputError
from slim.core.hub import reach
from slim.core.records import ModelFacts, why_invalid
from slim.models import bundled
from slim.models.folder_tokenizer import of_folder
from slim.models.gguf_tokenizer import read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(source: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of the model that `source` names as for `slim.models.load`.

    Raises InputError for an unknown source or one without a tokenizer.
    """
    from slim.models.load import tried

    try:
        return tried(_read(source))
    except InputError:
        raise
    except Exception as error:  # its parts are read by several libraries, each with errors of its own
        raise InputError(f"model {source!r} has no tokenizer that can be read: {why_invalid(error)}") from error


def _read(source: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoConfig

    from slim.models.load import check_tokens, locate

    gguf = _not_unpacked(source)
    if gguf is not None:
        return read_tokenizer(gguf)
    place = locate(source)
    if not at_hand(source):
        return _of_hub(place)
    tokenizer = of_folder(place)
    check_tokens(source, tokenizer, AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False))
    return tokenizer


def facts_at_hand(source: str) -> ModelFacts | None:
    """The shape of a model; None where that takes longer than a look: one of the Hub, or a file not unpacked yet.

    Raises InputError for a folder that is not a model, or a family that is not supported.
    """
    if not at_hand(source) or _not_unpacked(source) is not None:
        return None
    from slim.models.folder_check import read_folder
    from slim.models.load import facts_from_config, locate

    folder = read_folder(source, Path(locate(source)))
    return facts_from_config(source, folder.config, folder)


def at_hand(source: str) -> bool:
    """Whether it is on this machine: bundled, a file or a folder. Raises InputError for a path that may not be read."""
    return source == bundled.NAME or paths.local(source, "model").exists()


def _not_unpacked(source: str) -> Path | None:
    """The GGUF file of a model that a calibration would unpack first, which takes longer than to read its tokenizer."""
    if source == bundled.NAME and not bundled.is_unpacked(bundled.FOLDER):
        return bundled.bundled_gguf()
    path = paths.local(source, "model")
    return path if path.suffix == ".gguf" and path.is_file() else None


def _of_hub(source: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        _, unreached = reach("model", source)
        if unreached is not None:
            raise InputError(
                f"model {source!r} is not here, and the Hub was not reached ({unreached}): "
                "check the name and the connection."
            ) from None
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
