"""The tokenizer of a model folder, as its files say."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AS_WRITTEN = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names of the class that adds nothing to a tokenizer.json."""


def of_folder(folder: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder; what its tokenizer.json says holds, where that is all that it has.

    For some families transformers' AutoTokenizer takes a class that cuts text in its own way, whatever the file says.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # here, as the command line needs neither
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    as_written = get_tokenizer_config(folder, local_files_only=True).get("tokenizer_class") in AS_WRITTEN
    kind = PreTrainedTokenizerFast if as_written and (Path(folder) / "tokenizer.json").is_file() else AutoTokenizer
    return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
