"""The tokenizer of a GGUF file: copied from the original file where there is one, else derived from transformers'."""

import tempfile
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter, SpecialVocab, TokenType
from transformers import PreTrainedTokenizerBase

from slim.core import paths
from slim.core.errors import InputError
from slim.models import bundled
from slim.models.gguf_header import check_gguf
from slim.models.original import PLAN_FILE
from slim.models.pre_tokenizers import CUTS, name_of
from slim.planning.files import load_plan

UNREACHED = -1e6
"""Score of a piece that no merge produces."""


def add_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int, source: str) -> None:
    """Write the tokenizer of the model that `source` names, whose embedding has `size` rows.

    Raises InputError for a tokenizer that llama.cpp does not have.
    """
    pieces = _pieces(tokenizer, size)
    file = original_gguf(source)
    if file is not None and _copied(writer, file, pieces):
        return
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(backend.model).__name__ if backend else type(tokenizer).__name__
    if kind != "BPE":
        raise InputError(f"tokenizer={kind}: only byte-pair encoding (BPE) can be exported; choose another model.")
    types = _types(tokenizer, pieces)
    special = _special(tokenizer, merges=not backend.model.byte_fallback)
    if backend.model.byte_fallback:
        _add_sentencepiece(writer, tokenizer, pieces, types)
    else:
        if not special.merges:
            raise InputError(
                "tokenizer: it has no merges, and llama.cpp reads no byte-pair encoding without them; use "
                "`slim serve`, which serves every checkpoint."
            )
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut(backend))
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    special.add_to_gguf(writer, quiet=True)


def original_gguf(source: str) -> Path | None:
    """Return the GGUF file that a model, or its original, was read from; None where it was not."""
    seen = set()
    while source not in seen:
        seen.add(source)
        if source == bundled.NAME:
            return bundled.bundled_gguf()
        path = paths.local(source, "model")
        if path.suffix == ".gguf":
            return path if path.is_file() else None
        if (path / PLAN_FILE).is_file():
            source = load_plan(path / PLAN_FILE).model.source
    return None


def _copied(writer: GGUFWriter, file: Path, pieces: list[str]) -> bool:
    """Copy a GGUF file's tokenizer if it has these pieces, and return whether it had.

    The copy is exact: transformers drops the pre-tokenizer when it reads a GGUF file.
    """
    check_gguf(file)
    fields = {name: field for name, field in GGUFReader(file).fields.items() if name.startswith("tokenizer.")}
    tokens = fields.get("tokenizer.ggml.tokens")
    if tokens is None or tokens.contents() != pieces:
        return False
    for name, field in fields.items():
        array = field.types[0] == GGUFValueType.ARRAY
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if array else None)
    return True


def _pieces(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """Return the text of each token, all of which have an embedding, and a placeholder for ids without a text."""
    pieces = [f"[PAD{index}]" for index in range(size)]
    for piece, index in tokenizer.get_vocab().items():
        pieces[index] = piece
    return pieces


def _types(tokenizer: PreTrainedTokenizerBase, pieces: list[str]) -> list[TokenType]:
    known, added = set(tokenizer.get_vocab().values()), tokenizer.added_tokens_decoder
    types = [TokenType.NORMAL if index in known else TokenType.UNUSED for index in range(len(pieces))]
    for index, token in added.items():
        if index < len(types):
            types[index] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    return types


def _cut(backend: Any) -> str:
    """Return llama.cpp's name of how a tokenizer cuts text. Raises InputError where it has none that is known."""
    name = name_of(backend)
    if name is None:
        raise InputError(
            f"tokenizer: its pre-tokenizer is not one of the known {', '.join(cut.names[0] for cut in CUTS)}; "
            "convert the model with llama.cpp's own tools."
        )
    return name


def _add_sentencepiece(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, pieces: list[str], types: list[TokenType]
) -> None:
    """Write scores instead of a list of merges, by which llama.cpp merges: an earlier merge has a higher score."""
    special = _special(tokenizer, merges=True)
    scores = dict.fromkeys(pieces, UNREACHED)
    for rank, merge in enumerate(special.merges):
        piece = merge.replace(" ", "")
        scores[piece] = max(scores.get(piece, UNREACHED), float(-rank))
    for index, piece in enumerate(pieces):
        if types[index] == TokenType.NORMAL and piece.startswith("<0x") and len(piece) == len("<0x00>"):
            types[index] = TokenType.BYTE
        elif piece == tokenizer.unk_token:
            types[index] = TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([scores[piece] for piece in pieces])
    first = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[0]
    writer.add_add_space_prefix(first.startswith("▁"))


def _special(tokenizer: PreTrainedTokenizerBase, merges: bool) -> SpecialVocab:
    """Return special tokens, chat template and merges; encoding a text shows which special tokens are added."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = SpecialVocab(folder, load_merges=merges)
    ids = tokenizer.encode("a")
    special.add_special_token["bos"] = ids[0] == tokenizer.bos_token_id
    special.add_special_token["eos"] = ids[-1] == tokenizer.eos_token_id
    return special
