"""The tokenizer inside a GGUF file, as llama.cpp reads it: transformers does not cut text as every file says."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim.core.errors import InputError
from slim.core.records import why_invalid
from slim.models.gguf_header import read_settings
from slim.models.pre_tokenizers import cut_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Kinds of tokens that are found in a text as they are written, before it is cut."""
SPACE = "▁"
"""Stands for a space in the older kind of tokenizer."""
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""The file's word for a special token, by transformers' name."""
OLDER_SPECIAL = {"bos": 1, "eos": 2, "unknown": 0}
"""Ids of the special tokens of the older kind where the file does not say."""
BY_POSITION = ("gemma", "gemma2", "gemma3")
"""Architectures whose merges follow the order of the tokens, not their scores."""


def read_tokenizer(file: Path) -> "PreTrainedTokenizerFast":
    """Return the tokenizer of a GGUF file.

    Raises InputError for one that cannot be read, or whose way to cut text is not known.
    """
    from transformers import PreTrainedTokenizerFast

    settings = read_settings(file, ("tokenizer.", "general.architecture"))
    try:
        return _built(settings, str(file), PreTrainedTokenizerFast)
    except InputError:
        raise
    except Exception as error:  # lists that do not belong together fail anywhere in the library
        raise InputError(f"model file {str(file)!r} has no tokenizer that can be read: {why_invalid(error)}") from error


def _built(settings: dict[str, Any], file: str, kind: "type[PreTrainedTokenizerFast]") -> "PreTrainedTokenizerFast":
    def of(name: str, default: Any = None) -> Any:
        return settings.get(f"tokenizer.ggml.{name}", default)

    tokens, model = of("tokens", []), of("model", "")
    defaults: dict[str, int] = {}
    if model == "gpt2":
        cut = cut_of(of("pre", ""), file)
        tokenizer, add_bos = _byte_level(tokens, of("merges", [])), cut.add_bos
        tokenizer.model.ignore_merges = cut.ignore_merges
        tokenizer.pre_tokenizer = cut.pre_tokenizer()
    elif model == "llama":
        by_position = settings.get("general.architecture") in BY_POSITION
        scores = [float(-place) for place in range(len(tokens))] if by_position else of("scores", [])
        unknown = tokens[of("unknown_token_id", OLDER_SPECIAL["unknown"])]
        tokenizer = _sentencepiece(tokens, scores, unknown, of("add_space_prefix", True))
        add_bos, defaults = True, OLDER_SPECIAL
    else:
        raise InputError(
            f"model file {file!r}: its tokenizer is of the kind {model!r} (tokenizer.ggml.model), and Slim reads gpt2 "
            "and llama: take the Hugging Face folder that the file was converted from."
        )
    _add_whole(tokenizer, tokens, of("token_type", []))
    ids = {name: of(f"{word}_token_id", defaults.get(word)) for name, word in SPECIAL.items()}
    return kind(
        tokenizer_object=tokenizer,
        add_bos_token=bool(of("add_bos_token", add_bos)),
        add_eos_token=bool(of("add_eos_token", False)),
        chat_template=settings.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **{name: None if place is None else tokens[place] for name, place in ids.items()},
    )


def _byte_level(tokens: Sequence[str], merges: Sequence[str]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE

    vocabulary = {token: place for place, token in enumerate(tokens)}
    pairs = [(pair[: pair.index(" ", 1)], pair[pair.index(" ", 1) + 1 :]) for pair in merges]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=pairs))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(tokens: Sequence[str], scores: Sequence[float], unknown: str, prefix: bool) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE
    from transformers.tokenization_utils_base import generate_merges

    vocabulary = {token: place for place, token in enumerate(tokens)}
    merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token=unknown, byte_fallback=True, fuse_unk=True))
    marks = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", SPACE)])
    first = [decoders.Strip(" ", 1, 0)] if prefix else []
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *first]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def _add_whole(tokenizer: "Tokenizer", tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Tell the tokenizer which tokens stay whole wherever a text has them, and which of them are special."""
    from tokenizers import AddedToken

    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (UNKNOWN, CONTROL):
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
