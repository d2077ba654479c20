"""The tokenizer inside a GGUF file makes the tokens that llama.cpp makes, whatever its way to cut text is called."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from slim.core import workspace
from slim.core.errors import InputError
from slim.models import bundled
from slim.models.folder_tokenizer import of_folder
from slim.models.gguf_tokenizer import read_tokenizer
from slim.models.load import load_model
from slim.models.pre_tokenizers import CUTS, name_of
from slim.models.tokenizer import load_tokenizer
from slim.serving.gguf import export_gguf
from tests.gguf_files import SPECIAL, byte_level, llama_cpp_tokens, sentencepiece, uncut, write_gguf

WORDS = "a b s S 's 'S 'LL 're 'd n't I'll camelCase 1 23 4567 12345 ! ? . _ - $ + < ~ | ` € ( ) / // … ¿ ' ’ ’s 🙂"
SPACES = " |  |   |\n|\n\n|\r\n|\t|\u00a0|\u3000|\u2028|\u200b|\x0b|\x85"
PLAIN = (*WORDS.split(" "), *SPACES.split("|"), "<s>", "</s>", "<|im start|>", "<｜end｜>")
LETTERS = tuple("éÉßſΩяЯ中文한ひカー۱٢½²Ⅷक\u0303\u093fǅªʼ\ufeff")
BY_CASE = ("tekken", "gpt-4o")
"""llama.cpp knows the case of ASCII letters alone, and no marks, for these."""


def lines(pieces: Sequence[str], count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(pieces, k=draw.randint(1, 20))) for _ in range(count)]


def test_tokens_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """For each way to cut, of tokens that reach over all cuts, and for the older kind with and without its settings."""
    plain, mixed = lines(PLAIN, 80, 0), lines((*PLAIN, *LETTERS), 80, 1)
    learned = [*plain, *mixed, *lines((*PLAIN, *LETTERS), 400, 2)]
    tokens, merges = uncut(learned, 3000)
    files = [byte_level(tmp_path / f"{cut.names[0]}.gguf", tokens, merges, cut.names[0]) for cut in CUTS]
    files.append(byte_level(tmp_path / "no-bos.gguf", tokens, merges, "llama-bpe", add_bos_token=False))
    files.append(byte_level(tmp_path / "both.gguf", tokens, merges, "gpt-2", add_bos_token=True, add_eos_token=True))
    files.append(sentencepiece(tmp_path / "older.gguf", learned, 1500))
    files.append(sentencepiece(tmp_path / "plain.gguf", learned, 1500, add_space_prefix=False, add_bos_token=False))
    found = llama_cpp_tokens(files, plain + mixed, tmp_path)
    for file, expected in zip(files, found, strict=True):
        tokenizer = read_tokenizer(file)
        texts = plain if file.stem in BY_CASE else plain + mixed
        for text, ids in zip(texts, expected, strict=False):
            assert tokenizer(text).input_ids == ids, (file.stem, text)
    assert len({str(expected) for expected in found[: len(CUTS)]}) == len(CUTS)


def test_special_tokens_and_spaces_come_back(tmp_path: Path) -> None:
    """Tokens of other characters than bytes have are one token each, and are known as what they are."""
    tokens, merges = uncut(["some words  and\n more"], 300)
    tokenizer = read_tokenizer(byte_level(tmp_path / "model.gguf", tokens, merges, "smollm", padding_token_id=4))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (SPECIAL[1], SPECIAL[2], SPECIAL[4])
    ids = tokenizer("some <｜end｜> words<|im start|>").input_ids
    assert {3, 4} < set(ids)
    assert tokenizer.decode(ids) == "some <｜end｜> words<|im start|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "some  words"
    assert len(tokenizer) == len(tokens)
    older = read_tokenizer(sentencepiece(tmp_path / "older.gguf", ["some words  and more"], 300))
    assert older.decode(older(" two  é").input_ids, skip_special_tokens=True) == " two  é"


@pytest.mark.parametrize(
    ("model", "settings", "sentence"),
    [
        (
            "gpt2",
            {"pre": "no-such"},
            r"'no-such' \(tokenizer.ggml.pre\), and Slim knows gpt-2, .*llama-bpe.*: take the",
        ),
        ("gpt2", {}, r"way '' \(tokenizer.ggml.pre\)"),
        ("t5", {}, r"kind 't5' \(tokenizer.ggml.model\), and Slim reads gpt2 and llama: take the"),
        ("llama", {"unknown_token_id": 4000}, "has no tokenizer that can be read"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, model: str, settings: dict[str, object], sentence: str) -> None:
    """One sentence, before any weights are read; nothing is guessed."""
    file = write_gguf(tmp_path / "model.gguf", ["a", "b"], model=model, settings=settings, kinds=[1, 1])
    for read in (load_tokenizer, load_model):
        with pytest.raises(InputError, match=sentence) as caught:
            read(str(file))
        assert "\n" not in str(caught.value)


def test_a_name_is_found_again(tmp_path: Path) -> None:
    """Of each way to cut once it was read; and from a folder of a family whose own class would cut in another way."""
    tokens, merges = uncut(["some words"], 300)
    read = {cut.names[0]: byte_level(tmp_path / cut.names[0], tokens, merges, cut.names[0]) for cut in CUTS}
    tokenizers: dict[str, Any] = {name: read_tokenizer(file) for name, file in read.items()}
    assert {name: name_of(tokenizer.backend_tokenizer) for name, tokenizer in tokenizers.items()} == {
        name: name for name in read
    }
    tokenizers["smollm"].save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "qwen2"}')
    reread: Any = of_folder(str(tmp_path / "folder"))
    assert name_of(reread.backend_tokenizer) == "smollm"


def test_a_model_from_such_a_file_keeps_its_cut(tmp_path: Path) -> None:
    """In the workspace, and in a file written from its folder there; a folder unpacked before is made anew."""
    tokens, merges = uncut(["some 12 words\n\n1. and more"], 300)
    file = byte_level(tmp_path / "model.gguf", tokens, merges, "smollm")
    expected = read_tokenizer(file)("a  12\n\n1.").input_ids
    first = load_model(str(file), device="cpu")
    assert first.tokenizer("a  12\n\n1.").input_ids == expected
    (folder,) = (place for place in workspace.subfolder("models").iterdir() if place.is_dir())
    assert export_gguf(str(folder), tmp_path / "again.gguf").path.is_file()
    assert name_of(read_tokenizer(tmp_path / "again.gguf").backend_tokenizer) == "smollm"
    (folder / bundled.MARK).unlink()
    (folder / "tokenizer.json").write_text("{}")
    assert load_model(str(file), device="cpu").tokenizer("a  12\n\n1.").input_ids == expected
